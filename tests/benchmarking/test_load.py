import threading
import time

import pytest

from cocolm_tf.benchmarking.load import answer_clients, texts_of_mixed_lengths


def test_clients_wait_for_their_answers():
    lock = threading.Lock()

    def ask(text: str) -> None:
        with lock:
            time.sleep(0.01)

    alone = answer_clients(ask, ["a"], clients=1, seconds=0.3)
    assert alone["requests_per_second"] == pytest.approx(90, rel=0.35)
    assert 10 <= alone["p50_ms"] <= alone["p95_ms"] <= alone["p99_ms"]
    # One at a time is answered, so that each of four waits for the others.
    four = answer_clients(ask, ["a"], clients=4, seconds=0.3)
    assert four["p50_ms"] > 2.5 * alone["p50_ms"]


def test_as_many_ask_at_once_as_there_are_clients():
    together = threading.Barrier(3, timeout=10)
    asked = []

    def ask(text: str) -> None:
        asked.append(text)
        # Passed by no less than three.
        if len(asked) <= 3:
            together.wait()

    answer_clients(ask, ["a", "b"], clients=3, seconds=0.05)
    assert set(asked) == {"a", "b"}


def test_a_failure_is_raised():
    def ask(text: str) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        answer_clients(ask, ["a"], clients=2, seconds=5.0)


def test_texts_are_short_and_long_alike():
    texts = texts_of_mixed_lengths((str(n) for n in range(50)), count=2000, longest=64)
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) == 1 and max(lengths) in (63, 64)
    # As many below 8 as from there on.
    assert sum(length < 8 for length in lengths) / 2000 == pytest.approx(0.5, abs=0.05)
    words = " ".join(texts).split()
    assert words[:3] == ["0", "1", "2"] and words[50] == "0"
    again = texts_of_mixed_lengths((str(n) for n in range(50)), count=2000, longest=64)
    assert texts == again
