"""Texts reach a model by batches of ours, whatever data loaders KerasHub finds installed."""

import types

import numpy as np
import pytest
from keras_hub.src.utils import pipeline_model

from cocolm_tf import CocoLMTextClassifier

TEXTS = ["a cat", "a dog saw the red house on its hill", "rain", "some bird sang to a dog of rain"]


@pytest.fixture
def with_grain(monkeypatch: pytest.MonkeyPatch) -> None:
    """KerasHub takes `grain` where it is there, and infers shapes of the first two batches."""

    class Dataset:
        @staticmethod
        def source(_):
            raise AssertionError("texts went through grain")

    names = ("MapDataset", "IterDataset", "DataLoader")
    kinds = {name: type(name, (Dataset,), {}) for name in names}
    monkeypatch.setattr(pipeline_model, "grain", types.SimpleNamespace(**kinds))


def test_texts_do_not_go_through_grain(with_grain, tiny_preset):
    model = CocoLMTextClassifier.from_preset(tiny_preset, num_classes=2, dropout=0.0)
    model.compile(run_eagerly=True)
    labels = [0, 1, 0, 1]
    model.fit(
        TEXTS, labels, batch_size=2, sample_weight=[1, 1, 2, 1], validation_data=(TEXTS, labels)
    )
    model.evaluate(TEXTS, labels, batch_size=1, verbose=0)
    whole = model.predict(TEXTS, batch_size=1, verbose=0)
    # Each of another width.
    single = np.concatenate([model.predict([text], verbose=0) for text in TEXTS])
    np.testing.assert_allclose(whole, single, atol=1e-5)
