"""The Hugging Face hub and its cache: downloads a checkpoint of one commit, checks it, and lists what is there."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import selectors
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ..errors import ModelError, first_line, nearest
from .config import check_weights, read_config, weight_names
from .families import check_family, is_listed
from .files import read_json

# All that a checkpoint needs beside its weights, and its card, for the licence: no pickles, no code, no folders.
# a font: the video processor of ERNIE 4.5 VL writes times on frames
SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model", "*.ttf", "README.md")
DEMO_HINT = "`--model demo` needs no download"
ROOM_HINT = "HF_HOME=FOLDER sets another folder for downloads; the part downloaded so far is kept"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FILES_AT_A_TIME = 4  # one connection seldom fills a fast line
_BLOCK_BYTES = 10 * 2**20  # as huggingface_hub reads
MOST_TRIES = 5  # in a row in which nothing is received
_TICK_SECONDS = 0.1
_LOCK_SECONDS = 1.0
_REQUEST_SECONDS = 30.0
_REACH_SECONDS = 4.0  # for a connection to the hub


@dataclass(frozen=True)
class HubFile:
    """A file of a commit. `checksum` is sha256 for files in the hub's large storage, and git's (sha1) for others."""

    name: str
    bytes: int
    checksum: str


@dataclass(frozen=True)
class DownloadProgress:
    """The progress of a download: `done_bytes` of `total_bytes` are on the disk, `received_bytes` of them are new.

    `tries` is how often in a row the connection was lost without anything received.
    """

    done_bytes: int
    received_bytes: int
    total_bytes: int
    tries: int = 0


@dataclass(frozen=True)
class Fetched:
    """A checkpoint's folder. `commit` is None if it isn't from the hub, `is_checked` False if the hub wasn't asked."""

    folder: Path
    commit: str | None
    bytes: int
    downloaded_bytes: int = 0
    is_checked: bool = True


@dataclass(frozen=True)
class CachedCheckpoint:
    """A commit of a checkpoint in the hub's cache. `lacks` says what is missing, None if nothing is."""

    model: str
    commit: str
    folder: Path
    bytes: int
    lacks: str | None


def fetch(
    model: str,
    revision: str | None = None,
    *,
    offline: bool = False,
    progress: Callable[[DownloadProgress], None] | None = None,
) -> Fetched:
    """Download the files of a hub id's checkpoint that the cache lacks, or has in another size than the hub says.

    The revision is resolved to a commit once, and all files are of that commit. The config comes first, so that another
    architecture is refused before anything large is downloaded; then the weights that the checkpoint's index names,
    and what else a checkpoint needs: no pickles, no code. If the hub can't be reached, a complete checkpoint in the
    cache is used. A file that is downloaded in part is kept for the next try. Raises `ModelError`.
    """
    with explained(model, revision):
        folder = resolve(model, revision, offline=offline)
        files = None if offline else _files(model, folder.name)
        if files is None:
            if (complete := cached(model, folder.name)) is None:
                raise ConnectionError
            return Fetched(complete, folder.name, folder_bytes(complete), is_checked=False)
        received = _download(model, folder, [file for file in files if file.name == "config.json"])
        check_family(read_config(folder), model)
        small = [file for file in files if any(fnmatch(file.name, pattern) for pattern in SMALL_FILES)]
        received += _download(model, folder, small)
        received += _download(model, folder, _weights(model, folder, files), progress)
    check_weights(folder)
    return Fetched(folder, folder.name, folder_bytes(folder), received)


def fetch_files(
    model: str,
    patterns: Sequence[str],
    needed: Sequence[str],
    *,
    revision: str | None = None,
    progress: Callable[[DownloadProgress], None] | None = None,
) -> Fetched:
    """Download the files of a hub id that match the patterns, as `fetch` does; the `needed` have to be there.

    Without a revision, they are those of `main`. Raises `ModelError`.
    """
    with explained(model, revision, f"run the command again with access to the hub, or `hf download {model}`"):
        folder = resolve(model, revision, file=needed[0])
        files = _files(model, folder.name)
        if files is None:
            raise ConnectionError
        if lacking := set(needed) - {file.name for file in files}:
            raise ModelError(f"{model} on the hub lacks {', '.join(sorted(lacking))}")
        wanted = [file for file in files if any(fnmatch(file.name, pattern) for pattern in patterns)]
        received = _download(model, folder, wanted, progress)
    return Fetched(folder, folder.name, folder_bytes(folder), received)


