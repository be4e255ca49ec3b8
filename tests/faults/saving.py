"""Saving a checkpoint such that whoever is killed at any time leaves a whole one: the last, or the one before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes beside the file, and puts that in its place once it is on the disk."""
    beside = path.with_suffix(".partial")
    with beside.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
