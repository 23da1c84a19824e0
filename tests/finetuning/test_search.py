import builtins
import itertools
import threading
import time

import pytest

from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.search import grid_search

GRID = {"optimizer.learning_rate": [1e-4, 2, 3e-4], "trainer.epochs": [2, 1]}


@pytest.mark.parametrize("at_once", [1, 3])
def test_every_combination_is_tried_once_and_the_best_is_found(at_once):
    tried, lock = [], threading.Lock()

    def score(values):
        with lock:
            tried.append(tuple(values.values()))
        return -abs(values["optimizer.learning_rate"] - 3e-4) - values["trainer.epochs"]

    best = grid_search(GRID, score, at_once)
    assert best == {"optimizer.learning_rate": 3e-4, "trainer.epochs": 1}
    assert isinstance(best["trainer.epochs"], int)
    assert sorted(tried) == sorted(itertools.product(*GRID.values()))


def test_a_search_begins_anew_in_the_same_order():
    orders = []
    for _ in range(2):
        order = []
        grid_search(GRID, lambda values, order=order: order.append(values) or 0.0)
        orders.append(order)
    assert orders[0] == orders[1] and len(orders[0]) == 6


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_mistake_ends_the_search(at_once):
    calls = []

    def score(values):
        calls.append(values)
        raise UserError("the flag is wrong.")

    with pytest.raises(UserError, match="the flag is wrong"):
        grid_search(GRID, score, at_once)
    assert len(calls) <= at_once


def test_others_stop_when_one_fails():
    begun = threading.Barrier(2)
    calls = []

    def score(values):
        calls.append(values)
        if len(calls) <= 2:
            begun.wait(timeout=60)
        if values == calls[0]:
            raise UserError("the flag is wrong.")
        time.sleep(0.5)
        return 0.0

    with pytest.raises(UserError, match="the flag is wrong"):
        grid_search(GRID, score, at_once=2)
    assert len(calls) == 2


def test_without_keras_tuner_it_says_what_to_install(monkeypatch):
    ordinary = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "keras_tuner":
            raise ImportError(name)
        return ordinary(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install 'cocolm-tf.search.'"):
        grid_search(GRID, lambda values: 0.0)
