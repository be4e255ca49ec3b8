"""What a measurement was made with."""

import math
import platform
import shlex
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import torch_gfo
from torch_gfo.closure import Memory

__all__ = ["command", "environment", "markdown_table", "peak_memory"]


def command() -> str:
    """Returns the command that runs, with its arguments, so that a reader can repeat it."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def peak_memory(step: Callable[[], Any]) -> int:
    """Returns the most bytes that the tensors of a step take at a time, beside those that there were before it.

    Memory that the library would use again counts as new. What libraries below torch take for themselves does not
    count.
    """
    with mock.patch.object(torch_gfo.pages, "_LARGE", math.inf), Memory() as memory:
        step()
    peak: int = memory.peak
    return peak


def environment() -> dict[str, str]:
    """Returns the date, the versions, the processor and the number of threads."""
    return {
        "date": date.today().isoformat(),
        "torch_gfo": torch_gfo.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
    }


def processor() -> str:
    """Returns the processor's name, as well as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table: the first column of text, the others of numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])
