"""Models with their weights in this process: the one place that opens them."""

from __future__ import annotations

from ..checkpoint.config import read_config
from ..checkpoint.families import is_generic
from ..model import Loading, Model
from ..system.garbage import few_collections
from ..video.fit import FrameResize
from .loader import foresee


@few_collections()
def open_model(model: str, loading: Loading | None = None, revision: str | None = None) -> Model:
    """Return the model of a name: `demo`, `random:SIZE`, a checkpoint's folder, or a hub id.

    Raises `UsageError` or `ModelError`. The checkpoint's kind, whether its config can be changed as `loading` wants,
    and whether it fits the memory, where no GPU has to be asked, are checked before anything heavy is imported.
    """
    from ..checkpoint import locate

    loading = loading or Loading()
    folder = locate(model, revision)
    foresee(model, folder, loading)

    from .video_model import VideoModel

    return VideoModel.open(model, folder, loading)


@few_collections()
def open_resize(model: str, revision: str | None = None) -> FrameResize:
    """Return the `shrink` of a checkpoint without its weights: for a process that only reads frames.

    Raises `UsageError` or `ModelError`.
    """
    from ..checkpoint import locate

    folder = locate(model, revision)
    if is_generic(read_config(folder)):
        from ..checkpoint.frame_input import frame_input
        from ..video.image import shrunk

        seen = frame_input(str(folder))
        assert seen is not None, "its files are here"
        return FrameResize(seen, shrunk)

    from transformers import LlavaNextVideoConfig

    from .processor import load_processor
    from .vision import frame_resize

    config = LlavaNextVideoConfig.from_pretrained(folder, local_files_only=True)
    return frame_resize(load_processor(folder, config), config.vision_config.image_size)
