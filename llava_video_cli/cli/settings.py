"""The settings of a command: options override the preset, and the preset overrides the defaults."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast, get_args

from ..checkpoint.adapter import adapter_key
from ..checkpoint.random_weights import PREFIX
from ..conversation import ANY_OBJECT, Generation
from ..errors import MediaError, UsageError
from ..inference import constraints
from ..model import Loading, Model, Quantize
from ..preset import Preset, load_preset, model_of, read_schema
from ..prompt.budget import Budget
from ..prompt.subtitles import Subtitles, find_subtitles, read_subtitles, read_track
from ..runs.conversation_file import Conversation
from ..runs.media import check_media
from ..runs.preflight import ModelSource
from ..speech.transcripts import check_speech
from ..validation import is_unicode, shape_of
from ..video import check_scenes
from ..video.sampling import SCENE_OPTIONS, Every, Sampling, parse_every, parse_time
from .options import AnyModelFlags, FrameFlags, HearingFlags, ModelFlags, PresetFlag, SpeechFlag, TextFlags

if TYPE_CHECKING:
    from ..remote.remote_model import RemoteModel


@dataclass(frozen=True)
class Settings:
    """What a command was asked to do.

    `drawn_seed` is a random seed, for sampling if the user set none. With `rope_auto`, the RoPE factor is chosen
    from the requests.
    """

    preset: Preset
    loading: Loading
    revision: str | None
    drawn_seed: int | None = None
    rope_auto: bool = False
    remote: RemoteModel | None = None

    @property
    def model(self) -> str:
        """The model's name."""
        return self.preset.model

    @property
    def opening(self) -> str:
        """What `open` does, for the spinner."""
        return f"loading {self.model}" if self.remote is None else f"connecting to {self.remote.settings['server']}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the model that answers."""
        if self.remote is not None:
            return self.remote.notes
        return ("random weights: the answers are meaningless",) if self.model.startswith(PREFIX) else ()

    @property
    def source(self) -> ModelSource:
        """Which model answers, for a `ModelLoader`."""
        return ModelSource(self.model, self.loading, self.revision, self.rope_auto, self.remote)

    @property
    def undrawn_preset(self) -> Preset:
        """The preset without a seed that the user did not set: a resumable run chooses its own."""
        return replace(self.preset, generation=self.preset.generation.asked(self.drawn_seed))

    def source_of(self, flags: ModelFlags) -> ModelSource:
        """Return which model answers, with the user's options for its weights: a part of the keys of records."""
        names = ("revision", "dtype", "rope_factor", "pool_stride", "pool_mode")  # which change the answers
        adapter = adapter_key(self.loading.adapter)
        asked = _without_none(**{name: getattr(flags, name) for name in names}, adapter=adapter)
        return replace(self.source, asked=tuple(asked.items()))

    def open(self) -> Model:
        """Return the model, loaded here or behind a server."""
        return self.resolved().source.open()

    def resolved(self) -> Settings:
        """Return the same with the RoPE factor for one video, where the requests are unknown."""
        if not self.rope_auto:
            return self
        from ..inference.loader import early_counter

        counter = early_counter(self.model, self.loading, self.revision, rope_auto=True)
        assert counter is not None, "others are refused"
        media = self.preset.sampling.frames * counter.checkpoint.rates.frame_tokens
        budget = Budget(media, self.preset.generation.max_new_tokens, counter.checkpoint.context_tokens, (media,))
        factor = counter.stretched([budget]).checkpoint.rope_factor
        return replace(self, loading=replace(self.loading, rope_factor=factor), rope_auto=False)


def settle_preset(flag: PresetFlag, model: str | None = None) -> Preset:
    """Return the preset of --preset; without it, `demo` for the demo checkpoint, else `default`."""
    return load_preset(flag.preset or ("demo" if model == "demo" else "default"))


def settle_sampling(preset: Preset, flags: FrameFlags) -> Sampling:
    """Return the preset's sampling with the user's flags over it."""
    if flags.frames is not None and flags.fps is not None:
        raise UsageError(
            "use --frames or --fps, not both", "with --fps, the number of frames depends on the video's length"
        )
    times = {"start_seconds": flags.start, "end_seconds": flags.end}
    changes: dict[str, Any] = {name: parse_time(text) for name, text in times.items() if text is not None}
    names = ("fit", "skip_static", "source_fps", *SCENE_OPTIONS)
    changes |= _without_none(
        frames=flags.frames, fps=flags.fps, mode=flags.sampling, **{name: getattr(flags, name) for name in names}
    )
    if flags.frames is not None:
        changes["fps"] = None
    sampling = replace(preset.sampling, **changes)
    if flags.scene_min_content is not None and sampling.scene_detector != "adaptive":
        raise UsageError("--scene-min-content is for --scene-detector adaptive only")
    check_scenes(sampling)
    return sampling


def settle_speech(sampling: Sampling, flags: TextFlags) -> Sampling:
    """Return a sampling with the user's flags for speech over it; raises `LlvidError` where there can be none."""
    sampling = replace(sampling, **_without_none(speech=flags.speech, speech_model=flags.speech_model))
    check_speech(sampling)
    return sampling


def check_used_flags(
    frames: FrameFlags, preset: Preset, every: str | None = None, hearing: HearingFlags | None = None
) -> None:
    """Raise `UsageError` for options of cuts or of speech where there are none, which nothing later can change."""
    if hearing and hearing.speech_model is not None and not preset.sampling.speech:
        raise UsageError("--speech-model means nothing without speech", "add --speech")
    if preset.sampling.mode == "scenes" or every == "scene":
        return
    for name in SCENE_OPTIONS:
        if getattr(frames, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} means nothing where no cuts are looked for", "add --sampling scenes")


