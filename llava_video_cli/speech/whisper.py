"""Whisper by faster-whisper (CTranslate2): from a model's name to its weights, and from sound to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.config import check_name, looks_like_folder
from ..checkpoint.hub import DownloadProgress, cached_files, fetch_files
from ..errors import LlvidError, MissingExtraError, ModelError, UsageError, described, nearest
from ..system.files import expanded, fingerprint
from ..system.machine import usable_cores
from . import SpeechOptions, SpokenSegment, Word

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..video.sound import SoundChunk

# The names of faster-whisper 1.2.1, and their checkpoints on the hub.
_SYSTRAN = (
    *("tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en"),
    *("large-v1", "large-v2", "large-v3"),
)
MODELS = {name: f"Systran/faster-whisper-{name}" for name in _SYSTRAN} | {
    "large": "Systran/faster-whisper-large-v3",
    "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
    "distil-small.en": "Systran/faster-distil-whisper-small.en",
    "distil-medium.en": "Systran/faster-distil-whisper-medium.en",
    "distil-large-v2": "Systran/faster-distil-whisper-large-v2",
    "distil-large-v3": "Systran/faster-distil-whisper-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
}
# Whisper's, by ISO 639-1 where there is a code of two letters.
_CODES = (
    "af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu hy id "
    "is it ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd "
    "si sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo zh yue"
)
LANGUAGES = _CODES.split()
_FILES = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*")
_NEEDED = ("config.json", "model.bin", "tokenizer.json")  # without a tokenizer, faster-whisper asks the hub for one
_PIECE_SECONDS, _SEARCH_SECONDS = 3600, 60  # sound in memory: 230 MB an hour; it is cut where it is quiet
_WORKING_BYTES = 2**30  # beside the weights
_GPU_BATCH = 8  # stretches of up to 30 seconds at a time: faster-whisper's default
_SILENT = 1e-4  # of full scale: no microphone is as quiet
_CUT_WINDOW_SECONDS = 0.1
_SHORTEST_SECONDS = 0.02  # of what has a word: Whisper's step of time, without one of which faster-whisper fails


def check_installed() -> None:
    """Raise MissingExtraError if faster-whisper is not there."""
    try:
        import faster_whisper  # noqa: F401
    except ImportError:
        raise MissingExtraError("speech needs the package faster-whisper", "speech") from None


def check_options(options: SpeechOptions) -> None:
    """Raise UsageError for a model's name or a language that there can't be, and LlvidError without faster-whisper."""
    if (language := options.language) is not None and language not in LANGUAGES:
        raise UsageError(f"there is no language {language!r}", nearest(language, LANGUAGES) or "use a code such as de")
    check_name(options.model)
    if options.model not in MODELS and not looks_like_folder(options.model) and options.model.count("/") != 1:
        hint = nearest(options.model, MODELS, least=0.5) or f"the names are {', '.join(MODELS)}"
        raise UsageError(f"there is no speech model {options.model!r}", hint)
    if options.model.endswith(".en") and (options.translate or options.language not in (None, "en")):
        raise UsageError(f"{options.model} knows English only", f"use {options.model.removesuffix('.en')}")
    check_installed()


@dataclass(frozen=True)
class SpeechWeights:
    """A folder with a model that CTranslate2 has converted; `name` is that of its content."""

    folder: Path
    name: str

    @property
    def needed_bytes(self) -> int:
        """About what they take in memory, with the sound of an hour."""
        return (self.folder / "model.bin").stat().st_size + _WORKING_BYTES


def default_device() -> str:
    """Return where Whisper computes: on a GPU if CTranslate2 can use one. Raises LlvidError without faster-whisper."""
    check_installed()
    import ctranslate2

    return "cuda" if ctranslate2.get_cuda_device_count() else "cpu"


def local_weights(model: str) -> SpeechWeights | None:
    """Return a model's weights if they are on this machine; the hub isn't asked.

    Raises ModelError for a folder that lacks something.
    """
    if model not in MODELS and looks_like_folder(model):
        folder = expanded(model)
        if not folder.is_dir():
            raise ModelError(f"the speech model folder {model} doesn't exist", f"the names are {', '.join(MODELS)}")
        if lacking := [name for name in _NEEDED if not (folder / name).is_file()]:
            raise ModelError(
                f"{folder} is not a speech model: it lacks {', '.join(lacking)}",
                "ct2-transformers-converter --copy_files tokenizer.json preprocessor_config.json makes such a folder",
            )
        status = [(folder / name).stat() for name in _NEEDED]
        content = repr([str(folder.resolve()), *((each.st_size, each.st_mtime_ns) for each in status)])
        return SpeechWeights(folder, f"{folder.name} {fingerprint(content.encode())}")
    hub_id = MODELS.get(model, model)
    folder_of_hub = cached_files(hub_id, _FILES, _NEEDED)
    return None if folder_of_hub is None else SpeechWeights(folder_of_hub, f"{hub_id} {folder_of_hub.name}")


def fetch_weights(model: str, progress: Callable[[DownloadProgress], None] | None = None) -> SpeechWeights:
    """Return a model's weights, downloaded if they are not on this machine. Raises ModelError."""
    if (weights := local_weights(model)) is not None:
        return weights
    hub_id = MODELS.get(model, model)
    fetched = fetch_files(hub_id, _FILES, _NEEDED, progress=progress)
    return SpeechWeights(fetched.folder, f"{hub_id} {fetched.folder.name}")


