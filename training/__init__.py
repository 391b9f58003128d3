"""What trains the demo checkpoint, from nothing: `python -m training.train`. It is not part of the wheel."""
