"""The embedded demo checkpoint: where it lies, the world it knows, and the questions it answers."""

from ..models.source import DEMO as CHECKPOINT

__all__ = ["CHECKPOINT"]
