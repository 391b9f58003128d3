"""Presets: a model and its settings under a name, in YAML files that are read strictly."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .checkpoint.config import PUBLISHED, looks_like_folder
from .conversation import ANY_OBJECT, Generation, Media, Request, Segment, Turn
from .errors import ModelError, UsageError, nearest
from .model import Quantize
from .prompt.subtitles import Count, LineCount, Subtitles, fitting, with_lines, with_speech
from .prompt.timestamps import request_of
from .system.files import config_folder, expanded
from .validation import InputError, placed, read_fields, read_file, read_json, read_yaml, schema_text, shape_of
from .video import Frames
from .video.sampling import SCENE_OPTIONS, Sampling, parse_time

_SUFFIX = ".yaml"
_SAMPLING, _GENERATION = Sampling(), Generation()
# Options of sampling whose names differ from those of their fields.
_OPTIONS = {"start": "start_seconds", "end": "end_seconds", "sampling": "mode"}
_TIMES = ("start_seconds", "end_seconds")
SAMPLING_OPTIONS = (
    *("frames", "fps", *_OPTIONS, "skip_static", "fit", "source_fps", "speech", "speech_model"),
    *SCENE_OPTIONS,
)


@dataclass(frozen=True)
class Preset:
    """The settings of a preset; `path` is its file.

    `licence` is that of the model. `memory_gb` is what it needs in 16 bits, or in those of `quantize`, with a prompt of
    its frames and its longest answer, as `estimate_memory` computes it. Both are for people; None if they are unknown.
    """

    name: str
    about: str
    model: str = "llava-hf/LLaVA-NeXT-Video-7B-hf"
    quantize: Quantize = "auto"
    adapter: str | None = None
    licence: str | None = None
    memory_gb: float | None = None
    prompt: str = "Describe the video."
    system: str | None = None
    timestamps: bool = False
    sampling: Sampling = _SAMPLING
    generation: Generation = _GENERATION
    path: Path | None = None

    def request(self, question: str, media: Sequence[Media], lines: Sequence[Segment] = (), spoken: int = 0) -> Request:
        """Return a question about media, with the settings of the preset.

        `lines` are of the video's subtitles, `spoken` is how many lines of the media's speech are used.
        """
        system = (Turn("system", self.system),) if self.system else ()
        turns = with_speech((*system, Turn("user", with_lines(question, lines), tuple(media))), spoken)
        return request_of(turns, self.generation, self.timestamps)

    def requests(
        self, questions: Sequence[str], media: Sequence[Media], subtitles: Subtitles | None, count: Count
    ) -> tuple[Sequence[Request], LineCount | None]:
        """Return questions about the same media, with as many lines of subtitles, or of speech, as fit each of them.

        `count` is `Model.budget`.
        """
        if subtitles is None or not isinstance(media[0], Frames):
            return fitting(media, lambda spoken: [self.request(q, media, (), spoken) for q in questions], count)
        return subtitles.requests(media[0], lambda lines: [self.request(q, media, lines) for q in questions], count)


def preset_folders() -> tuple[Path, ...]:
    """Return the folders of presets: the user's own, then the package's."""
    package = Path(__file__).parent
    shipped = package / "presets"  # in a wheel; an editable install finds them next to the package
    return config_folder() / "presets", shipped if shipped.is_dir() else package.parent / "presets"


def preset_files() -> dict[str, Path]:
    """Return the presets by name, sorted; the user's own replace the package's."""
    # of a home that this user may not search, as in many containers, a Path would raise
    folders = [folder for folder in reversed(preset_folders()) if os.path.isdir(folder)]  # noqa: PTH112
    files = {path.stem: path for folder in folders for path in sorted(folder.glob(f"*{_SUFFIX}"))}
    return dict(sorted(files.items()))


def load_preset(name: str) -> Preset:
    """Return the preset of a name, or of a path, which has a slash.

    A name never means a file in the current folder: that is `./name.yaml`. Raises `UsageError` for a preset that
    does not exist, or has a key or a value that is not understood.
    """
    is_path = os.sep in name or (os.altsep or os.sep) in name
    if is_path:
        return read_preset(expanded(name))
    files = preset_files()
    if name not in files:
        here = (f"./{file}" for file in (name, f"{name}.yaml", f"{name}.yml") if Path(file).is_file())
        hints = (f"for the file in this folder, write {file}" for file in here)
        hint = next(hints, None) or nearest(name, files) or f"the presets are {', '.join(files)}"
        raise UsageError(f"there is no preset {name!r}", hint)
    return read_preset(files[name])


def model_of(name: str) -> str:
    """Return the model that a name means: that of the preset of this name, `7b` and its kind, or the name itself.

    A folder that has a preset's name is `./name`. Raises `ModelError` for a word that means no model, and `UsageError`
    for a broken preset.
    """
    if "/" in name or name == "demo":
        return name
    files = preset_files()
    if name in files:
        return read_preset(files[name]).model
    if name.lower() in PUBLISHED:
        return PUBLISHED[name.lower()]
    if not name.strip() or ":" in name or looks_like_folder(name):
        return name
    hint = "write demo, 7b, 34b, a preset's name (`llvid presets`), or OWNER/NAME of a model on the hub"
    raise ModelError(f"there is no model {name!r}", nearest(name, (*PUBLISHED, *files)) or hint)


def read_preset(path: Path) -> Preset:
    """Return the preset of a file; raises `UsageError`."""
    if not os.path.lexists(path):
        raise UsageError(f"there is no preset file {path}")
    content = read_file(path, "preset")
    shape = shape_of(Preset) | {"sampling": sampling_shape(), "generation": generation_shape()}
    del shape["name"], shape["path"]
    with placed(f"preset {path}"):
        values = read_fields(read_yaml(content), shape, path.stem)
        if "about" not in values:
            raise UsageError("the key 'about' is missing", "describe in one line what the preset is for")
        sampling = with_sampling(_SAMPLING, values.pop("sampling", {}))
        generation = Generation(**generation_values(values.pop("generation", {}), path.parent))
        for key in ("model", "adapter"):
            if values.get(key) is not None:
                values[key] = _below(path.parent, values[key])
        return Preset(name=path.stem, path=path, sampling=sampling, generation=generation, **values)


def _below(folder: Path, model: str) -> str:
    """Return a preset's model or adapter: a relative path is relative to the preset's file, as its folder knows it."""
    is_relative = model.startswith(".") or (model.count("/") > 1 and not model.startswith(("/", "~")))
    if is_relative or (model != "demo" and (folder / model).is_dir()):
        return os.path.abspath(folder / model)  # noqa: PTH100 - keeps links
    return model


def sampling_shape() -> dict[str, Any]:
    """Return the keys of a sampling: its fields, and the names of the options; times may also be text."""
    shape = shape_of(Sampling)
    shape |= {key: shape[key] | str for key in _TIMES}
    return shape | {option: shape[field] for option, field in _OPTIONS.items()}


def sampling_options(sampling: Sampling) -> dict[str, Any]:
    """Return the values of a sampling by the names of the options."""
    return {option: getattr(sampling, _OPTIONS.get(option, option)) for option in SAMPLING_OPTIONS}


def generation_shape() -> dict[str, Any]:
    """Return the keys of a generation: its fields, and `json_object`.

    Choices may also be one text with commas between them. A schema is an object, or the path of a file.
    """
    shape = shape_of(Generation) | {"choices": str | list[str], "schema": dict | str | None, "json_object": bool}
    del shape["regex"]
    return shape


def generation_values(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of a generation from values whose keys are those of `generation_shape`.

    A schema's path is relative to `folder`. Raises UsageError.
    """
    values = dict(given)
    is_object = values.pop("json_object", None)
    schema = values.get("schema")
    if is_object and schema is not None:
        raise UsageError("'schema' and 'json_object' are both given: give one of them")
    if isinstance(schema, str):
        values["schema"] = read_schema(folder / schema)
    elif schema is not None:
        with placed("schema"):
            values["schema"] = schema_text(schema)
    elif is_object is not None:
        values["schema"] = ANY_OBJECT if is_object else None
    return values