class WhisperTranscriber:
    """A loaded Whisper: on a GPU in float16 if CTranslate2 can use one, else on the CPU in int8.

    On a GPU, what the voice activity detector takes for speech is transcribed in batches of `batch_size` stretches. A
    CPU gains nothing by that, and there Whisper knows what was said before each stretch.
    """

    def __init__(
        self, weights: SpeechWeights, device: str = "auto", cores: int | None = None, batch_size: int | None = None
    ) -> None:
        self._cores = cores or usable_cores()
        self.name, self.needed_bytes, self.notes = weights.name, weights.needed_bytes, tuple[str, ...]()
        self.device = default_device() if device == "auto" else device
        if self.device != "cpu":
            try:
                self._model = self._opened(weights, self.device)
                self._model.detect_language(_silence(1))  # libraries of CUDA are only missed here
            except ModelError as error:
                self.notes = (f"speech is transcribed on the CPU, because the GPU can't be used: {error}",)
                self.device = "cpu"
        if self.device == "cpu":
            self._model = self._opened(weights, "cpu")
        self._batch_size = batch_size or (1 if self.device == "cpu" else _GPU_BATCH)

    def _opened(self, weights: SpeechWeights, device: str) -> Any:
        import ctranslate2
        from faster_whisper import WhisperModel

        kind = "int8"
        if device != "cpu" and "float16" in ctranslate2.get_supported_compute_types(device):
            kind = "float16"
        with _errors(str(weights.folder)):
            return WhisperModel(
                str(weights.folder), device=device, compute_type=kind, cpu_threads=self._cores, local_files_only=True
            )

    def transcribe(self, sound: Iterable[SoundChunk], options: SpeechOptions) -> Iterator[SpokenSegment]:
        """Yield what is said; a piece of up to an hour is held in memory and counts as one file."""
        from ..video.sound import RATE

        for start_seconds, samples in pieces(sound):
            length_seconds = len(samples) / RATE
            if length_seconds < _SHORTEST_SECONDS or (options.vad and not (abs(samples) > _SILENT).any()):
                continue
            with _errors(self.name):
                for segment, language in self._segments(samples, options):
                    if segment.start >= length_seconds:  # Whisper always hears 30 seconds, filled up with silence
                        continue
                    if options.language is None:  # the first piece in which something is said decides for all
                        options = replace(options, language=language)
                    yield _spoken(segment, start_seconds, length_seconds, language)

    def _segments(self, samples: NDArray[np.float32], options: SpeechOptions) -> Iterator[tuple[Any, str]]:
        """Yield faster-whisper's segments of a piece, each with its language."""
        from faster_whisper import BatchedInferencePipeline

        wanted: dict[str, Any] = {
            "language": options.language,
            "task": "translate" if options.translate else "transcribe",
            "vad_filter": options.vad,
            "word_timestamps": options.words,
        }
        if self._batch_size > 1 and options.vad:  # the detector finds the stretches
            count = 0
            try:
                segments, info = BatchedInferencePipeline(self._model).transcribe(
                    samples, batch_size=self._batch_size, without_timestamps=False, **wanted
                )
                for count, segment in enumerate(segments, start=1):  # noqa: B007 - how many came before an error
                    yield segment, info.language
                return
            except RuntimeError as error:
                if count or "out of memory" not in str(error).lower():
                    raise
                self._batch_size = 1
        segments, info = self._model.transcribe(samples, **wanted)
        for segment in segments:
            yield segment, info.language


def _spoken(segment: Any, start_seconds: float, length_seconds: float, language: str) -> SpokenSegment:
    def time(seconds: float) -> float:
        return round(float(start_seconds + min(seconds, length_seconds)), 3)

    words = tuple(Word(time(word.start), time(word.end), word.word) for word in segment.words or ())
    return SpokenSegment(time(segment.start), time(segment.end), segment.text.strip(), language, words)


def pieces(sound: Iterable[SoundChunk]) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Join chunks to pieces of at most an hour without a jump in time; yield each with the time of its first sample.

    A longer stretch is cut at the quietest moment of the last minute.
    """
    import numpy as np

    from ..video.sound import RATE

    held: list[SoundChunk] = []
    count = 0

    def joined() -> tuple[float, NDArray[np.float32]]:
        return held[0].start_seconds, np.concatenate([chunk.samples for chunk in held])

    for chunk in sound:
        if held and chunk.start_seconds > held[-1].end_seconds + 1 / RATE:
            yield joined()
            held, count = [], 0
        held.append(chunk)
        count += len(chunk.samples)
        if count >= _PIECE_SECONDS * RATE:
            start_seconds, samples = joined()
            window = round(_CUT_WINDOW_SECONDS * RATE)
            last = samples[-_SEARCH_SECONDS * RATE :]
            loudness = np.square(last[: len(last) // window * window].reshape(-1, window)).mean(axis=1)
            cut = len(samples) - len(last) + (int(loudness.argmin()) * window) + window // 2
            yield start_seconds, samples[:cut]
            held = [replace(chunk, samples=samples[cut:], start_seconds=start_seconds + cut / RATE)]
            count = len(held[0].samples)
    if held:
        yield joined()


def _silence(seconds: int) -> NDArray[np.float32]:
    import numpy as np

    from ..video.sound import RATE

    return np.zeros(seconds * RATE, np.float32)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn what CTranslate2, tokenizers and onnxruntime raise into ModelError."""
    try:
        yield
    except LlvidError:
        raise
    except Exception as error:
        words = described(error).removeprefix("RuntimeError ")
        raise ModelError(f"the speech model {name} fails: {words}") from error
