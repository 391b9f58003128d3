"""The map in docs/architecture.md is that of the package."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llava_video_cli"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def rooms() -> set[str]:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return folders | {path.stem for path in PACKAGE.glob("[!_]*.py")}


def test_every_room_is_in_the_table_and_no_other() -> None:
    assert set(re.findall(r"^\| `(\w+)/?` \|", PAGE, re.MULTILINE)) == rooms()


def test_every_room_is_in_the_picture_and_no_other() -> None:
    picture = (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8")
    assert set(re.findall(r'font-weight="bold">(\w+)<', picture)) == rooms()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_picture_has_the_order_of_the_layers_that_are_checked() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = [set(layer.split(" | ")) for layer in settings["tool"]["importlinter"]["contracts"][0]["layers"]]
    picture = (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8")
    boxes = re.findall(r'<rect x="\d+" y="(\d+)".*?\n<text[^>]*font-weight="bold">(\w+)<', picture)
    rows: dict[int, set[str]] = {}
    for height, name in boxes:
        rows.setdefault(int(height), set()).add(name)
    assert [rows[height] for height in sorted(rows)] == layers


def test_files_that_the_page_names_are_there() -> None:
    for name in re.findall(r"`(\w+(?:/\w+)*\.py)`", PAGE):
        assert (PACKAGE / name).exists() or list(PACKAGE.glob(f"*/{name}")), name


def test_no_assert_does_work() -> None:
    """`python -O` leaves asserts out: a call in one, but for a look at a type, would be left out with it."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            calls = ast.walk(node.test) if isinstance(node, ast.Assert) else ()
            called = {ast.unparse(each.func) for each in calls if isinstance(each, ast.Call)}
            assert called <= {"isinstance", "len"}, f"{path}, line {getattr(node, 'lineno', 0)}"
