import keras
import numpy as np
import pytest

from cocolm_tf.finetuning.best_epoch import BestEpoch


class Listener:
    def __init__(self):
        self.heard = []

    def progress(self, share, note=""):
        self.heard.append((share, note))


def fit(measure, epochs=4, steps=3) -> tuple[BestEpoch, keras.Model, list]:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = np.ones([6, 2], np.float32)
    listener, weights = Listener(), []

    def measured():
        weights.append(np.array(model.layers[0].kernel))
        return measure(len(weights))

    best = BestEpoch(measured, epochs, steps, 6, listener)
    model.fit(x, x[:, 0], batch_size=2, epochs=epochs, callbacks=[best], verbose=0)
    return best, model, [weights, listener.heard]


def test_the_best_epochs_weights_come_back():
    scores = [0.2, 0.9, 0.9, 0.1]
    best, model, (weights, heard) = fit(lambda n: ({"dev": {"f1": scores[n - 1]}}, scores[n - 1]))
    assert best.best["epoch"] == 2 and best.best["score"] == 0.9
    assert [entry["score"] for entry in best.history] == scores
    assert not np.array_equal(model.layers[0].kernel, weights[1])
    best.restore()
    np.testing.assert_array_equal(model.layers[0].kernel, weights[1])
    assert best.examples_per_second > 0
    shares = [share for share, _ in heard]
    assert shares == pytest.approx([number / 12 for number in range(1, 13)])
    assert heard[0][1].startswith("epoch 1/4, loss ") and "dev 0.200" in heard[3][1]


def test_a_run_whose_outputs_are_not_finite_ends_with_the_best_so_far():
    def measure(number):
        if number > 1:
            raise FloatingPointError
        return {"dev": {"f1": 0.5}}, 0.5

    best, model, (weights, _) = fit(measure)
    assert best.diverged and len(weights) == 2 and best.best["epoch"] == 1
    best.restore()
    np.testing.assert_array_equal(model.layers[0].kernel, weights[0])


def test_a_run_that_never_was_finite_has_no_best():
    def measure(number):
        raise FloatingPointError

    best, _, (weights, _) = fit(measure)
    assert best.best is None and len(weights) == 1
