"""What a program gets from `llava_video_cli`: all names, their types, and nothing imported before it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import llava_video_cli
from llava_video_cli import errors

ROOT = Path(__file__).parents[1]
PROGRAM = """
from llava_video_cli import {names}

def captions(path: str) -> list[str]:
    model: Model = open_model("demo", Loading(device="cpu"))
    frames = read_frames(path, Sampling(frames=8))
    contact_sheet(frames).save("sheet.png")
    request = Request((Turn("user", "What happens?", (frames,)),), Generation(temperature=0.5))
    try:
        streamed = join(model.stream(request)).text
    except (OutOfMemoryError, ContextError) as error:
        streamed = error.hint or str(error)
    return [streamed, *(answer.text for answer in model.answer_all([request])), __version__]

def found() -> list[float]:
    run = find_moments("a red car turns left", "videos", "moments.jsonl", every_seconds="scene")
    return [moment["start_seconds"] for outcome in run for moment in run.ranked()]

def run(chat: Chat) -> list[str]:
    texts = [record.text for record in caption_folder("clips", "out.jsonl") if isinstance(record, Record)]
    return [*texts, *(chunk.text for chunk in chat.ask("Who?")), *chat.session.paths]

remote: Model = open_remote(["http://localhost:8000"], key=None)
height: int = read_frames("clip.mp4").images.shape[1]
wrong: str = Sampling().frames
"""
# None of their types is in the public names, and mypy takes half a minute to read them.
SETTINGS = """
[mypy]
strict = true
[mypy-torch.*,transformers.*,huggingface_hub.*,httpx2.*,rich.*]
follow_imports = skip
"""


def test_each_name_is_there() -> None:
    for name in llava_video_cli.__all__:
        assert getattr(llava_video_cli, name) is not None, name
    assert llava_video_cli.__version__ == version("llava-video-cli")
    caught = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert caught <= set(llava_video_cli.__all__)


def test_importing_the_package_imports_nothing_else() -> None:
    program = (
        "import sys, llava_video_cli; print([name for name in sys.modules if name.startswith('llava_video_cli.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_program_type_checks_in_strict_mode(tmp_path: Path) -> None:
    """From outside the repository, so that `py.typed` is what tells mypy to read the package's types."""
    pytest.importorskip("mypy", reason="mypy is not installed here")
    names = ", ".join(llava_video_cli.__all__)
    (tmp_path / "program.py").write_text(PROGRAM.format(names=names))
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache" / "outside")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MYPYPATH": ""}
    done = subprocess.run(
        [*command, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    *errors, _ = done.stdout.splitlines()
    assert len(errors) == 1 and 'expression has type "int", variable has type "str"' in errors[0], done.stdout
