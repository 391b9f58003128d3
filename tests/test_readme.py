from __future__ import annotations

import re
from pathlib import Path

import pytest
from reference import README, reference

from llava_video_cli.preset import preset_files

ROOT = README.parent


def text() -> str:
    return README.read_text(encoding="utf-8")


def test_the_command_reference_is_what_the_program_says() -> None:
    assert reference() in text(), "run `python tests/reference.py`"


def test_every_preset_is_in_the_table() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|.*GB|^\| `(demo)` \|", text(), re.MULTILINE)
    assert {first or second for first, second in rows} == set(preset_files())


def test_pictures_and_files_that_the_readme_names_are_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", text()):
        assert (ROOT / target).exists(), target


def test_ci_runs_the_command_that_the_readme_gives() -> None:
    block = re.search(r"^<!-- test command -->\n```[a-z]*\n(.+?)\n```$", text(), re.MULTILINE | re.DOTALL)
    assert block and "pytest" in block[1] and "\n" not in block[1]
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()


def test_the_wheel_holds_presets_the_demo_checkpoint_and_the_page() -> None:
    """What hatch would pack, read from the build's own settings."""
    build = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed here")
    names = {Path(file.distribution_path).as_posix() for file in build.WheelBuilder(str(ROOT)).recurse_included_files()}
    forced = {str(value) for value in build.WheelBuilder(str(ROOT)).config.force_include.values()}
    assert "llava_video_cli/demo/checkpoint/model.safetensors" in names
    assert "llava_video_cli/presets" in forced
    page = {f"llava_video_cli/page/{path.name}" for path in (ROOT / "llava_video_cli" / "page").iterdir()}
    assert len(page) >= 5 and page <= names
