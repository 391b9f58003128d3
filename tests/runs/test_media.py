"""The media of a question: opened once, checked before a model loads, and read once in a conversation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import pytest
from terminal import scene

from llava_video_cli import MediaError, Picture, Sampling
from llava_video_cli.demo.world import write_picture
from llava_video_cli.runs.media import MIXED, media_notes, read_media


def no_progress(_: float) -> None: ...


class Events(list[str]):
    """What happens while media are read, in its order."""

    def opened(self, pictures: Sequence[Picture | None]) -> None:
        self.append("opened " + " ".join("video" if picture is None else "picture" for picture in pictures))

    def progress(self, share: float) -> None:
        if share in (0, 1):
            self.append(f"{share:.0%}")


def test_a_single_video_is_opened_once(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    real = av.open

    def counted(file: str, **options: object) -> object:
        names.append(file)
        return real(file, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(av, "open", counted)
    events = Events()
    (frames,) = read_media([str(clip)], Sampling(frames=1), opened=events.opened, progress=events.progress)
    assert events == ["opened video", "0%", "100%"] and not isinstance(frames, Picture)
    assert len(frames.images) == 1 and len(names) == 1, names


def test_the_header_of_a_single_video_is_read_once(clip: Path) -> None:
    program = (
        "import sys\n"
        "from llava_video_cli.runs.media import read_media\n"
        "from llava_video_cli import Sampling\n"
        f"path, opened = {str(clip)!r}, []\n"
        "sys.addaudithook(lambda event, args: opened.append(event) if event == 'open' and args[0] == path else None)\n"
        "read_media([path], Sampling(frames=1), opened=lambda _: None, progress=lambda _: None)\n"
        "sys.exit(len(opened) != 2)"  # its first bytes, and its index; FFmpeg's own opening is no event of Python's
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_picture_that_is_named_as_a_video_is_a_picture(tmp_path: Path) -> None:
    write_picture(tmp_path / "red.png", scene())
    (tmp_path / "red.png").rename(tmp_path / "red.mp4")
    events = Events()
    path = str(tmp_path / "red.mp4")
    (picture,) = read_media([path], Sampling(), opened=events.opened, progress=events.progress)
    assert isinstance(picture, Picture) and events == ["opened picture"] and not picture.notes
    for part in (Sampling(start_seconds=1.0), Sampling(end_seconds=2.0)):
        (picture,) = read_media([path], part, opened=events.opened, progress=events.progress)
        assert picture.notes == ("the part (start, end) is not used: this is one picture",)


def test_several_media_are_all_opened_before_any_is_read(clip: Path, tmp_path: Path) -> None:
    picture, bad = tmp_path / "red.png", tmp_path / "bad.mp4"
    write_picture(picture, scene())
    events, paths = Events(), [str(clip), str(picture)]
    contents = read_media(paths, Sampling(frames=2), opened=events.opened, progress=events.progress)
    assert events[0] == "opened video picture" and events[-1] == "100%"
    assert isinstance(contents[1], Picture) and media_notes(contents) == [MIXED] and media_notes(contents[:1]) == []
    bad.write_text("no video")
    for paths in ([str(bad)], [str(clip), str(bad)], [str(tmp_path / "gone.png")]):
        events = Events()
        with pytest.raises(MediaError):
            read_media(paths, Sampling(), opened=events.opened, progress=events.progress)
        assert events == []
