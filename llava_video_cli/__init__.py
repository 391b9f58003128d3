"""Ask about videos and caption them on your own machine, with LLaVA-NeXT-Video or another video model.

The names below are imported on first use, so that `import llava_video_cli` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conversation import Answer, Chunk, Generation, Request, Scores, Segment, TokenLogprob, Turn, Usage, join
    from .errors import (
        ContextError,
        GrammarError,
        LlvidError,
        MediaError,
        MissingExtraError,
        ModelError,
        OutOfMemoryError,
        ServerError,
        UsageError,
    )
    from .evaluation.find import find_moments
    from .inference import open_model
    from .model import Loading, Model
    from .preset import Preset, load_preset
    from .prompt.budget import Budget
    from .prompt.timestamps import with_times
    from .remote import open_remote
    from .remote.remote_model import RemoteModel
    from .runs.caption import caption_folder
    from .runs.formats import Sidecars
    from .runs.preflight import ModelSource
    from .runs.record import Failure, Record
    from .runs.requests import answer_file
    from .runs.resumable import ResumableRun, RunOptions, Summary
    from .runs.session import Chat, Session
    from .runs.training_set import CaptionForm
    from .video import Frame, Frames, VideoInfo, iter_frames, probe, read_frames
    from .video.contact_sheet import contact_sheet
    from .video.image import Picture, read_image
    from .video.limits import Limits
    from .video.sampling import Sampling

    __version__: str

_HOMES = {
    "conversation": (
        "Answer", "Chunk", "Generation", "Request", "Scores", "Segment", "TokenLogprob", "Turn", "Usage", "join",
    ),
    "errors": (
        "ContextError", "GrammarError", "LlvidError", "MediaError", "MissingExtraError", "ModelError",
        "OutOfMemoryError", "ServerError", "UsageError",
    ),
    "evaluation.find": ("find_moments",),
    "video.image": ("Picture", "read_image"),
    "video.limits": ("Limits",),
    "model": ("Loading", "Model"),
    "inference": ("open_model",),
    "preset": ("Preset", "load_preset"),
    "video.sampling": ("Sampling",),
    "video.contact_sheet": ("contact_sheet",),
    "prompt.budget": ("Budget",),
    "prompt.timestamps": ("with_times",),
    "remote": ("open_remote",),
    "remote.remote_model": ("RemoteModel",),
    "runs.caption": ("caption_folder",),
    "runs.formats": ("Sidecars",),
    "runs.preflight": ("ModelSource",),
    "runs.record": ("Failure", "Record"),
    "runs.requests": ("answer_file",),
    "runs.resumable": ("ResumableRun", "RunOptions", "Summary"),
    "runs.session": ("Chat", "Session"),
    "runs.training_set": ("CaptionForm",),
    "video": ("Frame", "Frames", "VideoInfo", "iter_frames", "probe", "read_frames"),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Answer", "Budget", "CaptionForm", "Chat", "Chunk", "ContextError", "Failure", "Frame", "Frames", "Generation",
    "GrammarError", "Limits", "LlvidError", "Loading", "MediaError", "MissingExtraError", "Model", "ModelError",
    "ModelSource", "OutOfMemoryError", "Picture", "Preset", "Record", "RemoteModel", "Request", "ResumableRun",
    "RunOptions", "Sampling", "Scores", "Segment", "ServerError", "Session", "Sidecars", "Summary", "TokenLogprob",
    "Turn", "Usage", "UsageError", "VideoInfo", "__version__", "answer_file", "caption_folder", "contact_sheet",
    "find_moments", "iter_frames", "join", "load_preset", "open_model", "open_remote", "probe", "read_frames",
    "read_image", "with_times",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("llava-video-cli")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
