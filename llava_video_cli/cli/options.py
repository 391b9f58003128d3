"""The options that commands share, declared once: a command takes them as flag dataclasses."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from ..errors import UsageError
from ..model import Attention, DType, PoolMode, Quantize, Send
from ..video.fit import Fit
from ..video.sampling import Detector, Mode
from . import console
from .completion import models_for, presets_for

Result = TypeVar("Result")
_OUTPUTS = {"to": "--output", "output_dir": "--output-dir", "sheets": "--sheets", "cuts": "--cuts"}


def option(help: str, *names: str, **more: Any) -> Any:
    """Return an option of a command, named as its parameter if there are no `names`."""
    return typer.Option(*names, help=help, **{"show_default": False, **more})


def flag(panel: str | None, help: str, *names: str, default: Any = None, **more: Any) -> Any:
    """Return the field of a flag dataclass. An option of several commands has a panel; --help shows a default once."""
    shows = bool(default) and "[default" not in help
    return field(
        default=default,
        metadata={"option": option(help, *names, rich_help_panel=panel, show_default=shows, **more)},
    )


_model, _frames, _text = partial(flag, "Model"), partial(flag, "Frames"), partial(flag, "Text")
_run, _cluster, _general = partial(flag, "Long runs"), partial(flag, "Cluster"), partial(flag, "General")


@dataclass(frozen=True)
class CheckpointFlags:
    """Which checkpoint; None if the user did not set it."""

    model: str | None = _model(
        "Hub id of a video model, `7b`, `34b`, a preset's name (its model only), checkpoint folder, `demo`, or "
        "`random:7B` for random weights.",
        *("--model", "-m"),
        envvar="LLVID_MODEL",
        autocompletion=models_for,
        metavar="NAME",
    )
    revision: str | None = _model("Branch, tag or commit on the hub.", metavar="REV")


@dataclass(frozen=True)
class ModelFlags(CheckpointFlags):
    """Which checkpoint, and how it is loaded; None if the user did not set it."""

    quantize: Quantize | None = _model(
        "Load the language model in 8 or 4 bits (bitsandbytes) [default: auto, 4 bits if 16 do not fit in memory]."
    )
    dtype: DType | None = _model("Precision of the weights [default: auto].")
    device: str | None = _model("auto, cpu, cuda, cuda:N or mps [default: auto].", metavar="DEVICE")
    attention: Attention | None = _model("Attention kernel [default: auto].")
    rope_factor: str | None = _model(
        "LLaVA-NeXT-Video only: stretch the context to N times its trained length. More frames fit, answers are "
        "slightly worse. With auto, only as much as the frames need [default: the checkpoint's].",
        metavar="auto|N",
    )
    pool_stride: int | None = _model(
        "LLaVA-NeXT-Video only: pool N x N patches into one token, which makes 144, 64, 36 or 9 tokens per frame "
        "[default: the checkpoint's].",
        metavar="2|3|4|8",
    )
    pool_mode: PoolMode | None = _model("LLaVA-NeXT-Video only: how patches are pooled [default: the checkpoint's].")
    adapter: str | None = _model(
        "Apply a LoRA adapter of peft: its folder, or its hub id (owner/name, owner/name@revision).", metavar="PATH"
    )
    no_prefix_reuse: bool = _model("Do not reuse the KV cache of earlier prompts.", "--no-prefix-reuse", default=False)


@dataclass(frozen=True)
class AnyModelFlags(ModelFlags):
    """A checkpoint on this machine, or a model behind a server."""

    server: list[str] | None = _model(
        "Use the model of an OpenAI-compatible server. To share a folder's work among several servers, repeat the "
        "option, or separate the URLs with commas. The API key is read from LLVID_API_KEY.",
        envvar="LLVID_SERVER",
        metavar="URL",
    )
    send: Send | None = _model("What to send to the server: the chosen frames, or the whole file [default: frames].")

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses, one by one."""
        return tuple(url for value in self.server or () for part in value.split(",") if (url := part.strip()))


