"""`random:SIZE`: models of the published sizes with random weights, to measure speed and memory without a download.

Their answers are noise. The configs in `random/` have the published geometries
(https://huggingface.co/llava-hf/LLaVA-NeXT-Video-7B-hf and its siblings), and the demo checkpoint's tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError

PREFIX = "random:"
SIZES = ("tiny", "1B", "7B", "7B-32K", "34B")
_CONFIGS = Path(__file__).parent / "random"


def random_folder(model: str) -> Path | None:
    """Return the folder that holds the config of `random:SIZE`, None for any other name.

    Raises `UsageError` for a size that doesn't exist.
    """
    if not model.startswith(PREFIX):
        return None
    size = model.removeprefix(PREFIX)
    sizes = {name.lower(): name for name in SIZES}
    if size.lower() not in sizes:
        raise UsageError(f"there are no random weights of size {size!r}", f"the sizes are {', '.join(SIZES)}")
    return _CONFIGS / sizes[size.lower()]


def has_random_weights(folder: Path) -> bool:
    """Whether a folder is one of `random:SIZE`, whose weights are made, not read."""
    return folder.parent == _CONFIGS