def settle_every(text: str | None, name: str, preset: Preset) -> Every | None:
    """Return the length of the windows; raises `UsageError`, and `LlvidError` where shots can't be found."""
    every = None if text is None else parse_every(text, name)
    check_scenes(preset.sampling, every)
    return every


def settle(
    preset_flag: PresetFlag,
    model: ModelFlags,
    frames: FrameFlags,
    text: TextFlags,
    written: Conversation | None = None,
) -> Settings:
    """Return the settings of a command; raises `UsageError` for values that make no sense.

    The settings in a conversation's file (`written`) override the default preset, and --preset overrides them. With a
    server, the model is that of --model, or else the server's first one; the preset's model is ignored.
    """
    remote = _remote(model)
    name = remote.name if remote is not None else model.model and model_of(model.model)
    if written is None or preset_flag.preset:
        preset = settle_preset(preset_flag, name)
    else:
        preset = written.over(settle_preset(preset_flag, name or written.model))
    if written is not None and written.system:
        preset = replace(preset, system=written.system)
    given = {name: getattr(text, name, None) for name in shape_of(Generation)}
    given |= {"choices": text.all_choices, "schema": _schema(text)}
    generation, drawn_seed = replace(preset.generation, **_without_none(**given)), None
    if generation.temperature > 0 and generation.seed is None:
        drawn_seed = secrets.randbits(32)
        generation = replace(generation, seed=drawn_seed)  # here, so that the record can name it
    preset = replace(
        preset,
        sampling=settle_speech(settle_sampling(preset, frames), text),
        generation=generation,
        **_without_none(model=name, quantize=model.quantize, adapter=model.adapter),
        **_without_none(system=text.system, timestamps=text.timestamps),
    )
    if remote is not None and preset.adapter is not None:
        raise UsageError(
            f"preset {preset.name} has an adapter, which can't be used with --server",
            "the server decides how its model is loaded",
        )
    if remote is not None:  # so that its records count as those of the same weights loaded here
        remote.check(generation)
        quantize = remote.quantize if remote.quantize in get_args(Quantize) else "none"
        preset = replace(preset, quantize=cast("Quantize", quantize))
    else:
        constraints.check(generation)
    check_text(preset.system or "", "the system prompt")
    names = ("dtype", "device", "attention", "pool_stride", "pool_mode")
    loading = Loading(
        quantize=preset.quantize,
        adapter=preset.adapter,
        frames=preset.sampling.frames if preset.sampling.fps is None else None,
        prefix_reuse=not model.no_prefix_reuse,
        constrained=generation.is_constrained,
        **_without_none(**{name: getattr(model, name) for name in names}),
    )
    rope_auto = model.rope_factor == "auto"
    if model.rope_factor is not None and not rope_auto:
        try:
            loading = replace(loading, rope_factor=float(model.rope_factor))
        except ValueError:
            raise UsageError(f"--rope-factor must be auto or a number, got {model.rope_factor!r}") from None
    return Settings(preset, loading, model.revision, drawn_seed, rope_auto, remote)


def settle_subtitles(flag: SpeechFlag, paths: Sequence[str], preset: Preset) -> Subtitles | None:
    """Return the subtitles that --subtitles asks for; raises `UsageError` or `MediaError`."""
    if flag.subtitles is None:
        return None
    if not flag.subtitles.strip():
        raise UsageError("--subtitles is empty", "name a file, or write auto or track")
    if preset.sampling.speech:
        raise UsageError("use --subtitles or --speech, not both", "--no-speech turns off what a preset says")
    if len(paths) != 1:
        raise UsageError("--subtitles needs exactly one video")
    if check_media(paths) != [None]:
        raise MediaError(f"{paths[0]} is a picture, which has no subtitles")
    kind, _, language = flag.subtitles.partition(":")
    if flag.subtitles == "auto":
        return find_subtitles(paths[0])
    if kind != "track":
        return read_subtitles(flag.subtitles)
    if (track := read_track(paths[0], language or None)) is None:
        raise MediaError(f"{paths[0]}: no subtitle track in it", "--subtitles FILE uses a file")
    return track


def _remote(flags: ModelFlags) -> RemoteModel | None:
    """Return the model of --server, or None without that option; raises `UsageError` or `ServerError`."""
    servers = flags.servers if isinstance(flags, AnyModelFlags) else ()
    if not servers:
        if isinstance(flags, AnyModelFlags) and (flags.send or flags.server):
            raise UsageError("--send needs --server" if flags.send else "--server is empty")
        return None
    for field in fields(ModelFlags):
        if field.name != "model" and getattr(flags, field.name) != field.default:
            option = f"--{field.name.replace('_', '-')}"
            raise UsageError(f"{option} can't be used with --server", "the server decides how its model is loaded")
    assert isinstance(flags, AnyModelFlags)
    from ..remote import open_remote

    return open_remote(servers, flags.model, send=flags.send or "frames", key=os.environ.get("LLVID_API_KEY"))


def _schema(text: TextFlags) -> str | None:
    """Return the schema that the flags ask for; raises `UsageError`."""
    if text.schema is None:
        return ANY_OBJECT if text.json_object else None
    if text.json_object:
        raise UsageError("use --schema or --json-object, not both")
    if str(text.schema).lstrip().startswith("{"):
        raise UsageError("--schema takes a file, not the schema itself", "save it, and type --schema schema.json")
    return read_schema(text.schema)


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def check_text(text: str, what: str) -> None:
    """Raise `UsageError` for text that was not UTF-8 on the command line or in stdin."""
    if not is_unicode(text):
        raise UsageError(f"{what} is not UTF-8 text")
