"""The wheel: what it holds, what it depends on, and that it works where it is installed."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import torch_gfo

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    tree = directory / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    pip("wheel", tree, "--no-build-isolation", "--wheel-dir", directory)
    (file,) = directory.glob("*.whl")
    return file


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--no-index", "--quiet"]
    subprocess.run(command, check=True, capture_output=True, text=True)


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_wheel_depends_on_torch_alone(wheel: Path) -> None:
    required = [line for line in metadata(wheel).get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [re.match(r"[\w.-]+", line).group() for line in required] == ["torch"]  # type: ignore[union-attr]


def test_wheel_says_what_it_is(wheel: Path) -> None:
    fields = metadata(wheel)
    assert fields["Name"] == "torch_gfo"
    assert fields["Version"] == torch_gfo.__version__
    assert fields["Requires-Python"] == ">=3.10"
    assert fields["License-Expression"] == "MIT"


def test_wheel_holds_the_package_its_types_and_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "torch_gfo").rglob("*.py")}
    assert modules | {"torch_gfo/py.typed"} == {name for name in names if name.startswith("torch_gfo/")}
    assert all(name.startswith(("torch_gfo/", f"torch_gfo-{torch_gfo.__version__}.dist-info/")) for name in names)
    assert any(name.endswith("/LICENSE") for name in names)


def test_installed_wheel_runs_the_first_example_of_the_readme(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip("install", wheel, "--target", site)
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    script = tmp_path / "example.py"
    script.write_text(f"{example[1]}\nimport torch_gfo\nprint(torch_gfo.__file__)\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(site)
