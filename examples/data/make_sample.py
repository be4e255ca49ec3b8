"""Make the embedded sample of MNIST from the full data set.

The sample is the first 10,000 training images and the first 2,000 test images with their labels, unchanged and in the
original order and file format (IDX), compressed with gzip::

    python examples/data/make_sample.py DIR        # DIR/MNIST/raw holds the four original files

The files written are the same, bit for bit, wherever the same zlib is used.
"""

import argparse
import gzip
import struct
from pathlib import Path

TRAIN, TEST = 10_000, 2_000
FILES = {
    "train-images-idx3-ubyte": TRAIN,
    "train-labels-idx1-ubyte": TRAIN,
    "t10k-images-idx3-ubyte": TEST,
    "t10k-labels-idx1-ubyte": TEST,
}


def head(idx: bytes, count: int) -> bytes:
    """The IDX file of the first ``count`` items of the IDX file ``idx``.

    An IDX file is a magic number, whose last byte is the number of dimensions, the size of each dimension as a
    big-endian 32-bit integer, and the items.
    """
    dimensions = idx[3]
    start = 4 + 4 * dimensions
    total, *shape = struct.unpack(f">{dimensions}I", idx[4:start])
    size = (len(idx) - start) // total
    return idx[:4] + struct.pack(f">{dimensions}I", count, *shape) + idx[start : start + count * size]


def main() -> None:
    """Write the sample beside this file."""
    parser = argparse.ArgumentParser(description="Make the embedded sample of MNIST from the full data set.")
    parser.add_argument("data", type=Path, metavar="DIR", help="directory whose MNIST/raw holds the four IDX files")
    raw = parser.parse_args().data / "MNIST" / "raw"
    for name, count in FILES.items():
        target = Path(__file__).parent / f"{name}.gz"
        target.write_bytes(gzip.compress(head((raw / name).read_bytes(), count), compresslevel=9, mtime=0))
        print(f"{target.name}: {count} items, {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
