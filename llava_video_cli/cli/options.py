"""The options that commands share, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from ..model import Attention, DType, PoolMode, Quantize, Send
from ..video.sampling import Mode
from . import console

Result = TypeVar("Result")

_MODEL, _FRAMES, _TEXT, _RUN, _CLUSTER, _ALL = "Model", "Frames", "Text", "Long runs", "Cluster", "General"


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


@dataclass(frozen=True)
class ModelFlags:
    """Which checkpoint, and how it is loaded; None where the user set nothing."""

    model: Annotated[
        str | None,
        _option(
            "--model",
            "-m",
            panel=_MODEL,
            envvar="LLVID_MODEL",
            metavar="NAME",
            help="Hub id, checkpoint folder, `demo`, or `random:7B` (random weights).",
        ),
    ] = None
    revision: Annotated[
        str | None, _option("--revision", panel=_MODEL, metavar="REV", help="Branch, tag or commit on the hub.")
    ] = None
    quantize: Annotated[
        Quantize | None,
        _option(
            "--quantize",
            panel=_MODEL,
            help="Language model in 8 or 4 bits (bitsandbytes) [default: auto, the most precise that fits].",
        ),
    ] = None  # fmt: skip
    dtype: Annotated[
        DType | None, _option("--dtype", panel=_MODEL, help="Precision of the weights [default: auto].")
    ] = None
    device: Annotated[
        str | None,
        _option("--device", panel=_MODEL, metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps [default: auto]."),
    ] = None
    attention: Annotated[
        Attention | None, _option("--attention", panel=_MODEL, help="Attention kernel [default: auto].")
    ] = None
    rope_factor: Annotated[
        str | None,
        _option(
            "--rope-factor", panel=_MODEL, metavar="auto|N",
            help="Stretch the context to N times its trained length: more frames fit, answers are slightly worse. "
            "auto: only as much as the frames need [default: the checkpoint's].",
        ),
    ] = None  # fmt: skip
    pool_stride: Annotated[
        int | None,
        _option(
            "--pool-stride", panel=_MODEL, metavar="2|3|4|8",
            help="Pool N x N patches into a token: 144, 64, 36 or 9 tokens per frame [default: the checkpoint's].",
        ),
    ] = None  # fmt: skip
    pool_mode: Annotated[
        PoolMode | None,
        _option("--pool-mode", panel=_MODEL, help="How patches are pooled [default: the checkpoint's]."),
    ] = None
    no_prefix_reuse: Annotated[
        bool, _option("--no-prefix-reuse", panel=_MODEL, help="Do not reuse the KV cache of earlier prompts.")
    ] = False


@dataclass(frozen=True)
class AnyModelFlags(ModelFlags):
    """A checkpoint on this machine, or a model behind a server."""

    server: Annotated[
        list[str] | None,
        _option(
            "--server", panel=_MODEL, envvar="LLVID_SERVER", metavar="URL",
            help="Use a model behind an OpenAI-compatible server. Several servers share a folder's work: repeat the "
            "option, or put commas between the URLs. LLVID_API_KEY holds the key.",
        ),
    ] = None  # fmt: skip
    send: Annotated[
        Send | None,
        _option(
            "--send", panel=_MODEL, help="What is sent to a server: the frames, or the whole file [default: frames]."
        ),
    ] = None

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses, one by one."""
        return tuple(url for value in self.server or () for part in value.split(",") if (url := part.strip()))


@dataclass(frozen=True)
class FrameFlags:
    """Which frames of a video; None where the user set nothing."""

    frames: Annotated[
        int | None,
        _option("--frames", "-n", panel=_FRAMES, metavar="N", help="Number of frames [default: the preset's]."),
    ] = None
    fps: Annotated[
        float | None,
        _option("--fps", panel=_FRAMES, metavar="F", help="Frames per second of video, instead of --frames."),
    ] = None
    start: Annotated[
        str | None,
        _option(
            "--start", panel=_FRAMES, metavar="TIME", help="Where the part to watch begins: seconds or [HH:]MM:SS."
        ),
    ] = None
    end: Annotated[
        str | None, _option("--end", panel=_FRAMES, metavar="TIME", help="Where it ends: seconds or [HH:]MM:SS.")
    ] = None
    sampling: Annotated[
        Mode | None,
        _option(
            "--sampling",
            panel=_FRAMES,
            help="uniform; endpoints (includes the first and last frame); keyframes (fast) [default: uniform].",
        ),
    ] = None


