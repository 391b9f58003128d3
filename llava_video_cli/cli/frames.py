"""`llvid frames`: the frames that a model would see, as a contact sheet or as files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..checkpoint.frame_input import frame_input
from ..errors import LlvidError, MediaError, UsageError
from ..runs.media import check_media
from ..runs.record import CutNote, media_values
from ..system.files import short_stem, whole_file
from ..video import Frames, read_frames
from ..video.files import typed_name
from . import console
from .download import typed_media
from .options import CheckpointFlags, FrameFlags, ModelFlags, OutputFlags, PresetFlag, TextFlags, flag
from .settings import Settings, check_used_flags, settle

if TYPE_CHECKING:
    from PIL.Image import Image

HELP = """Save the frames that the model would see; what it does not get of them is shaded.

Examples:

    llvid frames video.mp4 -o sheet.png

    llvid frames video.mp4 -n 16 --start 1:00 --end 2:30 -o folder/

    llvid frames film.mp4 --sampling scenes

    llvid frames video.mp4 -m demo --fit pad
"""
_MOST_SHOTS = 40  # that are listed
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class FramesFlags:
    """Where the frames go."""

    to: str | None = flag(
        None,
        "An image file for a contact sheet, or a folder (ending in /) for one PNG per frame "
        "[default: VIDEO-frames.png in the current folder].",
        *("--output", "-o"),
        metavar="PATH",
    )
    overwrite: bool = flag(None, "Replace existing files.", "--overwrite", default=False)


def frames(
    video: Annotated[
        str,
        typer.Argument(
            metavar="VIDEO",
            show_default=False,
            help="A video: a file, a folder or a pattern of its pictures, `-` for stdin, or a URL.",
        ),
    ],
    *,
    own: FramesFlags,
    model: CheckpointFlags,
    flags: FrameFlags,
    preset: PresetFlag,
    output: OutputFlags,
) -> None:
    """Read the frames, write them, and print where they are."""
    settings = settle(preset, ModelFlags(model.model, model.revision), flags, TextFlags())
    check_used_flags(flags, settings.preset)
    with typed_media([video], output, "frames -") as paths:
        _save_frames(paths[0], own, settings, output)


def sheet_name(path: str) -> str:
    """Return how the file of a video's contact sheet begins: its name, without what hides a file or is a pattern."""
    return short_stem(path).strip(".-*?[]") or "video"


def _save_frames(video: str, own: FramesFlags, settings: Settings, output: OutputFlags) -> None:
    seen = frame_input(settings.model, settings.revision)
    if check_media([video]) != [None]:
        raise MediaError(f"{video} is a picture, not a video")
    # In the current folder, whatever the video's path is.
    target = own.to if own.to is not None else f"{sheet_name(typed_name(video))}-frames.png"
    into_folder = target.endswith(("/", os.sep)) or Path(target).is_dir()
    if not into_folder:
        if Path(target).suffix.lower() not in _SUFFIXES:
            raise UsageError(f"{target} must end in {', '.join(_SUFFIXES)}, or in / for a folder")
        _check_new(Path(target), own.overwrite)
    with console.progress(output.quiet) as progress:
        whole = read_frames(video, settings.preset.sampling, progress=progress.watch("reading frames"))
    read = replace(whole, input=seen)
    values = media_values(video, read)
    output.note(*read.notes, *_shot_lines(read))
    size = seen and f"the model gets {seen.size_of(read.info.width, read.info.height)}"
    unknown = f"{settings.model} is not on this machine, so llvid can't tell what it sees of a frame: nothing is shaded"
    output.note(size or unknown, *CutNote().lines(values["frames"]))
    if into_folder:
        written = _write_files(read, Path(target), own.overwrite)
        if others := set(Path(target).glob("[0-9]*_*s.png")) - set(written):
            frames = "1 frame" if len(others) == 1 else f"{len(others)} frames"
            output.note(f"{target} has {frames} of another run, too")
    else:
        from ..video.contact_sheet import contact_sheet

        written = [Path(target)]
        save(contact_sheet(read), written[0])
    if output.json:
        console.write_json({"video": typed_name(video), **values, "files": [str(path) for path in written]})
    else:
        console.write(f"{target if into_folder else written[0]}\n")


def _shot_lines(read: Frames) -> list[str]:
    """Return a line for each shot: its times, and how many of the frames are from it."""
    from ..video.contact_sheet import time_labels

    labels = time_labels(tuple(seconds for shot in read.shots for seconds in shot)) if read.shots else []
    lines = []
    for number, (start, end) in enumerate(read.shots, start=1):
        count = sum(start <= seconds < end for seconds in read.times_seconds)
        times = f"{labels[2 * number - 2]}-{labels[2 * number - 1]}"
        lines.append(f"shot {number}  {times}  {count} frame{'' if count == 1 else 's'}")
    more = len(lines) - _MOST_SHOTS
    return lines if more <= 0 else [*lines[:_MOST_SHOTS], f"and {more} more: --json has all of them"]


def _check_new(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise LlvidError(f"{path} exists", "use --overwrite to replace it")


def _write_files(read: Frames, folder: Path, overwrite: bool) -> list[Path]:
    """Write `0001_12.480s.png` and so on: number, and time of the frame in seconds."""
    from PIL import Image as Pillow

    paths = [folder / f"{number:04d}_{seconds:.3f}s.png" for number, seconds in enumerate(read.times_seconds, start=1)]
    for path in paths:
        _check_new(path, overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LlvidError(f"can't create the folder {folder}: {error.strerror}", "choose another path with -o") from None
    fit = read.sampling.fit
    for path, image in zip(paths, read.images, strict=True):
        save(Pillow.fromarray(image if read.input is None else read.input.fitted(image, fit)), path)
    return paths


def save(picture: Image, path: Path) -> None:
    """Write a picture completely or not at all, in the format of the path's ending."""
    from PIL import Image as Pillow

    with whole_file(path) as temporary, temporary.open("wb") as file:
        picture.save(file, format=Pillow.registered_extensions()[path.suffix.lower()])