def cached_files(model: str, patterns: Sequence[str], needed: Sequence[str]) -> Path | None:
    """Return the cache's folder of the commit of a hub id's `main` that was known last, if the needed files are there.

    The hub isn't asked.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, allow_patterns=list(patterns), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if all((folder / name).is_file() for name in needed) else None


def resolve(model: str, revision: str | None, *, offline: bool = False, file: str = "config.json") -> Path:
    """Return the cache's folder of the commit that a revision stands for now, with the config (or `file`) in it.

    If the hub can't be reached, it is the commit of the last time that it could. Raises what huggingface_hub raises,
    ConnectionError for a hub that can't be reached, and `ModelError` if the commit has no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    is_away = not (offline or _is_reachable())
    try:
        return Path(hf_hub_download(model, file, revision=revision, local_files_only=offline or is_away)).parent
    except LocalEntryNotFoundError:
        if is_away:
            raise ConnectionError from None
        raise
    except EntryNotFoundError as error:
        what = "is not a checkpoint: it has no" if file == "config.json" else "on the hub lacks"
        raise ModelError(f"{model} {what} {file}", f"https://huggingface.co/{model} shows what it has") from error


def _is_reachable() -> bool:
    """Whether the hub's host takes a connection soon: huggingface_hub tries for 25 seconds.

    A proxy, and the offline mode, are left to huggingface_hub.
    """
    from huggingface_hub import constants

    parts, deadline = urlsplit(constants.ENDPOINT), time.monotonic() + _REACH_SECONDS
    host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    has_proxy = not {parts.scheme, "all"}.isdisjoint(getproxies()) and not proxy_bypass(host)
    if constants.is_offline_mode() or has_proxy:
        return True
    places: list[Any] = []

    def look_up() -> None:
        with suppress(OSError, UnicodeError):
            places.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

    name_server = Thread(target=look_up, name="llvid-hub", daemon=True)
    name_server.start()
    name_server.join(_REACH_SECONDS)
    with selectors.DefaultSelector() as waiting, ExitStack() as opened:
        for family, kind, protocol, _, address in tuple(places):  # all at once, as one of them may not answer
            with suppress(OSError):
                connection = opened.enter_context(socket.socket(family, kind, protocol))
                connection.setblocking(False)
                if connection.connect_ex(address) in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                    waiting.register(connection, selectors.EVENT_WRITE)
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                ended = cast("socket.socket", key.fileobj)
                if not ended.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    return True
                waiting.unregister(ended)
    return False


def cached(model: str, commit: str) -> Path | None:
    """Return the cache's folder of a commit if the checkpoint in it is complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    options = {"allow_patterns": list(SMALL_FILES), "ignore_patterns": ["*/*"], "local_files_only": True}
    try:
        folder = Path(snapshot_download(model, revision=commit, **options))
        check_weights(folder)
    except (LocalEntryNotFoundError, ModelError):
        return None
    return folder if any((folder / name).exists() for name in _TOKENIZERS) else None


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files in a checkpoint's folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def cache_folder() -> Path:
    """Return the folder of the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_checkpoints(cache: Path) -> list[CachedCheckpoint]:
    """Return the checkpoints in a cache whose family is known, complete or not; others are left out."""
    checkpoints = []
    for folder in sorted(cache.glob("models--*/snapshots/*")):
        try:
            config = read_json(folder / "config.json")
        except (ModelError, OSError):
            continue
        if not isinstance(config, dict) or not is_listed(config):
            continue
        storage, lacks = folder.parents[1], None
        try:
            check_weights(folder)
        except ModelError as error:
            begun_bytes = sum(path.stat().st_size for path in storage.glob("blobs/*.incomplete"))
            begun = f"; {begun_bytes / 1e9:.1f} GB of a file is downloaded" if begun_bytes else ""
            lacks = f"{error}{begun}".replace(f"{folder} ", "")
        name = storage.name.removeprefix("models--").replace("--", "/")
        checkpoints.append(CachedCheckpoint(name, folder.name, folder, folder_bytes(folder), lacks))
    return checkpoints