@dataclass(frozen=True)
class FrameFlags:
    """Which frames of a video; None if the user did not set it."""

    frames: int | None = _frames("Number of frames [default: the preset's].", "--frames", "-n", metavar="N")
    fps: float | None = _frames("Frames per second of video, instead of --frames.", metavar="F")
    start: str | None = _frames("Start of the part to use: seconds, 1m30s or [HH:]MM:SS.", metavar="TIME")
    end: str | None = _frames("End of the part to use: seconds, 1m30s or [HH:]MM:SS.", metavar="TIME")
    sampling: Mode | None = _frames(
        "How frames are chosen: uniform (evenly spaced), endpoints (evenly spaced, with the first and last frame), "
        "keyframes (only those, which is fast), or scenes (spread over the shots, none at a cut) [default: uniform]."
    )
    fit: Fit | None = _frames(
        "How a frame gets the model's shape: auto (the model's own way: LLaVA-NeXT-Video keeps the middle), crop "
        "(keep the middle), pad (add borders), or stretch (squeeze) [default: auto]."
    )
    skip_static: bool | None = _frames(
        "Leave out frames that do not differ from the last one [default: off].", "--skip-static/--no-skip-static"
    )
    source_fps: float | None = _frames(
        "How many pictures a second were taken, where pictures are the frames of a video [default: 1].", metavar="F"
    )
    scene_detector: Detector | None = _frames("How PySceneDetect finds the cuts [default: adaptive].")
    scene_threshold: float | None = _frames(
        "The lowest score of a cut [default: adaptive 3, content 27].", min=0, metavar="T"
    )
    scene_min_content: float | None = _frames(
        "For adaptive, the lowest difference of the two frames [default: 15].", min=0, metavar="T"
    )
    scene_min_frames: int | None = _frames("The shortest shot, in frames [default: 15].", min=0, metavar="N")


@dataclass(frozen=True)
class HearingFlags:
    """Whether the model gets what is said in a video; None if the user did not set it."""

    speech: bool | None = _text(
        "Add what is said in the video to the prompt, transcribed on this machine [default: off].",
        "--speech/--no-speech",
    )
    speech_model: str | None = _text(
        "Whisper's name (tiny, base, small, medium, large-v3, turbo, ...), folder or hub id [default: small].",
        metavar="NAME",
    )


@dataclass(frozen=True)
class TextFlags(HearingFlags):
    """The prompt, and how it is answered; None if the user did not set it."""

    system: str | None = _text("System prompt [default: the preset's].", metavar="TEXT")
    timestamps: bool | None = _text(
        "Tell the model the length of a video and the times of its frames [default: off].",
        "--timestamps/--no-timestamps",
    )
    max_new_tokens: int | None = _text("Longest answer, in tokens [default: 512].", metavar="N")
    temperature: float | None = _text("0 is greedy; with higher values answers vary more [default: 0].", metavar="T")
    top_p: float | None = _text(
        "Sample only from the most likely tokens, up to this total probability [default: 1].", metavar="P"
    )
    top_k: int | None = _text("Sample only from the K most likely tokens [default: 0, all].", metavar="K")
    min_p: float | None = _text(
        "Sample only from tokens with at least this share of the likeliest one's probability [default: 0].", metavar="P"
    )
    repetition_penalty: float | None = _text("A value above 1 makes repetition less likely [default: 1].", metavar="R")
    presence_penalty: float | None = _text(
        "Lower the logit of each token that is in the answer by P [default: 0].", metavar="P"
    )
    frequency_penalty: float | None = _text(
        "Lower the logit of each token by P for each time that it is in the answer [default: 0].", metavar="P"
    )
    choices: str | None = _text(
        "The answer is the likeliest of these texts, separated by commas; --json has the probability of each.",
        metavar="A,B,...",
    )
    choice: list[str] | None = _text("One more choice, which may have commas; repeatable.", "--choice", metavar="TEXT")
    length_normalized: bool | None = _text(
        "Compare choices by the mean over their tokens, not by the sum [default: off].",
        "--length-normalized/--no-length-normalized",
    )
    prefill: str | None = _text("Begin the answer with this text.", metavar="TEXT")
    seed: int | None = _text("Random seed, which makes a sampled answer repeatable [default: a new one].", metavar="N")
    show_thinking: bool | None = _text(
        "Show what the model thinks before it answers (<think>...</think>) [default: off].",
        "--show-thinking/--no-show-thinking",
    )
    schema: Path | None = _text("Answer with JSON that fits this JSON schema.", metavar="FILE")
    json_object: bool = _text("Answer with a JSON object.", "--json-object", default=False)

    @property
    def all_choices(self) -> tuple[str, ...] | None:
        """Those of --choices, then those of --choice; None without either."""
        if self.choices is None and self.choice is None:
            return None
        listed = [part.strip() for part in self.choices.split(",")] if self.choices else []
        return (*listed, *(self.choice or ()))


