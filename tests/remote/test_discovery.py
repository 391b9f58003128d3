"""What a running server tells programs of the same user, and what they don't believe."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from llava_video_cli.remote import announce, announced

URL = "http://127.0.0.1:8377"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "llvid"


def test_a_server_is_found_while_it_runs(folder: Path) -> None:
    assert announced("demo") is None
    with announce(URL, "demo"):
        assert announced("demo") == URL and announced("another") is None
        (file,) = folder.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert announced("demo") is None and not list(folder.iterdir())


def test_what_a_killed_server_left_is_not_believed(folder: Path) -> None:
    code = (
        "import os; from llava_video_cli.remote import announce\n"
        f"with announce({URL!r}, 'demo'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert list(folder.iterdir())
    assert announced("demo") is None and not list(folder.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"demo", URL.encode(), b"file:///x\ndemo", f"{URL}\ndemo\n".encode(), b"\xff"]
)
def test_a_file_that_says_something_else_is_not_believed(folder: Path, content: bytes) -> None:
    with announce(URL, "demo"):
        (file,) = folder.iterdir()
        file.write_bytes(content)
        assert announced("demo") is None


def test_a_file_that_cannot_be_read_hides_no_other(folder: Path) -> None:
    with ExitStack() as announcements:
        for number in range(9):
            announcements.enter_context(announce(URL, "demo"))
            (file,) = folder.glob(f"{os.getpid()}.server")
            if number < 8:  # the order in a folder is the system's
                file.write_bytes(b"\xff")
                file.rename(folder / f"{number}.server")
        assert announced("demo") == URL


def test_a_file_or_folder_open_to_others_is_not_believed(folder: Path) -> None:
    with announce(URL, "demo"):
        (file,) = folder.iterdir()
        file.chmod(0o666)
        assert announced("demo") is None
        file.chmod(0o600)
        folder.chmod(0o777)
        assert announced("demo") is None
        folder.chmod(0o700)
        assert announced("demo") is not None


def test_a_link_and_a_pipe_are_left_alone(folder: Path) -> None:
    with announce(URL, "demo"):
        (file,) = folder.iterdir()
        moved = file.rename(folder.parent / "elsewhere")
        file.symlink_to(moved)
        os.mkfifo(folder / "1.server")
        assert announced("demo") is None and file.is_symlink()


def test_without_a_folder_nothing_is_announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "absent"))
    with announce(URL, "demo"):
        assert announced("demo") is None
