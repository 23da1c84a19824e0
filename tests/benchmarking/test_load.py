import threading
import time

import pytest

from cocolm_tf.benchmarking.load import answer_clients, texts_of_mixed_lengths


def test_clients_wait_for_their_answers():
    found = answer_clients(lambda text: time.sleep(0.01), ["a"], clients=1, seconds=0.2)
    # No faster than the answers come; how much slower is the machine's business.
    assert 0 < found["requests_per_second"] <= 100
    assert 10 <= found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]


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
