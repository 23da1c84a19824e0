"""The processes of a run, one a host: which of them writes, what they agree on, and SIGTERM."""

import contextlib
import re
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

import numpy as np
import tensorflow as tf

from cocolm_tf.errors import RestartableError

# The errors of a collective operation that waits for a lost worker.
_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)


class Workers:
    """The processes that share a run. Under most strategies there is one."""

    # Methods in which workers agree are called by all of them, in the same order: each waits for
    # the others.

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self.count, self.index = 1, 0
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = strategy.cluster_resolver
            cluster = resolver.cluster_spec().as_dict()
            chiefs, others = (len(cluster.get(job, [])) for job in ("chief", "worker"))
            self.count = max(1, chiefs + others)
            self.index = (resolver.task_id or 0) + (chiefs if resolver.task_type == "worker" else 0)

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that writes."""
        return self.index == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any worker."""
        return bool(self._sum(np.int32(flag))) if self.count > 1 else flag

    def sum(self, value: float) -> float:
        """The sum of the workers' values, in float32 where there are several."""
        return float(self._sum(np.float32(value))) if self.count > 1 else value

    def from_chief(self, values: list[np.ndarray]) -> list[np.ndarray]:
        """Gives every worker the chief's arrays, to the bit."""
        if self.count == 1:
            return values
        received = []
        for value in values:
            bits = np.atleast_1d(value).view(np.int32) * np.int32(self.is_chief)
            received.append(self._sum(bits).view(value.dtype).reshape(value.shape))
        return received

    def wait_for_all(self) -> None:
        """Waits until all workers have called it."""
        self.any(False)

    @contextlib.contextmanager
    def lost_worker_errors(self) -> Iterator[None]:
        """Turns the errors of a lost worker into one that says so."""
        try:
            yield
        except _LOST as error:
            if self.count == 1:
                raise
            raise RestartableError(
                f"worker {self.index} of {self.count} has lost another one, whose own output says "
                "why it ended: start all of them again with the same flags to go on from the last "
                f"checkpoint. (TensorFlow says: {_reason(error)})"
            ) from error

    def _sum(self, value: np.ndarray | np.generic) -> np.ndarray:
        return self._strategy.reduce("SUM", tf.convert_to_tensor(value), axis=None).numpy()


class StopSignal:
    """Handles SIGTERM within a `with` block."""

    # Where there is nothing to save, the signal ends the program at once. Inside `deferred()` it is
    # noted in `received` only, for code that can stop without a loss. Python sees no signal outside
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
        """Only notes the signal within the block."""
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


def _reason(error: tf.errors.OpError) -> str:
    found = re.search(r"ollective ops is aborted by: (.+)", str(error))
    return found[1] if found else type(error).__name__
