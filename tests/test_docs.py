"""The Python of the README and of the pages of docs/, run as it is printed there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import torch_gfo.plotting

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]

# A block that cannot run says why, on the line above it: <!-- not run: the reason -->
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>\S[^\n]*) -->\n)?^```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
NOT_RUN = {"README.md": 1}  # how many, by page


class Block(NamedTuple):
    """One fenced block: its code at its lines of the page, and why it is not run, if it is not."""

    code: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block("\n" * text[: match.start("code")].count("\n") + match["code"], match["reason"])
        for match in BLOCK.finditer(text)
    ]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_the_blocks_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one namespace and an empty directory; an error shows the page and the line."""
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.reason is None:
            exec(compile(block.code, str(page), "exec"), scope)


def test_what_is_not_run_is_counted() -> None:
    counts = {name(page): sum(block.reason is not None for block in blocks(page)) for page in PAGES}
    assert {page: n for page, n in counts.items() if n} == NOT_RUN


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_of_python_is_such_a_block(page: Path) -> None:
    """Indented fences, other spellings and fences that are never closed would be left out without a word."""
    fences = re.findall(
        r"^[ >]*(?:```|~~~) *(?:py|\{code)", page.read_text(encoding="utf-8"), re.MULTILINE | re.IGNORECASE
    )
    assert len(fences) == len(blocks(page))


def test_a_block_keeps_its_line_and_its_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "One\n\n```python\nx = 1\n```\n\n<!-- not run: it needs two -->\n```python\ny = 2\n```\n", encoding="utf-8"
    )
    assert blocks(page) == [Block("\n\n\nx = 1\n", None), Block("\n" * 8 + "y = 2\n", "it needs two")]


LINK = re.compile(r"\]\(([^()\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    """Within the repository; the code in fences has no links."""
    for target in LINK.findall(
        re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    ):
        if not target.startswith("https://"):
            file, _, heading = target.partition("#")
            path = (page.parent / file).resolve() if file else page
            assert path.exists(), target
            if heading:
                titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "algorithms").glob("*.md")), ids=name)
def test_every_algorithm_is_shown(page: Path) -> None:
    figure = ROOT / "docs" / "figures" / f"{page.stem}.png"
    assert f"(../figures/{figure.name})" in page.read_text(encoding="utf-8")
    assert figure.stat().st_size < 80_000


def test_everything_public_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    described = re.findall(r"^\.\. auto(?:class|function|module):: torch_gfo\.(\w+)$", reference, re.MULTILINE)
    described.remove("plotting")  # which import torch_gfo does not import, as it needs matplotlib
    assert sorted(described) == sorted(torch_gfo.__all__)
    (figures,) = re.findall(r"torch_gfo\.plotting\n   :members: (.*)$", reference, re.MULTILINE)
    assert sorted(figures.split(", ")) == sorted(torch_gfo.plotting.__all__)
