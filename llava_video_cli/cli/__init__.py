"""The command line: the only part that prints, exits, or knows Typer and Rich."""