@dataclass(frozen=True)
class TextFlags:
    """The prompt, and how it is answered; None where the user set nothing."""

    system: Annotated[
        str | None, _option("--system", panel=_TEXT, metavar="TEXT", help="System prompt, before the conversation.")
    ] = None
    timestamps: Annotated[
        bool | None,
        _option(
            "--timestamps/--no-timestamps",
            panel=_TEXT,
            help="Tell the model the length of a video and the times of its frames [default: off].",
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        _option("--max-new-tokens", panel=_TEXT, metavar="N", help="Longest answer, in tokens [default: 512]."),
    ] = None
    temperature: Annotated[
        float | None,
        _option("--temperature", panel=_TEXT, metavar="T", help="0 is greedy; higher values vary more [default: 0]."),
    ] = None
    top_p: Annotated[
        float | None,
        _option(
            "--top-p",
            panel=_TEXT,
            metavar="P",
            help="Sample from the likeliest tokens, up to this total probability [default: 1].",
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        _option(
            "--repetition-penalty",
            panel=_TEXT,
            metavar="R",
            help="A value above 1 makes repetition less likely [default: 1].",
        ),
    ] = None
    seed: Annotated[
        int | None, _option("--seed", panel=_TEXT, metavar="N", help="Makes a sampled answer repeatable.")
    ] = None


@dataclass(frozen=True)
class SpeechFlag:
    """What is spoken in a video; None where the user set nothing."""

    subtitles: Annotated[
        str | None,
        _option(
            "--subtitles", panel=_TEXT, metavar="FILE",
            help="Give the model the subtitles in a .srt, .vtt or .ass file; `auto` takes the file beside the video.",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class PresetFlag:
    """Which preset; None where the user set nothing."""

    preset: Annotated[
        str | None,
        _option(
            "--preset",
            "-p",
            panel=_ALL,
            envvar="LLVID_PRESET",
            metavar="NAME",
            help="Name or path of a preset; `llvid presets` lists them.",
        ),
    ] = None


@dataclass(frozen=True)
class RunFlags:
    """How a long run is paced, and whether it resumes."""

    batch_size: Annotated[
        int | None,
        _option(
            "--batch-size", panel=_RUN, min=1, metavar="N",
            help="How many answers are generated together [default: measured during the run].",
        ),
    ] = None  # fmt: skip
    timeout: Annotated[
        float,
        _option(
            "--timeout", panel=_RUN, min=0.1, metavar="SECONDS",
            help="Skip a video that takes longer than this to read [default: 900].",
        ),
    ] = 900.0  # fmt: skip
    overwrite: Annotated[
        bool, _option("--overwrite", panel=_RUN, help="Start again instead of resuming; on a terminal, ask first.")
    ] = False


@dataclass(frozen=True)
class ClusterFlags:
    """Whether a long run takes place on a cluster; None where the user set nothing."""

    ray: Annotated[
        str | None,
        _option(
            "--ray", panel=_CLUSTER, metavar="auto|local",
            help="Run on Ray: auto is the cluster that this machine belongs to, local a new one on it.",
        ),
    ] = None  # fmt: skip
    gpus: Annotated[
        str | None,
        _option(
            "--gpus", panel=_CLUSTER, metavar="N|MIN-MAX",
            help="Number of workers that hold the model, one GPU each if there are GPUs [default: all GPUs, else 1].",
        ),
    ] = None  # fmt: skip
    readers: Annotated[
        int | None,
        _option(
            "--readers", panel=_CLUSTER, min=1, metavar="N",
            help="How many videos are read at a time, one core each [default: all other cores].",
        ),
    ] = None  # fmt: skip
    dry_run: Annotated[
        bool,
        _option(
            "--dry-run",
            panel=_CLUSTER,
            help="Only show what would be done, with an estimate of its cost from a measured sample.",
        ),
    ] = False


@dataclass(frozen=True)
class QuietFlag:
    """How much a command writes."""

    quiet: Annotated[bool, _option("--quiet", "-q", panel=_ALL, help="Write nothing but errors to stderr.")] = False


@dataclass(frozen=True)
class OutputFlags:
    """What a command writes."""

    json: Annotated[bool, _option("--json", panel=_ALL, help="Write JSON lines instead of text.")] = False
    quiet: Annotated[bool, _option("--quiet", "-q", panel=_ALL, help="Write nothing but errors to stderr.")] = False

    def note(self, *lines: str) -> None:
        """Write lines to stderr, unless --quiet."""
        for line in lines if not self.quiet else ():
            console.note(line)


def takes(**groups: type) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Give a command the options of flag dataclasses; it gets each group as one value under its keyword."""

    def decorate(command: Callable[..., Result]) -> Callable[..., Result]:
        hints = get_type_hints(command, include_extras=True)
        parameters = [
            parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(command).parameters.items()
            if name not in groups
        ]
        for group in groups.values():
            kinds = get_type_hints(group, include_extras=True)
            parameters += [
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kinds[field.name]
                )
                for field in fields(group)
            ]

        @wraps(command)
        def run(**values: Any) -> Result:
            for keyword, group in groups.items():
                values[keyword] = group(**{field.name: values.pop(field.name) for field in fields(group)})
            return command(**values)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate
