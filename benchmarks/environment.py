"""What a measurement was made with."""

import platform
from datetime import date
from pathlib import Path

import torch

import torch_gfo

__all__ = ["environment", "markdown_table"]


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
