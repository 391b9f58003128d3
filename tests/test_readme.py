from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_reference import PAGE, reference

import llava_video_cli
from llava_video_cli.preset import preset_files

ROOT = Path(__file__).parents[1]
PAGES = (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_command_reference_is_what_the_program_says() -> None:
    assert reference() == PAGE.read_text(encoding="utf-8"), "run `make docs`"


def test_every_preset_is_in_the_table() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|.*GB|^\| `(demo)` \|", text("docs/presets.md"), re.MULTILINE)
    assert {first or second for first, second in rows} == set(preset_files())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_sections_that_a_page_links_to_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^):]+)\)", page.read_text(encoding="utf-8")):
        name, _, section = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not section or section in sections(linked), target


def test_the_readme_links_to_every_page() -> None:
    linked = {(ROOT / name).resolve() for name in re.findall(r"\]\(([^)#:]+\.md)", text("README.md"))}
    assert linked == {page.resolve() for page in PAGES} - {ROOT / "README.md"}


def test_the_navigation_has_every_page_once() -> None:
    import yaml

    settings = yaml.safe_load(text("mkdocs.yml"))
    groups = [next(iter(entry.values())) for entry in settings["nav"]]
    entries = [entry for group in groups for entry in (group if isinstance(group, list) else [{"": group}])]
    named = sorted(next(iter(entry.values())) for entry in entries)
    outside = ["changelog.md", "contributing.md", "index.md", "results.md", "security.md"]  # docs/hooks.py adds them
    assert named == sorted([*outside, *(page.name for page in (ROOT / "docs").glob("*.md"))])


def test_the_readme_is_short() -> None:
    assert len(text("README.md").encode()) <= 8192


def test_every_public_name_is_in_the_python_reference_once() -> None:
    named = re.findall(r"^::: llava_video_cli\.(\w+)$", text("docs/reference.md"), re.MULTILINE)
    assert sorted(named) == sorted(set(llava_video_cli.__all__) - {"__version__"})


def test_every_environment_variable_is_in_its_table() -> None:
    package = (ROOT / "llava_video_cli").rglob("*.py")
    read = {name for path in package for name in re.findall(r"\bLLVID_[A-Z_]+\b", path.read_text(encoding="utf-8"))}
    assert read == set(re.findall(r"`(LLVID_[A-Z_]+)`", text("docs/environment.md")))


def sections(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_ci_runs_the_command_that_the_readme_gives() -> None:
    block = re.search(r"^<!-- test command -->\n```[a-z]*\n(.+?)\n```$", text("README.md"), re.MULTILINE | re.DOTALL)
    assert block and "pytest" in block[1] and "\n" not in block[1]
    assert "<!-- test command -->" in text(".ci/run")


def test_the_wheel_holds_presets_the_demo_checkpoint_and_the_page() -> None:
    """What hatch would pack, read from the build's own settings."""
    build = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed here")
    names = {Path(file.distribution_path).as_posix() for file in build.WheelBuilder(str(ROOT)).recurse_included_files()}
    forced = {str(value) for value in build.WheelBuilder(str(ROOT)).config.force_include.values()}
    assert {"llava_video_cli/demo/checkpoint/model.safetensors", "llava_video_cli/py.typed"} <= names
    assert "llava_video_cli/presets" in forced
    assert not [name for name in names if not name.startswith("llava_video_cli/")], "what trains the demo stays outside"
    page = {
        f"llava_video_cli/report/assets/{path.name}"
        for path in (ROOT / "llava_video_cli" / "report" / "assets").iterdir()
    }
    assert len(page) >= 5 and page <= names
