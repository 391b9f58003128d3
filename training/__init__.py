"""Trains the demo checkpoint from scratch: `python -m training.train`. It is not part of the wheel."""
