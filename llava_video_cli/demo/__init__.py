"""The embedded demo checkpoint: where it lies, the world it knows, and how it was trained."""

from ..models.source import DEMO as CHECKPOINT

__all__ = ["CHECKPOINT"]
