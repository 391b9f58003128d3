"""The commands and programs in the README and in docs/, and a folder with the files that they name."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(
    r"(?P<marker><!-- output varies -->\n)?^[ ]*```(?P<language>\w*)\n(?P<text>.*?)^[ ]*```$", re.M | re.S
)


@dataclass(frozen=True)
class Command:
    """A line to type; what is shown below it, if the page shows it; and the line of the page."""

    text: str
    line: int
    shown: tuple[str, ...] | None = None
    varies: bool = False
    mention: bool = False  # in backticks: it may leave out a path or a question

    def stages(self) -> list[list[str]]:
        """Return the words of each command of the pipe; of several commands, those of the parts that run llvid."""
        words = shlex.shlex(self.text, posix=True, punctuation_chars="|&;<>")
        words.whitespace_split = True
        stages: list[list[str]] = [[]]
        for word in words:
            if word and set(word) <= set("|&;<>"):
                stages.append([])
            else:
                stages[-1].append(word)
        return [stage for stage in stages if stage]

    @property
    def piped(self) -> bool:
        """Whether the line is one pipe, and nothing else of the shell's."""
        return not re.search(r"[;&<>]", re.sub(r"'[^']*'|\"[^\"]*\"", "", self.text))


def commands(page: Path) -> list[Command]:
    """Return the commands of a page: the lines of its blocks, and what it has in backticks beside its text."""
    text = page.read_text(encoding="utf-8")
    found: list[Command] = []
    for block in _FENCE.finditer(text):
        if block["language"] in ("", "sh"):
            first = text.count("\n", 0, block.start("text")) + 1
            found += _of_block(block["text"], first, varies=bool(block["marker"]))
    prose = _FENCE.sub(lambda block: re.sub(r"[^\n]", "", block[0]), text)
    for span in re.finditer(r"`([^`\n]+)`", prose):
        if re.search(r"\bllvid [a-z]+ ", span[1]) and not re.search(r"\.\.\.|…", span[1].replace('"..."', "")):
            found.append(Command(span[1].replace("\\|", "|"), text.count("\n", 0, span.start()) + 1, mention=True))
    return sorted(found, key=lambda command: command.line)


def _of_block(text: str, first: int, varies: bool) -> Iterator[Command]:
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    typed = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    for start, end in pairwise([*typed, len(lines)]):
        yield Command(lines[start][2:], first + start, tuple(lines[start + 1 : end]), varies)
    if not typed:
        yield from (
            Command(line, first + n) for n, line in enumerate(lines) if re.search(r"(^|[ /\"])llvid [a-z-]", line)
        )


def programs(page: Path) -> list[str]:
    """Return the Python programs of a page."""
    return [
        block["text"] for block in _FENCE.finditer(page.read_text(encoding="utf-8")) if block["language"] == "python"
    ]


def block(page: str, language: str, word: str) -> str:
    """Return the block of a page in which a word stands."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return next(
        found["text"] for found in _FENCE.finditer(text) if found["language"] == language and word in found["text"]
    )


def write_files(folder: Path) -> None:
    """Make the files that the pages name: clips, a film of four shots, pictures, subtitles, requests, conversations."""
    from clips import make_sound
    from films import CAPTIONS, write_film
    from PIL import Image
    from terminal import scene

    from llava_video_cli import read_frames
    from llava_video_cli.cli.demo import scene as demo_scene
    from llava_video_cli.demo.world import write_clip

    write_clip(folder / "llvid-demo.mp4", demo_scene())
    for name in ("clips", "films", "frames", "talks"):
        (folder / name).mkdir()
    clip = folder / "clip.mp4"
    yellow = {
        "color_start": "yellow",
        "color_end": "yellow",
        "shade_start": (228, 204, 48),
        "shade_end": (228, 204, 48),
    }
    write_clip(clip, scene(shape="triangle", **yellow))
    for name in ("video.mp4", "lecture.mp4", "clips/triangle.mp4"):
        shutil.copy(clip, folder / name)
    write_clip(folder / "clips/circle.mp4", scene())
    write_clip(folder / "clips/square.mp4", scene(shape="square", direction="up", y=0.7))
    for name, source in (("a.mp4", "circle"), ("b.mp4", "square")):
        shutil.copy(folder / f"clips/{source}.mp4", folder / name)
    film = write_film(folder / "film.mp4")
    for name in ("film.mkv", "films/film.mp4"):
        shutil.copy(film, folder / name)
    cues = (f"{n}\n00:00:{2 * n:02},000 --> 00:00:{2 * n + 2:02},000\n{text}\n" for n, text in enumerate(CAPTIONS))
    (folder / "film.srt").write_text("\n".join(cues))
    write_clip(folder / "photo.mp4", scene(shape="square", **yellow))
    still = Image.fromarray(read_frames(folder / "photo.mp4").images[0])
    for name in ("photo.jpg", "photo.png"):
        still.save(folder / name, quality=95)
    for number, image in enumerate(read_frames(clip).images):
        for name in (f"frames/{number}.jpg", f"frame_{number}.jpg"):
            Image.fromarray(image).save(folder / name, quality=95)
    (folder / "photo.mp4").unlink()
    make_sound(folder / "talks" / "talk.m4a")
    shutil.copytree(folder / "clips", folder / "videos")
    shutil.copy(folder / "talks/talk.m4a", folder / "videos")
    (folder / "notes.txt").write_text("to do\n")
    (folder / "clip.json").write_text(block("docs/schema.md", "json", "properties"))
    (folder / "mine.yaml").write_text(block("docs/presets.md", "yaml", "street"))
    (folder / "conversation.yaml").write_text(block("docs/chat.md", "yaml", "role"))
    (folder / "clip.json").write_text(block("docs/schema.md", "json", "subject"))
    (folder / "requests.jsonl").write_text(block("docs/requests.md", "", '"id"'))
