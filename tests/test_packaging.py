"""The distributions: what they hold, what they depend on, and that they work where they are installed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import torch_gfo
from torch_gfo.__main__ import optimizers

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the source distribution is, and the wheel that was built from it."""
    directory = tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, directory / "tree", ignore=ignored)
    run("build", "--no-isolation", "--outdir", directory, directory / "tree")
    return directory


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (file,) = distributions.glob("*.whl")
    return file


def run(*arguments: object) -> None:
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_both_pass_the_checks_of_the_index(distributions: Path) -> None:
    """Their description renders, and no field is missing."""
    files = [*distributions.glob("*.whl"), *distributions.glob("*.tar.gz")]
    assert len(files) == 2
    run("twine", "check", "--strict", *files)


def test_source_distribution_holds_what_the_wheel_is_built_from(distributions: Path) -> None:
    (file,) = distributions.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "torch_gfo").rglob("*.py")}
    assert names >= modules | {"torch_gfo/py.typed", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    assert not [name for name in names if name.startswith(("examples/data", "benchmarks", "docs"))]


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


def test_extras_name_what_the_bridges_import(wheel: Path) -> None:
    required = [line for line in metadata(wheel).get_all("Requires-Dist", []) if 'extra == "bridges"' in line]
    assert {re.split(r"\W", line)[0] for line in required} == {"cma", "nevergrad"}


def test_module_prints_the_version_the_backends_and_every_optimizer() -> None:
    done = subprocess.run([sys.executable, "-m", "torch_gfo"], capture_output=True, text=True, check=True)
    head, table = done.stdout.split("\n\n")
    assert head.startswith(f"torch_gfo {torch_gfo.__version__}, ")
    assert {line.split()[0] for line in head.splitlines()[1:]} == {"torch", "accelerators", "cma", "nevergrad"}
    classes = {name for name in torch_gfo.__all__ if hasattr(getattr(torch_gfo, name), "step")}
    assert {line.split()[0] for line in table.splitlines()[1:]} == classes == set(optimizers())
    assert all(line.endswith(".") for line in optimizers().values())


def test_installed_wheel_runs_the_first_example_of_the_readme(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    run("pip", "install", wheel, "--target", site, "--no-deps", "--no-index", "--quiet")
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    script = tmp_path / "example.py"
    script.write_text(f"{example[1]}\nimport torch_gfo\nprint(torch_gfo.__file__)\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(site)