def read_schema(path: Path) -> str:
    """Return the text of a file with a JSON schema; raises `UsageError`."""
    content = read_file(path, "JSON schema")
    with placed(str(path)):
        return schema_text(read_json(content))


def with_sampling(base: Sampling, given: Mapping[str, Any]) -> Sampling:
    """Return a sampling changed by values whose keys are those of `sampling_shape`.

    A number of frames replaces a rate. Raises UsageError for values that make no sense.
    """
    values: dict[str, Any] = {"fps": None} if "frames" in given else {}
    for key, value in given.items():
        field = _OPTIONS.get(key, key)
        if field != key and field in given:
            raise UsageError(f"{key!r} and {field!r} are the same setting: use only one of them")
        values[field] = parse_time(value) if field in _TIMES and isinstance(value, str) else value
    return replace(base, **values)


def check_used(given: Mapping[str, Any], samplings: Iterable[Sampling]) -> None:
    """Raise UsageError for an option of the cuts, or of speech, that none of the samplings uses."""
    used = list(samplings)
    for name, value in given.items():
        if name in SCENE_OPTIONS and value is not None and all(each.mode != "scenes" for each in used):
            hint = 'add "sampling": "scenes"'
            raise InputError(f"{name} means nothing where no cuts are looked for", hint, f".{name}")
        if name == "speech_model" and not any(each.speech for each in used):
            raise InputError("speech_model means nothing without speech", 'add "speech": true', ".speech_model")
