"""Memory that is used again, and what must not be."""

from __future__ import annotations

import copy
import gc
import io

import torch
from torch import Tensor

from tests.helpers import assert_identical
from torch_gfo.pages import Pages

CPU = torch.device("cpu")
SHAPE = (300, 1000)


def empty(pages: Pages, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    return pages.empty(shape, dtype, CPU)


def test_used_again_once_nobody_sees_it() -> None:
    """The tensor, a view of it, a detached one and an array all keep the memory; afterwards it is given again."""
    pages = Pages()
    address = empty(pages).data_ptr()
    for see in (
        lambda x: x.view(-1),
        lambda x: x[0],
        lambda x: x.detach()[0],
        lambda x: x.numpy()[0],
        lambda x: x.untyped_storage(),
    ):
        seen = see(empty(pages).zero_())
        others = [empty(pages).fill_(1) for _ in range(3)]
        assert address not in {other.data_ptr() for other in others}
        assert not any(list(seen[:5]))
        del seen, others
        gc.collect()
        address = empty(pages).fill_(7).data_ptr()
        again = empty(pages)
        assert again.data_ptr() == address
        assert bool((again == 7).all())  # new memory at the same address would be zero
        del again


def test_what_it_gives() -> None:
    """Shapes and dtypes as asked for; small tensors, and other sizes, disturb nothing."""
    pages = Pages()
    for shape, dtype in (
        (SHAPE, torch.float32),
        ((1000, 200), torch.float64),
        ((3,), torch.float32),
        ((0, 5), torch.int8),
    ):
        x = empty(pages, shape, dtype)
        assert (x.shape, x.dtype, x.device, x.is_contiguous()) == (shape, dtype, CPU, True)
    large = empty(pages, (600, 1000)).data_ptr()
    empty(pages)
    assert empty(pages, (600, 1000)).data_ptr() == large


def test_copies_are_ordinary() -> None:
    """Tensors in such memory are copied and saved as all others."""
    x = empty(Pages()).normal_(generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    torch.save({"x": x}, file)
    file.seek(0)
    for same in (copy.deepcopy(x), torch.load(file, weights_only=True)["x"], x.clone()):
        assert_identical(same, x)
        assert same.data_ptr() != x.data_ptr()
