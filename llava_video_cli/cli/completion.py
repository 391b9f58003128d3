"""What the shell completes: names of presets and of models. Where no name fits, the shell completes paths itself."""

from __future__ import annotations

from glob import escape, glob


def presets_for(incomplete: str) -> list[str]:
    """Return the presets that begin so."""
    from ..preset import preset_files

    return [name for name in preset_files() if name.startswith(incomplete)]


def models_for(incomplete: str) -> list[str]:
    """Return the models that begin so: presets, short names, what is in the cache, and folders beside such names."""
    from ..checkpoint.cache import cached_names
    from ..checkpoint.config import PUBLISHED
    from ..preset import preset_files

    names = dict.fromkeys((*preset_files(), *PUBLISHED, *cached_names()))
    fitting = [name for name in names if name.startswith(incomplete)]
    return fitting and [*fitting, *sorted(glob(f"{escape(incomplete)}*/"))]  # noqa: PTH207 - as it is typed


def downloads_for(incomplete: str) -> list[str]:
    """Return what `llvid pull` may be asked for: short names, hub ids of presets, and what is in the cache."""
    from ..checkpoint.cache import cached_names
    from ..checkpoint.config import PUBLISHED

    names = dict.fromkeys((*PUBLISHED, *PUBLISHED.values(), *cached_names()))
    return [name for name in names if name.startswith(incomplete)]


def cached_models_for(incomplete: str) -> list[str]:
    """Return `rm`, and the models in the cache."""
    from ..checkpoint.cache import cached_names

    return [name for name in ("rm", *cached_names()) if name.startswith(incomplete)]
