import random

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from tiny_presets import opinions

from cocolm_tf import CocoLMBackbone, CocoLMTextEmbedder, CocoLMTextEmbedderPreprocessor
from cocolm_tf.data.examples import Examples
from cocolm_tf.finetuning.batches import tokenized
from cocolm_tf.finetuning.models.pair_batches import pair_batches
from cocolm_tf.finetuning.models.text_embedder import cached_gradients
from cocolm_tf.losses import cosine_regression_loss, in_batch_negatives_loss
from cocolm_tf.ops.elementwise import dropout
from cocolm_tf.training.optimization import AdamW

FIRST, SECOND, THIRD = ([text for text, _ in opinions(12, seed=seed)] for seed in (5, 6, 7))
COSINES = np.linspace(-1, 1, 12)


def make(tiny_preset, **options) -> CocoLMTextEmbedder:
    random.seed(1)
    return CocoLMTextEmbedder.from_preset(tiny_preset, **options)


@pytest.fixture(scope="module")
def embedder(tiny_preset) -> CocoLMTextEmbedder:
    """One that computes a few batches at once, untraced, and does not learn."""
    embedder = make(tiny_preset)
    embedder.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    return embedder


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vectors_are_pooled_states_of_unit_length(tiny_preset, pooling):
    embedder = make(tiny_preset, pooling_mode=pooling, dimensions=[8, 4])
    embedder.compile(run_eagerly=True)
    features = embedder.preprocessor(FIRST)
    states, mask = np.array(embedder.backbone(features)), np.array(features["padding_mask"])
    pooled = states[:, 0]
    if pooling == "mean":
        pooled = np.array([row[real].mean(axis=0) for row, real in zip(states, mask, strict=True)])
    expected = pooled[:, :8] / np.linalg.norm(pooled[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(embedder(features), expected, atol=1e-5)
    np.testing.assert_allclose(embedder.predict(FIRST, verbose=0), expected, atol=1e-5)
    # What learns is what is predicted, whichever way it is computed.
    x = embedder.preprocess_samples((FIRST, SECOND))
    queries, documents = embedder._vectors(x, training=False)
    np.testing.assert_allclose(queries, pooled, atol=1e-5)
    assert documents.shape == (12, 1, 16)


def test_encode_text_takes_one_text_or_more(embedder):
    one, more = embedder.encode_text(FIRST[0], verbose=0), embedder.encode_text(FIRST, verbose=0)
    np.testing.assert_allclose(one, more[:1], atol=1e-5)
    similarity = embedder.similarity(one, more)
    assert similarity.shape == (1, 12) and similarity[0, 0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("columns", [(FIRST, SECOND), (FIRST, SECOND, THIRD, FIRST)])
def test_the_loss_of_pairs_and_triplets(tiny_preset, columns):
    embedder = make(tiny_preset, dimensions=[16, 4], temperature=0.2)
    embedder.compile(run_eagerly=True)
    vectors = [embedder.backbone(embedder.preprocessor(column)) for column in columns]
    masks = [embedder.preprocessor(column)["padding_mask"] for column in columns]
    pooled = [
        tf.stack([tf.reduce_mean(row[real], axis=0) for row, real in zip(one, mask, strict=True)])
        for one, mask in zip(vectors, masks, strict=True)
    ]
    texts = np.array(columns[1:]).T
    numbers = np.unique(texts, return_inverse=True)[1].reshape(texts.shape)
    expected = in_batch_negatives_loss(
        pooled[0], tf.stack(pooled[1:], axis=1), 0.2, document_keys=numbers, dimensions=(16, 4)
    )
    assert embedder.evaluate(columns, batch_size=12, verbose=0) == pytest.approx(
        float(expected), rel=1e-4
    )


def test_the_loss_of_cosines(embedder):
    first, second = (embedder.predict(column, verbose=0) for column in (FIRST, SECOND))
    expected = float(cosine_regression_loss(first, second, COSINES))
    loss = embedder.evaluate((FIRST, SECOND), COSINES, batch_size=5, verbose=0)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_learns_which_texts_belong_together(tiny_preset):
    embedder = make(tiny_preset, dimensions=[16, 8])
    embedder.optimizer.learning_rate = 5e-3
    embedder.fit((FIRST, SECOND, THIRD), batch_size=12, epochs=60, verbose=0)
    first, second = (embedder.predict(column, verbose=0) for column in (FIRST, SECOND))
    for width in (16, 8):
        cut = [
            one[:, :width] / np.linalg.norm(one[:, :width], axis=1, keepdims=True)
            for one in (first, second)
        ]
        found = embedder.similarity(*cut).argmax(axis=1)
        assert (found == np.arange(12)).mean() > 0.7


def without_dropout(tiny_preset, **options) -> CocoLMTextEmbedder:
    """One that replicas and micro-batches, which draw their own dropout, compute alike."""
    backbone = CocoLMBackbone.from_preset(tiny_preset, dropout=0.0)
    preprocessor = CocoLMTextEmbedderPreprocessor.from_preset(tiny_preset)
    return CocoLMTextEmbedder(backbone, preprocessor, **options)


@pytest.mark.parametrize(("cosines", "jit_compile"), [(None, True), (COSINES, False)])
def test_cached_gradients_are_those_of_the_large_batch(tiny_preset, cosines, jit_compile):
    columns = (FIRST, SECOND, THIRD)
    weights = np.float32([1, 2, 0, 1, 0.5, 1, 1, 1, 0, 0, 1, 1])

    def learned(micro_batches, jit_compile=False):
        embedder = without_dropout(tiny_preset, dimensions=[16, 4], pooling_mode="cls")
        embedder.compile(
            keras.optimizers.SGD(1.0),
            micro_batches=micro_batches,
            jit_compile=jit_compile,
            run_eagerly=not jit_compile,
        )
        history = embedder.fit(
            columns, cosines, batch_size=12, sample_weight=weights, shuffle=False, verbose=0
        )
        variables = [np.array(variable) for variable in embedder.trainable_variables]
        return history.history["loss"], variables

    expected_loss, expected = learned(1)
    loss, found = learned(3, jit_compile)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-6)


def test_both_passes_of_cached_gradients_drop_the_same():
    kernel = tf.Variable(np.random.default_rng(0).normal(size=[4, 3]), dtype=tf.float32)
    batch = tf.constant(np.random.default_rng(1).normal(size=[6, 4]), tf.float32)

    def encode(rows, number):
        return [dropout(rows @ kernel, 0.5, tf.stack([number, 7]))]

    def objective(vectors):
        similarities = tf.matmul(vectors[0], vectors[0], transpose_b=True)
        return tf.reduce_sum(tf.sin(similarities)), vectors[0]

    vectors, (gradient,) = cached_gradients(
        encode, objective, batch, [tf.TensorSpec([2, 3])], [kernel], 3
    )
    # An element is zero where it was dropped: with the same drops, this is the gradient.
    kept = tf.cast(vectors != 0, tf.float32) * 2
    assert 0 < float(tf.reduce_mean(kept)) < 2
    with tf.GradientTape() as tape:
        value, _ = objective([batch @ kernel * kept])
    np.testing.assert_allclose(gradient, tape.gradient(value, kernel), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cosines", [None, COSINES])
def test_several_replicas_learn_as_one(tiny_preset, mirrored_strategy, cosines):
    weights = np.float32([1, 2, 0, 1, 0.5, 1, 1, 1, 0, 0, 1, 1])

    def trained(micro_batches):
        random.seed(3)
        embedder = without_dropout(tiny_preset)
        # Without much of an epsilon, the first step is the sign of the gradient.
        embedder.compile(AdamW(1e-2, epsilon=1e-2), micro_batches=micro_batches, run_eagerly=True)
        history = embedder.fit(
            (FIRST, SECOND), cosines, batch_size=12, sample_weight=weights, verbose=0
        )
        variables = [np.array(variable) for variable in embedder.trainable_variables]
        return history.history["loss"], variables

    expected_loss, alone = trained(1)
    with mirrored_strategy.scope():
        loss, together = trained(2)
    if cosines is None:  # Each replica's, of the whole batch's.
        assert loss == pytest.approx(expected_loss, rel=1e-5)
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-6)


def test_a_preset_keeps_what_it_was_trained_with(tiny_preset, tmp_path):
    embedder = make(tiny_preset, pooling_mode="cls", dimensions=[8, 4], temperature=0.1)
    inputs = embedder.preprocessor(FIRST)
    expected = np.array(embedder(inputs))
    embedder.save_to_preset(str(tmp_path / "preset"))
    loaded = keras_hub.models.TextEmbedder.from_preset(str(tmp_path / "preset"))
    assert isinstance(loaded, CocoLMTextEmbedder)
    assert (loaded.pooling_mode, loaded.dimensions, loaded.temperature) == ("cls", [8, 4], 0.1)
    np.testing.assert_allclose(loaded(inputs), expected, atol=1e-6)
    short = CocoLMTextEmbedder.from_preset(str(tmp_path / "preset"), dimensions=[4])
    cut = expected[:, :4] / np.linalg.norm(expected[:, :4], axis=1, keepdims=True)
    np.testing.assert_allclose(short(inputs), cut, atol=1e-5)


def test_datasets_of_texts_and_of_tokens(embedder):
    expected = embedder.evaluate((FIRST, SECOND), COSINES, batch_size=6, verbose=0)
    texts = tf.data.Dataset.from_tensor_slices(((FIRST, SECOND), COSINES)).batch(6)
    tokens = texts.map(embedder.preprocess_samples)
    history = embedder.fit(tokens, validation_data=texts, verbose=0).history
    assert set(history) == {"loss", "val_loss"}
    assert history["val_loss"][0] == pytest.approx(expected, rel=1e-5)


def test_mixed_precision_embeds_in_float32(tiny_preset):
    embedder = make(tiny_preset, dtype="mixed_bfloat16")
    embedder.compile(run_eagerly=True)
    embedder.fit((FIRST, SECOND), batch_size=12, verbose=0)
    assert embedder.predict(FIRST, verbose=0).dtype == np.float32


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"pooling_mode": "max"}, "pooling_mode='max' is none of cls, mean"),
        ({"dimensions": [17]}, "hidden states have 1 to 16 of them"),
        ({"dimensions": [4, 0]}, "hidden states have 1 to 16 of them"),
        ({"temperature": 0.0}, "temperature=0.0 must be more than 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tiny_preset, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        CocoLMTextEmbedder.from_preset(tiny_preset, **options)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda e: e.fit((FIRST, SECOND), [7.0] * 12), "label 0 is 7.0, not a number from -1 to 1"),
        (lambda e: e.fit((FIRST, SECOND[:3])), "12 first texts, 3 second texts"),
        (lambda e: e.fit((FIRST, SECOND, THIRD[:3])), "columns of .12, 12, 3. texts"),
        (lambda e: e.fit(FIRST), "texts alone teach nothing"),
        (lambda e: e.predict((FIRST, SECOND)), "texts are embedded one by one"),
        (lambda e: e.compile(loss="mse"), "loss is not to be given"),
        (lambda e: e.compile(micro_batches=0), "micro_batches=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(embedder, call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(embedder)


def test_every_pair_is_in_an_epoch_once_and_batches_have_few_shapes(preprocessor):
    texts = [" ".join(["a"] * (1 + number % 20)) for number in range(203)]
    columns = [
        tokenized(preprocessor, Examples(column)) for column in (texts, texts[::-1], texts[::-1])
    ]
    cosines = np.arange(203, dtype=np.float32)
    batches, steps = pair_batches(columns, cosines, 4, seed=0, buckets=3)

    def epoch(start):
        return list(batches.skip(start * steps).take(steps))

    first, second = epoch(0), epoch(1)
    seen = [y.numpy()[weights > 0] for _, y, weights in first]
    assert sorted(np.concatenate(seen)) == [*range(203)]
    again = [y.numpy()[weights > 0] for _, y, weights in second]
    assert sorted(np.concatenate(again)) == [*range(203)]
    assert [*np.concatenate(seen)] != [*np.concatenate(again)]
    shapes = {tuple(feature["token_ids"].shape for feature in x.values()) for x, _, _ in first}
    assert 1 < len(shapes) <= 3 and all(queries[0] == 4 for queries, _ in shapes)
    for x, y, _ in first[:3]:
        for row, number in enumerate(y.numpy().astype(int)):
            expected = preprocessor([texts[number], *[texts[::-1][number]] * 2])
            found = [x["queries"]["token_ids"][row], *x["documents"]["token_ids"][row]]
            for one, whole in zip(found, expected["token_ids"], strict=True):
                np.testing.assert_array_equal(one, whole[: len(one)])
                assert not (whole[len(one) :] != 1).numpy().any()


def test_row_weights_of_pair_batches(preprocessor):
    columns = [tokenized(preprocessor, Examples(FIRST))] * 2
    weights = np.arange(1, 13, dtype=np.float32)
    batches, steps = pair_batches(columns, None, 5, seed=0, weights=weights)
    found = np.concatenate([one.numpy() for _, _, one in batches.take(steps)])
    assert sorted(found[found > 0]) == [*weights] and len(found) == 15


def test_pairs_to_measure_on_are_one_epoch(preprocessor):
    columns = [tokenized(preprocessor, Examples(FIRST))] * 2
    batches, steps = pair_batches(columns, None, 5, seed=None, weights=np.arange(1, 13))
    found = np.concatenate([one.numpy() for _, _, one in batches])
    assert sorted(found[found > 0]) == [*range(1, 13)] and len(found) == 5 * steps == 15
