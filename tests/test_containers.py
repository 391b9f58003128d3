"""What the container files name is there, and the package can be built of what they copy. Docker itself isn't here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("Dockerfile", "Dockerfile.cpu")


def copied(name: str) -> list[str]:
    lines = re.findall(r"^COPY (.+)$", (ROOT / name).read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def requirements(text: str) -> set[str]:
    return set(re.findall(r"""["']((?:torch|torchvision)>=[^"']+)["']""", text))


@pytest.mark.parametrize("name", FILES)
def test_what_a_container_file_names_is_there(name: str) -> None:
    text, project = (ROOT / name).read_text(), (ROOT / "pyproject.toml").read_text()
    (extras,) = re.findall(r"'/src\[([\w,]+)\]'", text)
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(","))
    assert requirements(text) <= requirements(project)
    assert all((ROOT / source).exists() for source in copied(name))
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    assert kept[0] == "*" and {f"!{source}" for source in copied(name)} <= set(kept)
    assert "USER llvid" in text and text.rstrip().endswith('CMD ["demo"]')


def test_the_wheel_can_be_built_of_what_is_copied(tmp_path: Path) -> None:
    assert copied(FILES[0]) == copied(FILES[1])
    for source in copied(FILES[0]):
        target = tmp_path / "src" / source
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, target)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=tmp_path / "src", check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "llava_video_cli/presets/demo.yaml" in names and "llava_video_cli/cli/app.py" in names


def test_the_development_container_is_json_with_comments() -> None:
    lines = (ROOT / ".devcontainer" / "devcontainer.json").read_text().splitlines()
    values = json.loads("\n".join(line for line in lines if not line.lstrip().startswith("//")))
    assert values["postCreateCommand"] == "make setup"
    assert re.search(r"^setup:", (ROOT / "Makefile").read_text(), re.MULTILINE)
