import pytest
import tensorflow as tf

from cocolm_tf.modeling import masked_lm


@pytest.fixture
def likeliest_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacements that follow from the sequence alone, however the batch is cut."""
    monkeypatch.setattr(
        masked_lm,
        "sample_tokens",
        lambda logits, *_: tf.argmax(logits, axis=-1, output_type=tf.int32),
    )