def _files(model: str, commit: str) -> list[HubFile] | None:
    """Return the files at the top of a commit, or None if the hub can't be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        info = HfApi().model_info(model, revision=commit, files_metadata=True, timeout=_REQUEST_SECONDS)
    except (OSError, HTTPError) as error:
        if getattr(error, "response", None) is not None:
            raise
        return None
    files = []
    for sibling in info.siblings or ():
        if "/" in sibling.rfilename or "\\" in sibling.rfilename:
            continue
        size = (sibling.lfs.size if sibling.lfs else sibling.size) or 0
        checksum = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", str(checksum)):  # it becomes the name of a file
            raise ValueError(f"the hub gives no valid checksum for {sibling.rfilename}")
        files.append(HubFile(sibling.rfilename, size, str(checksum)))
    return files


def _weights(model: str, folder: Path, files: Sequence[HubFile]) -> list[HubFile]:
    """Return the weights' files: those of the index, or the only one."""
    names = weight_names(folder)
    weights = [file for file in files if file.name in names and file.name.endswith(".safetensors")]
    if len(weights) < len(names):
        pickles = [file.name for file in files if file.name.endswith((".bin", ".pt", ".pth"))]
        lacks = f"{len(names) - len(weights)} of {len(names)} weight files" if weights else "weights as safetensors"
        only = f", and only has {pickles[0]}" if pickles and not weights else ""
        raise ModelError(f"{model} on the hub lacks {lacks}{only}", "llvid reads no other weights: they can hold code")
    return weights


def _download(
    model: str,
    folder: Path,
    files: Sequence[HubFile],
    progress: Callable[[DownloadProgress], None] | None = None,
) -> int:
    """Fetch the files that are missing, check them, and return the bytes that were received."""
    from huggingface_hub import hf_hub_url, snapshot_download

    missing = [file for file in files if _size(folder / file.name) != file.bytes]
    if not missing:
        return 0
    for path in (folder / file.name for file in missing):
        for each in (path.resolve(), path):  # the blob, and the link to it
            each.unlink(missing_ok=True)
    storage, stop = folder.parents[1], Event()
    transfers = [_Transfer(file, storage / "blobs" / file.checksum, stop) for file in missing]
    begun_bytes = sum(each.done_bytes for each in transfers)
    total_bytes, missing_bytes = (sum(file.bytes for file in some) for some in (files, missing))
    needed_bytes, free_bytes = missing_bytes - begun_bytes, shutil.disk_usage(storage).free
    if needed_bytes > free_bytes:
        raise ModelError(
            f"{model} needs {needed_bytes / 1e9:.1f} GB more in {storage.parent}; {free_bytes / 1e9:.1f} GB is free",
            ROOM_HINT,
        )

    def report() -> None:
        if progress is not None:
            done = sum(each.done_bytes for each in transfers)
            tries = max(each.tries for each in transfers)
            progress(DownloadProgress(total_bytes - missing_bytes + done, done - begun_bytes, total_bytes, tries))

    workers = ThreadPoolExecutor(_FILES_AT_A_TIME, thread_name_prefix="llvid-fetch")
    try:
        report()
        running = {
            workers.submit(each.run, hf_hub_url(model, each.file.name, revision=folder.name)) for each in transfers
        }
        while running:
            ended, running = wait(running, timeout=_TICK_SECONDS, return_when=FIRST_EXCEPTION)
            for future in ended:
                future.result()
            report()
    finally:
        stop.set()
        workers.shutdown(wait=False, cancel_futures=True)
    snapshot_download(model, revision=folder.name, allow_patterns=[escape(file.name) for file in missing])
    return needed_bytes


