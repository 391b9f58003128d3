"""Question sets, and the scores of a model on them."""
