"""Media and words to the text of a prompt, and whether it fits the context."""
