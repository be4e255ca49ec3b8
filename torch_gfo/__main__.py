"""``python -m torch_gfo``: the version, what it runs on, and the optimizers there are."""

from __future__ import annotations

import inspect
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import torch_gfo

BRIDGES = {"cma": "PyCMA", "nevergrad": "Nevergrad"}


def installed(package: str) -> str:
    """The version of a package, and if there is none, how to get it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed; {BRIDGES[package]} needs it: pip install torch_gfo[bridges]"


def accelerators() -> str:
    """The devices beside the CPU that torch sees."""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    names += ["mps"] * torch.backends.mps.is_available()
    return ", ".join(names) or "none"


def optimizers() -> dict[str, str]:
    """Each optimizer and the first line of its docstring."""
    classes = {name: getattr(torch_gfo, name) for name in torch_gfo.__all__}
    return {
        name: (inspect.getdoc(found) or "").splitlines()[0]
        for name, found in sorted(classes.items(), key=lambda item: item[0].lower())
        if isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    }


def main() -> None:
    """Prints it all."""
    print(f"torch_gfo {torch_gfo.__version__}, Python {platform.python_version()}")
    for name, value in {
        "torch": torch.__version__,
        "accelerators": accelerators(),
        **{package: installed(package) for package in BRIDGES},
    }.items():
        print(f"  {name:13} {value}")
    print("\nOptimizers; help(torch_gfo.NAME) tells more, torch_gfo.suggest(params) names one to begin with:")
    for name, line in optimizers().items():
        print(f"  {name:19} {line}")


if __name__ == "__main__":
    main()
