"""What the hub says: the files of a commit that a checkpoint needs, and its refusals as errors of ours."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import NoReturn

from ..errors import ModelError, nearest

# All that a checkpoint needs beside its weights: no pickles, no code, nothing from folders in it.
SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model")
DEMO_HINT = "`--model demo` needs no download"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REQUEST_SECONDS = 30.0


@dataclass(frozen=True)
class HubFile:
    """A file of a commit. `sha256` is there for files in the hub's large storage, `git_sha1` (a blob's) for others."""

    name: str
    bytes: int
    sha256: str | None
    git_sha1: str | None

    @property
    def is_small(self) -> bool:
        """Whether it is something else than weights."""
        return any(fnmatch(self.name, pattern) for pattern in SMALL_FILES)


def files_of(model: str, commit: str) -> list[HubFile]:
    """Return the files at the top of a commit, from the hub. Raises what huggingface_hub raises."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(model, revision=commit, files_metadata=True, timeout=_REQUEST_SECONDS)
    found = []
    for sibling in info.siblings or ():
        if "/" in sibling.rfilename or "\\" in sibling.rfilename:
            continue
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        size = (sibling.lfs.size if sibling.lfs else sibling.size) or 0
        if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):  # it becomes the name of a file
            raise ValueError(f"the hub's checksum of {sibling.rfilename} is none")
        found.append(HubFile(sibling.rfilename, size, sha256, None if sibling.lfs else sibling.blob_id))
    return found


@contextmanager
def explained(model: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises in a `with` block into `ModelError`."""
    from huggingface_hub.errors import HFValidationError, HTTPError
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    except HFValidationError as error:
        raise ModelError(f"{model!r} is neither a folder nor a hub id: {_first_line(error)}", DEMO_HINT) from None
    except (OSError, ValueError, HTTPError) as error:
        _explain(model, revision, error)


def _is_offline(error: Exception) -> bool:
    """Whether the hub was not even asked."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    cause = error.__cause__
    return isinstance(cause or error, OfflineModeIsEnabled) or (
        isinstance(error, LocalEntryNotFoundError) and cause is None
    )


def _explain(model: str, revision: str | None, error: Exception) -> NoReturn:
    """Raise the `ModelError` that says why a hub id could not be fetched."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    download = f"run `llvid pull {model}` where the hub can be reached; {DEMO_HINT}"
    answers = (getattr(each, "response", None) for each in (error, error.__cause__))
    status = next((answer.status_code for answer in answers if answer is not None), None)
    if "/" not in model and (demo := nearest(model, ["demo"])):
        raise ModelError(f"there is no model {model!r}", demo) from None
    if isinstance(error, GatedRepoError):
        raise ModelError(
            f"the hub asks for a login or a licence for {model}",
            f"accept its licence on https://huggingface.co/{model}, `hf auth login`, then try again",
        ) from None
    if isinstance(error, RevisionNotFoundError):
        raise ModelError(
            f"the hub's {model} has no revision {revision!r}", "a branch, a tag or a whole commit; `main` is the newest"
        ) from None
    if isinstance(error, RepositoryNotFoundError):
        raise ModelError(
            f"the hub has no model {model} (or it is private)", f"check the name, or `hf auth login`; {DEMO_HINT}"
        ) from None
    if status in (401, 403):
        raise ModelError(
            f"the hub lets nobody have {model} who isn't logged in (status {status})", "`hf auth login`, then try again"
        ) from None
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        raise ModelError(f"{model} is no checkpoint: it has no config.json", DEMO_HINT) from None
    if status is not None:
        raise ModelError(f"the hub fails: status {status} for {model}", "try again later") from None
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)):
        why = "the hub isn't asked offline" if _is_offline(error) else "the hub can't be reached"
        raise ModelError(f"{model} isn't in the local cache and {why}", download) from None
    if isinstance(error, OSError) and error.errno in _FULL:
        raise ModelError(f"no room for {model}: {error.strerror}", ROOM_HINT) from None
    if isinstance(error, HTTPError) and status is None:
        raise ModelError(f"the hub can't be reached for {model}: {_first_line(error)}", download) from None
    if isinstance(error, OSError) and error.filename:
        raise ModelError(f"can't write {error.filename}: {error.strerror}", ROOM_HINT) from None
    raise ModelError(f"{model} can't be fetched: {_first_line(error)}", download) from error


ROOM_HINT = "HF_HOME=FOLDER names another place for downloads; what is there already stays for the next try"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
