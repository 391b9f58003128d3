"""The included demo checkpoint: its name and folder, the world it knows, and the questions it answers."""

from pathlib import Path

NAME = "demo"  # as a model
CHECKPOINT = Path(__file__).parent / "checkpoint"
