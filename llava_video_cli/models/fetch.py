"""A checkpoint from the hub, whole and checked, all of one commit, in the hub's own cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from threading import Event

from ..errors import ModelError
from .checkpoint import check_architecture, check_weights, read_config, weight_names
from .hub import ROOM_HINT, SMALL_FILES, HubFile, explained, files_of
from .transfer import DAMAGE_HINT, Transfer, damage, discard

_AT_A_TIME = 4  # files: one connection seldom fills a fast line
_TICK_SECONDS = 0.1
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class Progress:
    """How far a download is. `done_bytes` are on the disk, of `total_bytes`; `came_bytes` of them came just now."""

    done_bytes: int
    came_bytes: int
    total_bytes: int
    commit: str


@dataclass(frozen=True)
class Fetched:
    """A checkpoint's folder. `commit` is None for one that isn't from the hub.

    `downloaded_bytes` came just now; `is_checked` unless the hub wasn't asked.
    """

    folder: Path
    commit: str | None
    bytes: int
    downloaded_bytes: int = 0
    is_checked: bool = True


def fetch(
    model: str,
    revision: str | None = None,
    *,
    offline: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Fetched:
    """Bring a hub id's checkpoint into the cache: what is missing or has another size than the hub says.

    The revision is resolved to a commit once, and all files are of that commit. Only the config is fetched before the
    architecture is checked, and then the weights' files that the checkpoint's index names, and what else a checkpoint
    needs: no pickles, no code. Without the hub, what is in the cache is taken if it is whole. What came of a file stays
    for the next try. Raises `ModelError`.
    """
    with explained(model, revision):
        folder = resolve(model, revision, offline=offline)
        files = None if offline else _ask(model, folder.name)
        if files is None:
            whole = cached(model, folder.name)
            if whole is None:
                raise ConnectionError
            return Fetched(whole, folder.name, folder_bytes(whole), is_checked=False)
        came = _small(model, folder, [file for file in files if file.name == "config.json"])
        check_architecture(read_config(folder), model)
        came += _small(model, folder, [file for file in files if file.is_small])
        came += _large(model, folder, _weights(model, folder, files), progress)
    check_weights(folder)
    return Fetched(folder, folder.name, folder_bytes(folder), came)


def resolve(model: str, revision: str | None, *, offline: bool = False) -> Path:
    """Return the cache's folder of the commit that a revision stands for now, with the config in it.

    Without the hub, of the commit that it stood for when it was asked last. Raises what huggingface_hub raises.
    """
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, "config.json", revision=revision, local_files_only=offline)).parent


def cached(model: str, commit: str) -> Path | None:
    """Return the cache's folder of a commit if it is whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(_snapshot(snapshot_download, model, commit, SMALL_FILES, local_files_only=True))
        check_weights(folder)
    except (LocalEntryNotFoundError, ModelError):
        return None
    return folder if any((folder / name).exists() for name in _TOKENIZERS) else None


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files in a checkpoint's folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _ask(model: str, commit: str) -> list[HubFile] | None:
    """Return the files of a commit, or None if the hub can't be reached."""
    from huggingface_hub.errors import HTTPError

    try:
        return files_of(model, commit)
    except (OSError, HTTPError) as error:
        if getattr(error, "response", None) is not None:
            raise
        return None


def _small(model: str, folder: Path, files: Sequence[HubFile]) -> int:
    """Fetch what isn't weights; return the bytes that came."""
    from huggingface_hub import snapshot_download

    missing = _missing(folder, files)
    if missing:
        _snapshot(snapshot_download, model, folder.name, [escape(file.name) for file in files])
    for file in missing:
        if wrong := damage(folder / file.name, file):
            discard(folder / file.name)
            raise ModelError(f"{file.name} came damaged: {wrong}", DAMAGE_HINT)
    return sum(file.bytes for file in missing)


def _weights(model: str, folder: Path, files: Sequence[HubFile]) -> list[HubFile]:
    """Return the weights' files: those of the index, or the only one."""
    names = weight_names(folder)
    found = [file for file in files if file.name in names and file.name.endswith(".safetensors")]
    if len(found) < len(names):
        pickles = [file.name for file in files if file.name.endswith((".bin", ".pt", ".pth"))]
        lacks = f"{len(names) - len(found)} of {len(names)} weight files" if found else "weights as safetensors"
        only = f", and only has {pickles[0]}" if pickles and not found else ""
        raise ModelError(f"the hub's {model} lacks {lacks}{only}", "llvid reads no other weights: they can hold code")
    return found


def _large(model: str, folder: Path, files: Sequence[HubFile], progress: Callable[[Progress], None] | None) -> int:
    """Fetch weights; return the bytes that came."""
    from huggingface_hub import hf_hub_download, hf_hub_url

    missing = _missing(folder, files)
    here = sum(file.bytes for file in files) - sum(file.bytes for file in missing)
    storage = folder.parents[1]
    transfers = [
        Transfer(
            file,
            blob=storage / "blobs" / str(file.sha256),
            lock=storage.parent / ".locks" / storage.name / f"{file.sha256}.lock",
        )
        for file in missing
        if file.sha256 is not None
    ]
    _check_room(model, storage, sum(each.file.bytes - each.done_bytes for each in transfers))

    def tell() -> None:
        if progress is not None:
            done, came = (sum(getattr(each, name) for each in transfers) for name in ("done_bytes", "came_bytes"))
            progress(Progress(here + done, came, sum(file.bytes for file in files), folder.name))

    stop = Event()
    workers = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="llvid-fetch")
    try:
        tell()
        running = {
            workers.submit(each.run, hf_hub_url(model, each.file.name, revision=folder.name), stop)
            for each in transfers
        }
        while running:
            ended, running = wait(running, timeout=_TICK_SECONDS, return_when=FIRST_EXCEPTION)
            for future in ended:
                future.result()
            tell()
    finally:
        stop.set()
        workers.shutdown(wait=False, cancel_futures=True)
    for file in missing:  # finds the blob and links it; a file outside the hub's large storage is fetched here
        path = Path(hf_hub_download(model, file.name, revision=folder.name))
        if file.sha256 is None and (wrong := damage(path, file)):
            discard(path)
            raise ModelError(f"{file.name} came damaged: {wrong}", DAMAGE_HINT)
    return sum(each.came_bytes for each in transfers)


def _missing(folder: Path, files: Sequence[HubFile]) -> list[HubFile]:
    """Return the files that aren't there; one that has another size than it should have is removed."""
    missing = []
    for file in files:
        path = folder / file.name
        if path.exists() and path.stat().st_size == file.bytes:
            continue
        discard(path)
        missing.append(file)
    return missing


def _check_room(model: str, folder: Path, needed_bytes: int) -> None:
    """Raise `ModelError` if the disk has less room than is needed."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise ModelError(
            f"{model} needs {needed_bytes / 1e9:.1f} GB more in {folder.parent}, {free / 1e9:.1f} GB are free",
            ROOM_HINT,
        )


def _snapshot(download: Callable[..., str], model: str, commit: str, names: Sequence[str], **options: bool) -> str:
    """Call `snapshot_download` for files at the top of a commit."""
    return download(model, revision=commit, allow_patterns=list(names), ignore_patterns=["*/*"], **options)
