"""Notices a kernel that hangs, in the self-test: whoever waits for the device never comes back from
it, so another thread has to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watch:
    """Calls `hung(name)`, which does not return, where `over(name)` is not left in time."""

    def __init__(self, seconds: float, hung: Callable[[str], None]) -> None:
        self.seconds, self.hung = seconds, hung
        # Whoever has it may end the process, or say that there is no need to.
        self._lock = threading.Lock()
        self._over = ""

    @contextmanager
    def over(self, name: str) -> Iterator[None]:
        timer = threading.Timer(self.seconds, self._late, [name])
        timer.daemon = True
        self._over = name
        timer.start()
        try:
            yield
        finally:
            with self._lock:
                self._over = ""
            timer.cancel()

    def _late(self, name: str) -> None:
        with self._lock:
            if self._over == name:
                self.hung(name)
