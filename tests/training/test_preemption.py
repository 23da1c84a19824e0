import os
import signal
import threading

import pytest

from cocolm_tf.errors import RestartableError
from cocolm_tf.training.workers import StopSignal


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_where_nothing_is_to_be_saved_it_ends_at_once():
    with pytest.raises(RestartableError, match="stopped by SIGTERM.*start again"), StopSignal():
        terminate()


def test_where_something_is_it_is_noted():
    with StopSignal() as stop:
        with stop.deferred():
            assert not stop.received
            terminate()
            terminate()
        assert stop.received
        with pytest.raises(RestartableError):
            terminate()


def test_what_was_there_before_comes_back():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:
        with StopSignal():
            pass
        terminate()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls == [1]


def test_another_thread_leaves_signals_alone():
    found = []

    def run() -> None:
        with StopSignal() as stop:
            found.append(stop.received)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]
    assert signal.getsignal(signal.SIGTERM) is before
