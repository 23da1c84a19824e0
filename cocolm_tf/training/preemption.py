"""SIGTERM: the machine is wanted back, and a run is to leave nothing unsaved."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from cocolm_tf.errors import RestartableError


class StopSignal:
    """Looks out for SIGTERM while it is entered."""

    # Where there is nothing to save, the signal ends the program at once. Inside `deferred()` it is
    # noted in `received` only, for whoever can stop without a loss. Python sees no signal outside
    # its main thread; there this does nothing.

    def __init__(self) -> None:
        self.received = False
        self._is_deferred = False

    def __enter__(self) -> "StopSignal":
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGTERM, self._previous)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only notes the signal, until the block ends."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if not self._is_deferred:
            raise RestartableError(
                "stopped by SIGTERM while there was nothing to save: start again with the same "
                "flags to go on."
            )
