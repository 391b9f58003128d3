"""The server: an OpenAI-compatible HTTP API in front of a loaded model. Its default limits stand here."""

PORT = 8377
MAX_BODY_BYTES = 64 * 2**20  # of one request's body; `requests.BodyReader` enforces it
MAX_REQUESTS = 256  # that wait or are being answered; `scheduler.Scheduler` enforces it
GRACE_SECONDS = 30.0  # that running answers get when the server stops
