"""Question sets and the scores of a model on them, and the moments of videos in which something is seen."""
