"""A call in its own thread, whose result or exception is fetched later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")
LOADING = "llvid-load"  # the name of the thread that loads a model


class Background(Generic[Result]):
    """Starts at once; the thread is a daemon, so the program can exit without waiting for it."""

    def __init__(self, name: str, call: Callable[..., Result], *arguments: object) -> None:
        self._outcome: list[Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, args=(call, *arguments), name=name, daemon=True)
        self._thread.start()

    def result(self) -> Result:
        """Wait, then return what the call returned or raise what it raised."""
        self.check(None)
        return self._outcome[0]

    def check(self, wait_seconds: float | None = 0.0) -> bool:
        """Return whether the call has ended within that time. Raises what it raised."""
        self._thread.join(wait_seconds)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def _work(self, call: Callable[..., Result], *arguments: object) -> None:
        try:
            self._outcome.append(call(*arguments))
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            self._error = error
