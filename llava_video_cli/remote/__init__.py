"""Models behind somebody else's server."""
