"""The words around the code: help pages against the nodes' texts, README's tree against the files, ASCII sources."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from .nodes.locales import read

PACK = Path(__file__).absolute().parents[1]
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (PACK / "web" / "docs").glob("*.md")}
README = (PACK / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def labels(node: str, group: str) -> set[str]:
    """What stands beside the sockets and widgets of a node, in English."""
    return {text for key, text in read("en").items() if key[:2] == (node, group) and key[-1] == "name"}


def explained(page: str, group: str) -> set[str]:
    """The first column of the page's tables that are headed `input` or `output`; `width, height` are two."""
    tables = re.findall(rf"^\| {group[:-1]} \|.*\n\|---.*\n((?:\|.*\n?)+)", page, re.MULTILINE)
    return {name.strip() for row in "".join(tables).splitlines() for name in row.split("|")[1].split(",")}


def dead_links(text: str, folder: Path) -> list[str]:
    return [link for link in LINK.findall(text) if ":" not in link and not (folder / link).exists()]


def tree_paths(text: str) -> set[str]:
    """The paths of a tree block: names up to two spaces, several in a row; four spaces of indent go one level down."""
    block = re.search(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block
    paths, parents = set(), []
    for line in block[1].splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        depth = (len(line) - len(line.lstrip())) // 4
        parents[depth:] = [names[0]]
        paths |= {"".join([*parents[:depth], name]).rstrip("/") for name in names}
    return paths


def modules() -> set[str]:
    folders = (PACK / "magicapture_core", PACK / "nodes")
    return {path.relative_to(PACK).as_posix() for folder in folders for path in folder.rglob("*.py")}


def top_level() -> set[str]:
    """Names beside README.md that are neither hidden nor ignored by git."""
    ignored = [line.strip("/") for line in (PACK / ".gitignore").read_text(encoding="utf-8").split()]
    names = {path.name for path in PACK.iterdir() if not path.name.startswith(".")} - {"README.md"}
    return {name for name in names if not any(fnmatch(name, pattern) for pattern in ignored)}


def test_every_node_has_a_page_and_every_page_a_node() -> None:
    assert PAGES.keys() == {key[0] for key in read("en")}


@pytest.mark.parametrize("node", sorted(PAGES))
def test_a_page_explains_every_socket_and_no_other(node: str) -> None:
    for group in ("inputs", "outputs"):
        assert explained(PAGES[node], group) == labels(node, group)


@pytest.mark.parametrize("node", sorted(PAGES))
def test_a_page_has_the_nodes_title(node: str) -> None:
    assert PAGES[node].splitlines()[0] == f"# {read('en')[node, 'display_name']}"


@pytest.mark.parametrize("node", PAGES)
def test_a_page_has_a_picture_of_its_node_and_a_mistake_that_people_make(node: str) -> None:
    assert f"](images/{node}.jpg)" in PAGES[node]
    assert "common mistake" in PAGES[node].lower()


def test_no_link_leads_nowhere() -> None:
    assert {node: dead for node, page in PAGES.items() if (dead := dead_links(page, PACK / "web" / "docs"))} == {}
    for page in PACK.glob("*.md"):
        assert dead_links(page.read_text(encoding="utf-8"), PACK) == [], page.name


def test_each_of_the_sixteen_complaints_has_its_answer_and_tests_that_exist() -> None:
    rows = re.findall(r"^\| (\d+) \|.*$", pains := (PACK / "docs" / "pains.md").read_text("utf-8"), re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, 17))
    for row in pains.splitlines()[-16:]:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert tests, row
        for file, name in tests:
            assert f"def {name}(" in (PACK / file).read_text("utf-8"), (file, name)


def test_readme_names_every_file_and_no_other() -> None:
    named = tree_paths(README)
    assert {path for path in named if not (PACK / path).exists()} == set()
    assert top_level() - {path.split("/")[0] for path in named} == set()
    assert {path for path in modules() if not path.endswith("/__init__.py")} - named == set()


def test_the_tree_is_read_by_its_indent() -> None:
    text = "```text\na/        one\n    b.py  two\n    c/    three\n        d.py e.py\nf.md\n```\n"
    assert tree_paths(text) == {"a", "a/b.py", "a/c", "a/c/d.py", "a/c/e.py", "f.md"}


def test_sources_are_ascii() -> None:
    folders = [PACK / name for name in top_level() if (PACK / name).is_dir()]
    sources = [*PACK.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    assert len(sources) > 50
    assert [path for path in sources if not path.read_bytes().isascii()] == []


def test_the_skin_tone_rows_are_those_of_the_measurement() -> None:
    table = (PACK / "portraitbench" / "results" / "table.md").read_text(encoding="utf-8")
    section = README.split("## Responsible use")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|") and "---" not in line]
    measured = table.split("CSIM by skin tone")[1].splitlines()
    assert len(rows) == 4
    assert [row for row in rows if row not in measured] == []
