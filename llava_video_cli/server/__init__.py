"""The server: an OpenAI-compatible HTTP API in front of a loaded model."""
