"""Presets: a model and its settings under a name, in strict YAML."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from .conversation import Generation, Media, Request, Segment, Turn
from .errors import UsageError, nearest
from .folders import config_folder
from .model import Quantize
from .sampling import Sampling
from .subtitles import Count, Heard, Subtitles, with_lines
from .timestamps import with_times
from .video import Frames

_SUFFIX = ".yaml"
_SAMPLING, _GENERATION = Sampling(), Generation()


@dataclass(frozen=True)
class Preset:
    """What a preset sets; `path` is the file that it came from."""

    name: str
    about: str
    model: str = "llava-hf/LLaVA-NeXT-Video-7B-hf"
    quantize: Quantize = "auto"
    prompt: str = "Describe the video."
    system: str | None = None
    timestamps: bool = False
    sampling: Sampling = _SAMPLING
    generation: Generation = _GENERATION
    path: Path | None = None

    def request(self, question: str, media: Sequence[Media], lines: Sequence[Segment] = ()) -> Request:
        """Return a question about media, told as the preset says; `lines` are of the video's subtitles."""
        system = (Turn("system", self.system),) if self.system else ()
        turns = (*system, Turn("user", with_lines(question, lines), tuple(media)))
        return Request(with_times(turns) if self.timestamps else turns, self.generation)

    def requests(
        self, questions: Sequence[str], media: Sequence[Media], subtitles: Subtitles | None, count: Count
    ) -> tuple[Sequence[Request], Heard | None]:
        """Return questions about the same media, with as many lines of a video's subtitles as fit all of them.

        `count` is `Model.budget`.
        """
        if subtitles is None or not isinstance(media[0], Frames):
            return [self.request(question, media) for question in questions], None
        return subtitles.told(media[0], lambda lines: [self.request(q, media, lines) for q in questions], count)


def preset_folders() -> tuple[Path, ...]:
    """Return where presets are looked for by name: the user's own folder, then the package's."""
    package = Path(__file__).parent
    shipped = package / "presets"  # in a wheel; an editable install finds them beside the package
    return config_folder() / "presets", shipped if shipped.is_dir() else package.parent / "presets"


def preset_files() -> dict[str, Path]:
    """Return the presets that a name reaches, sorted by name; the user's own hide the package's."""
    found = {path.stem: path for folder in reversed(preset_folders()) for path in sorted(folder.glob(f"*{_SUFFIX}"))}
    return dict(sorted(found.items()))


def load_preset(name: str) -> Preset:
    """Return the preset of a name, or of a path (with a slash, or an ending in .yaml or .yml).

    A name never means a file that just lies in the current folder: that takes `./name.yaml`. Raises
    `UsageError` for a preset that isn't there, and for one that is not understood to the last key.
    """
    is_path = os.sep in name or (os.altsep or os.sep) in name
    if is_path:
        return read_preset(Path(name).expanduser())
    files = preset_files()
    if name not in files:
        here = f"a file in this folder is reached as ./{name}" if Path(name).is_file() else None
        raise UsageError(
            f"there is no preset {name!r}", here or nearest(name, files) or f"there are {', '.join(files)}"
        )
    return read_preset(files[name])


def read_preset(path: Path) -> Preset:
    """Return the preset that a file holds; raises `UsageError`."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise UsageError(f"there is no preset file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the preset {path} can't be read: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"the preset {path}{where} is not YAML: {getattr(error, 'problem', None) or error}") from None
    try:
        values = checked(content, Preset, path.stem)
        for part in ("sampling", "generation"):
            if part in values:
                kind = {"sampling": Sampling, "generation": Generation}[part]
                values[part] = kind(**checked(values[part], kind, part))
        return Preset(name=path.stem, path=path, **values)
    except UsageError as error:
        raise UsageError(f"preset {path}: {error}", error.hint) from None


def checked(content: object, kind: type, where: str) -> dict[str, Any]:
    """Return a mapping's values if its keys and types are those of a dataclass."""
    if not isinstance(content, Mapping):
        raise UsageError(f"{where} must hold keys and values, got {type(content).__name__}")
    types = get_type_hints(kind)
    known = {field.name for field in fields(kind)} - {"name", "path"}
    if kind is Preset and "about" not in content:
        raise UsageError("the key 'about' is missing", "one line that says what it is for")
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            raise UsageError(
                f"{where} has no key {str(key)!r}", nearest(str(key), known) or f"keys: {', '.join(sorted(known))}"
            )
        values[key] = _fitting(value, types[key], f"{where}: {key}")
    return values


def _fitting(value: object, wanted: Any, where: str) -> Any:
    """Return a scalar that has a field's type; a nested mapping is checked by its own class."""
    from types import NoneType
    from typing import Literal, get_args, get_origin

    if wanted in (Sampling, Generation):
        return value
    choices = get_args(wanted)
    if get_origin(wanted) is Literal:
        if value in choices:
            return value
        raise UsageError(f"{where} must be one of {', '.join(choices)}, got {value!r}", nearest(str(value), choices))
    allowed = choices or (wanted,)
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) in allowed or (value is None and NoneType in allowed):
        return value
    names = {
        NoneType: "null", str: "text", int: "a whole number", float: "a number", bool: "true or false",
    }  # fmt: skip
    raise UsageError(f"{where} must be {' or '.join(names.get(t, str(t)) for t in allowed)}, got {value!r}")
