"""What the tests have timed, in a module that a contender's own process can import."""

import os
import threading
import time
from collections.abc import Callable

_spinners = []


def logged(name: str, path: str) -> Callable[[], str]:
    """Its calls write down when they began and ended."""

    def call() -> str:
        started = time.time()
        time.sleep(0.01)
        with open(path, "a") as file:
            file.write(f"{name} {started} {time.time()}\n")
        return name

    return call


def variable(name: str) -> Callable[[], str]:
    value = os.environ.get(name)
    return lambda: value


def spinning() -> Callable[[], None]:
    """A thread of it is busy all the time, also when it waits."""

    def spin() -> None:
        while True:
            pass

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    _spinners.append(thread)
    return lambda: None


def sleeping() -> Callable[[], None]:
    return lambda: None


def dying() -> Callable[[], None]:
    return lambda: os._exit(1)


def failing() -> Callable[[], None]:
    raise RuntimeError("it cannot be built")
