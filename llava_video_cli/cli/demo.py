"""`llvid demo`: a short clip, the demo checkpoint's answers about it, and how to continue with a real one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..errors import LlvidError, MediaError, UsageError
from ..preset import Preset
from ..system.files import whole_file
from . import console
from .answer import answer_all
from .options import FrameFlags, ModelFlags, OutputFlags, PresetFlag, TextFlags, option
from .settings import settle

if TYPE_CHECKING:
    from ..demo.world import Scene

_QUESTIONS = (
    "What happens in this video?",
    "What shape is it?",
    "What color is it at the start?",
    "Which way does it move?",
    "Does the color change?",
)
_LARGEST_DIFFERENCE = 1.0  # of the values of pixels, which go to 255: as one clip encoded twice
_NEXT = """
These answers came from the demo checkpoint that is part of llvid. It knows moving coloured shapes and nothing else.
Ask it about the clip:      llvid ask {clip} "What color is it at the end?" -m demo
See what the model sees:    llvid frames {clip} -p demo -o sheet.png
Ask a real checkpoint:      llvid ask your-video.mp4 "What happens in this video?"
                            (downloads {model}, 14 GB; `llvid presets` lists others)
"""


HELP = """Write a short clip and ask the included demo checkpoint about it: no download, no GPU.

The checkpoint knows only one coloured shape on a dark background, which moves or stays still, and may change
its colour.

Example:

    llvid demo
"""


def demo(
    *,
    to: Annotated[
        str | None,
        option("File for the clip [default: llvid-demo.mp4 in the current folder].", "--output", "-o", metavar="PATH"),
    ] = None,
    output: OutputFlags,
) -> None:
    """Make the clip, ask about it, and show the next steps."""
    from ..demo.world import CODECS, write_clip

    clip = Path(to or "llvid-demo.mp4")
    if clip.suffix not in CODECS:
        raise UsageError(f"{clip} must end in {', '.join(CODECS)}")
    with console.progress(output.quiet) as progress:
        progress.say("generating a clip")
        with whole_file(clip) as temporary:
            write_clip(temporary, scene())
            if clip.exists() and not _are_alike(clip, temporary):
                raise LlvidError(f"{clip} exists and has other content", "choose another name with -o")
    output.note(f"wrote {clip}")
    settings = settle(PresetFlag("demo"), ModelFlags(), FrameFlags(), TextFlags())
    answer_all([str(clip)], _QUESTIONS, settings, output, show_questions=True)
    if not output.quiet:
        lines = _NEXT.format(clip=shlex.quote(str(clip)), model=Preset.model)
        console.stderr.print(console.shown(lines.rstrip("\n")))


def _are_alike(clip: Path, other: Path) -> bool:
    """Whether two clips show the same; encoders may round differently in one process or another."""
    import numpy as np

    from .. import Sampling, read_frames

    if clip.read_bytes() == other.read_bytes():
        return True
    try:
        one, two = (read_frames(path, Sampling(frames=8)).images.astype(np.int16) for path in (clip, other))
    except MediaError:
        return False
    return one.shape == two.shape and bool(np.abs(one - two).mean() < _LARGEST_DIFFERENCE)


def scene() -> Scene:
    """A yellow triangle that moves right and turns blue; always the same clip."""
    from ..demo.world import Scene

    return Scene(
        width=480, height=480, frames_per_second=25, duration_seconds=4.0,
        shape="triangle", color_start="yellow", color_end="blue", direction="right",
        shade_start=(228, 204, 48), shade_end=(45, 80, 220), background=(24, 26, 34),
        x=0.28, y=0.55, radius=0.17, travel=0.44, change_at=0.5,
        blur=0.004, noise=3.0, compression=0.3, seed=1,
    )  # fmt: skip
