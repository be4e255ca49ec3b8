"""MNIST as tensors: the embedded sample, or the full data set through torchvision."""

import gzip
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAMPLE = Path(__file__).parent / "data"
MEAN, STD = 0.1307, 0.3081  # of the training images' grey levels, between 0 and 1


@dataclass(frozen=True)
class Split:
    """Images (N, 1, 28, 28), normalised, and their digits (N,)."""

    images: Tensor
    digits: Tensor

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.digits)

    def __getitem__(self, index: slice) -> "Split":
        """Returns some of the images."""
        return Split(self.images[index], self.digits[index])


@dataclass(frozen=True)
class Data:
    """The images to train on, those that tell when to stop, and those that are only looked at for the results."""

    train: Split
    validation: Split
    test: Split


def read_idx(path: Path) -> Tensor:
    """Reads a gzipped IDX file: a magic number that ends in the number of dimensions, their sizes, and the bytes."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    return torch.frombuffer(content, dtype=torch.uint8, offset=start).reshape(shape)


def normalise(images: Tensor, digits: Tensor, device: torch.device) -> Split:
    """Turns grey levels 0 to 255, (N, 28, 28), into a split with mean 0 and standard deviation 1."""
    return Split(images.to(device).unsqueeze(1).float().div(255).sub(MEAN).div(STD), digits.to(device).long())


def hold_out(train: Split, test: Split) -> Data:
    """Keeps the last tenth of the training images for validation."""
    n_train = len(train) - len(train) // 10
    return Data(train[:n_train], train[n_train:], test)


def load_sample(device: torch.device) -> Data:
    """Returns the embedded sample: 10,000 training and 2,000 test images."""
    images, digits = "images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"
    train = normalise(read_idx(SAMPLE / f"train-{images}"), read_idx(SAMPLE / f"train-{digits}"), device)
    test = normalise(read_idx(SAMPLE / f"t10k-{images}"), read_idx(SAMPLE / f"t10k-{digits}"), device)
    return hold_out(train, test)


def load_full(root: Path, download: bool, device: torch.device) -> Data:
    """Returns the full data set, 60,000 training and 10,000 test images, from ``root/MNIST/raw``.

    Raises:
        RuntimeError: MNIST is not there, or could not be downloaded.
    """
    from torchvision_cpu import torchvision

    train = torchvision.datasets.MNIST(str(root), train=True, download=download)
    test = torchvision.datasets.MNIST(str(root), train=False, download=download)
    return hold_out(normalise(train.data, train.targets, device), normalise(test.data, test.targets, device))


def one_against_others(data: Data, digit: int) -> Data:
    """Makes one digit class 1, and the nine others class 0."""
    splits = (data.train, data.validation, data.test)
    return Data(*(Split(split.images, (split.digits == digit).long()) for split in splits))


class Minibatches(Iterator[tuple[Tensor, Tensor]]):
    """Endless minibatches: every epoch is a fresh permutation, its incomplete last batch dropped.

    A batch size of at least the number of images gives all of them, in order, at every step. The order depends on
    ``seed`` alone, and ``state_dict`` lets an interrupted run continue with the batch that would have come next.
    """

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        """Starts the first epoch."""
        self.split = split
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self._start_epoch()

    def _start_epoch(self) -> None:
        self.epoch_start = self.generator.get_state()
        self.order = torch.randperm(len(self.split), generator=self.generator)
        self.position = 0

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Returns the next images and their digits."""
        if self.batch_size >= len(self.split):
            return self.split.images, self.split.digits
        if self.position + self.batch_size > len(self.split):
            self._start_epoch()
        index = self.order[self.position : self.position + self.batch_size].to(self.split.digits.device)
        self.position += self.batch_size
        return self.split.images[index], self.split.digits[index]

    def state_dict(self) -> dict[str, Any]:
        """Returns what ``load_state_dict`` needs to continue from here."""
        return {"epoch_start": self.epoch_start, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from where ``state`` was taken."""
        self.generator.set_state(state["epoch_start"])
        self._start_epoch()
        self.position = state["position"]