@dataclass
class _Transfer:
    """The download of a file to `blob`, where `snapshot_download` finds it and only links it.

    huggingface_hub (since 1.x, also with hf_xet) gives each process a partial file of its own, which the next one does
    not continue, and checks no checksum. A checkpoint's files have up to 5 GB, so the partial file is kept here.
    """

    file: HubFile
    blob: Path
    stop: Event
    tries: int = 0

    @property
    def partial(self) -> Path:
        """The partial file; `hf cache prune` knows its suffix."""
        return self.blob.with_name(f"{self.blob.name}.incomplete")

    @property
    def done_bytes(self) -> int:
        """Bytes on the disk, whichever process wrote them."""
        return _size(self.partial) or _size(self.blob)  # in this order, as the partial file becomes the blob

    def run(self, url: str) -> None:
        """Fetch what is missing, and check it; a second process waits for the first."""
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock

        storage = self.blob.parents[1]
        lock = storage.parent / ".locks" / storage.name / f"{self.blob.name}.lock"  # huggingface_hub's own for it
        for folder in (lock.parent, self.blob.parent):
            folder.mkdir(parents=True, exist_ok=True)
        while not self.stop.is_set():
            with suppress(Timeout), WeakFileLock(lock, timeout=_LOCK_SECONDS):
                if not self.blob.exists():
                    self._get(url)
                    self._check()
                    self.partial.replace(self.blob)
                return

    def _get(self, url: str) -> None:
        """Append what is missing to the partial file; after a lost connection, try again."""
        from huggingface_hub import constants
        from huggingface_hub.errors import HTTPError
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        options = {"timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT, "retry_on_exceptions": ()}
        with self.partial.open("ab") as file:
            while (kept := file.tell()) < self.file.bytes:
                headers = build_hf_headers() | {"Range": f"bytes={kept}-", "Accept-Encoding": "identity"}
                try:
                    with http_stream_backoff("GET", url, headers=headers, **options) as response:
                        hf_raise_for_status(response)
                        if response.status_code != 206:  # a server without range requests sends the whole file
                            file.truncate(file.seek(0))
                        for block in response.iter_bytes(_BLOCK_BYTES):
                            if self.stop.is_set():
                                raise CancelledError
                            file.write(block)
                except HTTPError as error:
                    if getattr(error, "response", None) is not None:
                        raise
                self.tries = 0 if file.tell() > kept else self.tries + 1
                if self.tries == MOST_TRIES:
                    raise ModelError(
                        f"the connection to the hub was lost while downloading {self.file.name}",
                        "run the same command to continue",
                    )
                if self.tries:
                    time.sleep(1)
            file.flush()
            os.fsync(file.fileno())  # a checksum is useless if a power cut loses the bytes

    def _check(self) -> None:
        """Raise `ModelError` for a partial file that isn't what the hub promised, and remove it."""
        size, promised = _size(self.partial), self.file.checksum
        digest = hashlib.sha256() if len(promised) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with self.partial.open("rb") as content:
            while block := content.read(_BLOCK_BYTES):
                if self.stop.is_set():
                    raise CancelledError
                digest.update(block)
        if digest.hexdigest() != promised:
            self.partial.unlink()
            raise ModelError(
                f"{self.file.name} was damaged on the way: its checksum is {digest.hexdigest()[:12]}..., "
                f"not {promised[:12]}...",
                "it was removed; run the same command to download it again",
            )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextmanager
def explained(model: str, revision: str | None, hint: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises in a `with` block into `ModelError`."""
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    except (OSError, ValueError, HTTPError) as error:
        raise ModelError(*_explanation(model, revision, error, hint)) from error


def _explanation(model: str, revision: str | None, error: Exception, pull: str | None) -> tuple[str, str]:
    """Return why a hub id could not be fetched, and what to do."""
    from huggingface_hub import errors

    demo = "" if pull else f"; {DEMO_HINT}"  # not for an adapter or a speech model
    pull = pull or f"run `llvid pull {model}` with access to the hub{demo}"
    answers = (getattr(each, "response", None) for each in (error, error.__cause__))
    status = next((answer.status_code for answer in answers if answer is not None), None)
    if isinstance(error, errors.HFValidationError):
        return f"{model!r} is neither a folder nor a hub id: {first_line(error)}", f"write OWNER/NAME{demo}"
    if "/" not in model:
        hint = nearest(model, ["demo"]) or "a model of the hub is OWNER/NAME, such as llava-hf/LLaVA-NeXT-Video-7B-hf"
        return f"there is no model {model!r}", hint
    if isinstance(error, errors.GatedRepoError):
        hint = f"accept its licence on https://huggingface.co/{model}, run `hf auth login`, then try again"
        return f"the hub asks for a login or a licence for {model}", hint
    if isinstance(error, errors.RevisionNotFoundError):
        hint = "use a branch, a tag or a full commit hash; `main` is the newest"
        return f"{model} on the hub has no revision {revision!r}", hint
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = f"check the name, or run `hf auth login`{demo}"
        return f"the hub has no model {model} (or it is private)", hint
    if status in (401, 403):
        hint = "run `hf auth login`, then try again"
        return f"the hub gives {model} only to users who are logged in (status {status})", hint
    if status is not None:
        return f"the hub failed: status {status} for {model}", "try again later"
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError)):
        is_offline = isinstance(error.__cause__ or error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError))
        why = "the hub isn't used in offline mode" if is_offline else "the hub can't be reached"
        return f"{model} isn't in the local cache and {why}", pull
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"not enough disk space for {model}: {error.strerror}", ROOM_HINT
    if isinstance(error, errors.HTTPError):
        return f"the hub can't be reached for {model}: {first_line(error)}", pull
    if isinstance(error, OSError) and error.filename:
        return f"can't write {error.filename}: {error.strerror}", ROOM_HINT
    return f"{model} can't be fetched: {first_line(error)}", pull