@dataclass(frozen=True)
class SpeechFlag:
    """What is spoken in a video; None if the user did not set it."""

    subtitles: str | None = _text(
        "Add the subtitles of a .srt, .vtt or .ass file to the prompt; `track` or `track:eng` uses a track in the "
        "video (of that language), `auto` the file next to it, else a track.",
        metavar="FILE|track[:LANGUAGE]|auto",
    )


@dataclass(frozen=True)
class PresetFlag:
    """Which preset; None if the user did not set it."""

    preset: str | None = _general(
        "Name or path of a preset; `llvid presets` lists them.",
        "--preset",
        "-p",
        envvar="LLVID_PRESET",
        metavar="NAME",
        autocompletion=presets_for,
    )


@dataclass(frozen=True)
class RunFlags:
    """How a long run is paced, and whether it resumes."""

    batch_size: int | None = _run(
        "Answers that are generated at the same time [default: as many as fit in memory].", min=1, metavar="N"
    )
    timeout: float = _run(
        "Skip a video that takes longer than this to read [default: 900].", default=900.0, min=0.1, metavar="SECONDS"
    )
    overwrite: bool = _run("Start over instead of resuming; on a terminal, ask first.", "--overwrite", default=False)


@dataclass(frozen=True)
class ClusterFlags:
    """Whether a long run takes place on a cluster; None if the user did not set it."""

    ray: str | None = _cluster(
        "Run on Ray: `auto` uses the cluster that this machine belongs to, `local` starts one on this machine.",
        metavar="auto|local",
    )
    gpus: str | None = _cluster(
        "Workers that load the model, each with a GPU if there are GPUs [default: one per GPU, or 1 without GPUs].",
        metavar="N|MIN-MAX",
    )
    readers: int | None = _cluster(
        "Videos that are read at the same time, one core each [default: all other cores].", min=1, metavar="N"
    )
    dry_run: bool = _cluster(
        "Only show what would be done, and how long it would take, measured on a sample.", "--dry-run", default=False
    )


@dataclass(frozen=True)
class QuietFlag:
    """How much a command writes."""

    quiet: bool = _general("Write nothing but errors to stderr.", "--quiet", "-q", default=False)

    def note(self, *lines: str) -> None:
        """Write lines to stderr, unless --quiet."""
        for line in lines if not self.quiet else ():
            console.note(line)


@dataclass(frozen=True)
class OutputFlags(QuietFlag):
    """What a command writes."""

    json: bool = _general("Write JSON lines instead of text.", "--json", default=False)

    def detail(self, *lines: str) -> None:
        """Write what was decided, where a command tells it."""


@dataclass(frozen=True)
class AnswerFlags(OutputFlags):
    """What a command that answers writes."""

    verbose: bool = _general("Say on stderr what was decided, and why.", "--verbose", "-v", default=False)

    def detail(self, *lines: str) -> None:
        """Write lines to stderr with --verbose."""
        if self.verbose:
            self.note(*lines)


def _check_finite(values: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that is no finite number: no comparison with a limit finds `nan`."""
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{name.replace('_', '-')} must be a finite number, got {value}")


def _check_outputs(values: Mapping[str, Any]) -> None:
    """Raise UsageError for an output without a name: as a path, it would be the current folder."""
    for name, option in _OUTPUTS.items():
        if values.get(name) == "":
            raise UsageError(f"the output has no name: {option} is empty")


def takes_flags(command: Callable[..., Result]) -> Callable[..., Callable[[], Result]]:
    """Return a function that takes the fields of a command's flag dataclasses as options, and returns the call."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    # `get_type_hints` of Python 3.10 hides an Annotated in an Optional where the default is None
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
        else:
            parameters.append(parameter)
    for group in groups.values():
        kinds = get_type_hints(group)
        parameters += [
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=each.default,
                annotation=Annotated[kinds[each.name], each.metadata["option"]],
            )
            for each in fields(group)
        ]

    @wraps(command)
    def parsed(**values: Any) -> Callable[[], Result]:
        _check_finite(values)
        _check_outputs(values)
        for keyword, group in groups.items():
            values[keyword] = group(**{each.name: values.pop(each.name) for each in fields(group)})
        return partial(command, **values)

    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return parsed
