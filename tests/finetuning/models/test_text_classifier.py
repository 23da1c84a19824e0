import random
import types
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pandas
import pytest
import tensorflow as tf
from keras_hub.src.utils import pipeline_model
from programs import run_python
from scipy.special import erf
from tiny_presets import opinions

from cocolm_tf import CocoLMBackbone, CocoLMTextClassifier, CocoLMTextClassifierPreprocessor

TEXTS, LABELS = map(list, zip(*opinions(12, seed=5), strict=True))


def make(tiny_preset: str, num_classes: int = 2, **options) -> CocoLMTextClassifier:
    """One that computes a few batches at once, untraced: `test_steps.py` has the graphs."""
    random.seed(1)
    model = CocoLMTextClassifier.from_preset(
        tiny_preset, num_classes=num_classes, **{"dropout": 0.0} | options
    )
    model.compile(run_eagerly=True)
    return model


@pytest.fixture(scope="module")
def classifier(tiny_preset) -> CocoLMTextClassifier:
    """With logits far enough apart to tell; tests leave it as it is."""
    model = make(tiny_preset)
    for variable in (*model.pooled_dense.variables, *model.output_dense.variables):
        variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    return model


def test_the_head_is_dense_gelu_output_on_the_first_token(classifier):
    inputs = classifier.preprocessor(TEXTS)
    hidden = np.array(classifier.backbone(inputs))[:, 0]
    dense, output = classifier.pooled_dense, classifier.output_dense
    x = hidden @ np.array(dense.kernel) + np.array(dense.bias)
    x = x * (1 + erf(x / np.sqrt(2))) / 2
    expected = x @ np.array(output.kernel) + np.array(output.bias)
    np.testing.assert_allclose(classifier(inputs), expected, rtol=1e-4, atol=1e-5)


def test_dropout_acts_before_and_after_the_dense_layer(tiny_preset):
    model = make(tiny_preset, dropout=0.5)
    inputs = model.preprocessor(TEXTS)
    dropped = [np.array(model(inputs, training=True)) for _ in range(2)]
    assert not np.allclose(*dropped)
    np.testing.assert_array_equal(model(inputs), model(inputs))
    assert model.pooled_dropout.rate == model.output_dropout.rate == 0.5


def test_learns_from_raw_strings(fine_tuned):
    classifier = CocoLMTextClassifier.from_preset(fine_tuned)
    texts, labels = map(list, zip(*opinions(60, seed=9), strict=True))
    found = np.argmax(classifier(classifier.preprocessor(texts)), axis=1)
    assert (found == labels).mean() > 0.9


def test_every_way_to_give_texts_is_the_same(classifier):
    expected = classifier(classifier.preprocessor(TEXTS))
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).batch(5)
    for texts in (TEXTS, np.array(TEXTS), pandas.Series(TEXTS), tf.constant(TEXTS), dataset):
        arguments = {} if texts is dataset else {"batch_size": 5}
        found = classifier.predict(texts, verbose=0, **arguments)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_way_to_give_pairs_is_the_same(classifier):
    second = TEXTS[::-1]
    expected = classifier(classifier.preprocessor(x=(TEXTS, second)))
    frame = pandas.DataFrame({"first": TEXTS, "second": second})
    dataset = tf.data.Dataset.from_tensor_slices(((TEXTS, second), LABELS)).batch(4)
    for pairs in ((TEXTS, second), (frame["first"], frame["second"]), frame):
        found = classifier.predict(pairs, verbose=0)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    by_columns = classifier.evaluate(frame, pandas.Series(LABELS), verbose=0)
    assert classifier.evaluate(dataset, verbose=0) == pytest.approx(by_columns, abs=1e-5)


def test_padding_that_all_rows_share_is_cut_off(classifier, sequence_length):
    x, y = classifier.preprocess_samples(tf.constant(["a cat", "a dog of rain"]), tf.constant([0]))
    whole = classifier.preprocessor(["a cat", "a dog of rain"])
    assert x["token_ids"].shape == (2, 8) and list(y.numpy()) == [0]
    np.testing.assert_allclose(classifier(x), classifier(whole), atol=1e-5)
    classifier.trim_padding = False
    x = classifier.preprocess_samples(tf.constant(["a cat"]))
    classifier.trim_padding = True
    assert x["token_ids"].shape == (1, sequence_length)


def test_tokens_are_taken_as_they_are(classifier, monkeypatch):
    x = {"token_ids": np.int32([[0, 5, 2, 1]]), "padding_mask": np.bool_([[1, 1, 1, 0]])}
    assert classifier.preprocess_samples(x) is x
    monkeypatch.setattr(classifier, "preprocessor", None)
    assert classifier.predict(x, verbose=0).shape == (1, 2)


def test_a_regression_minimizes_the_squared_error(tiny_preset):
    model = make(tiny_preset, num_classes=1)
    numbers = np.float32(LABELS) * 3 + 1
    found = np.array(model(model.preprocessor(x=(TEXTS, TEXTS))))
    assert found.shape == (len(TEXTS), 1)
    loss = model.evaluate((TEXTS, TEXTS), numbers, verbose=0)
    assert loss == pytest.approx(np.mean((found[:, 0] - numbers) ** 2), rel=1e-4)
    model.fit((TEXTS, TEXTS), numbers, batch_size=12, verbose=0)
    assert model.evaluate((TEXTS, TEXTS), numbers, verbose=0) < loss


def test_the_default_loss_is_the_cross_entropy(classifier):
    logits = np.array(classifier(classifier.preprocessor(TEXTS)))
    loss, accuracy = classifier.evaluate(TEXTS, LABELS, verbose=0)
    shares = tf.nn.softmax(logits).numpy()[np.arange(len(TEXTS)), LABELS]
    assert loss == pytest.approx(-np.log(shares).mean(), rel=1e-4)
    assert accuracy == pytest.approx((logits.argmax(1) == LABELS).mean())


def test_shares_of_classes_have_the_same_loss(tiny_preset):
    model = make(tiny_preset, activation="softmax")
    shares = np.array(model(model.preprocessor(TEXTS)))
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    loss, _ = model.evaluate(TEXTS, LABELS, verbose=0)
    expected = -np.log(shares[np.arange(len(TEXTS)), LABELS]).mean()
    assert loss == pytest.approx(expected, rel=1e-4)
    np.testing.assert_array_equal(model.probabilities(shares), shares)


def test_same_seed_same_model(tiny_preset):
    def made(seed, epochs=0):
        random.seed(seed)
        model = CocoLMTextClassifier.from_preset(tiny_preset, num_classes=2)
        model.compile(run_eagerly=True)
        if epochs:
            model.fit(TEXTS, LABELS, batch_size=6, epochs=epochs, verbose=0)
        return np.array(model(model.preprocessor(TEXTS)))

    np.testing.assert_array_equal(made(3, epochs=1), made(3, epochs=1))
    assert not np.allclose(made(3), made(4))


@pytest.mark.slow
def test_another_process_predicts_the_same(fine_tuned, tmp_path: Path):
    program = f"""
import numpy, cocolm_tf
classifier = cocolm_tf.CocoLMTextClassifier.from_preset({fine_tuned!r})
assert classifier.label_names == ["bad", "good"]
numpy.save({str(tmp_path / "found.npy")!r}, classifier.predict({TEXTS!r}, verbose=0))
"""
    run_python(program)
    expected = CocoLMTextClassifier.from_preset(fine_tuned).predict(TEXTS, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-6)


def test_the_preset_is_kerashubs(fine_tuned):
    classifier = keras_hub.models.TextClassifier.from_preset(fine_tuned)
    assert isinstance(classifier, CocoLMTextClassifier)
    assert classifier.label_names == ["bad", "good"]
    assert classifier.dropout == 0.0
    assert isinstance(CocoLMBackbone.from_preset(fine_tuned), CocoLMBackbone)


def test_the_presets_head_has_no_optimizer_in_it(fine_tuned):
    head = CocoLMTextClassifier.from_preset(fine_tuned)
    count = sum(v.value.shape.num_elements() for v in head.output_dense.variables)
    count += sum(v.value.shape.num_elements() for v in head.pooled_dense.variables)
    assert Path(fine_tuned, "task.weights.h5").stat().st_size < 4 * count + 60_000


def test_num_classes_asks_for_a_new_head(fine_tuned):
    random.seed(0)
    other = CocoLMTextClassifier.from_preset(fine_tuned, num_classes=3)
    assert other.output_shape == (None, 3) and other.label_names is None
    kept = CocoLMTextClassifier.from_preset(fine_tuned)
    for one, two in zip(
        other.backbone.trainable_variables, kept.backbone.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(one, two)
    assert not np.allclose(other.pooled_dense.kernel, kept.pooled_dense.kernel)


def test_weights_may_be_fresh(tiny_preset, classifier):
    fresh = CocoLMTextClassifier.from_preset(tiny_preset, load_weights=False, num_classes=2)
    kernel = "transformer_block_0/query/kernel"
    one, two = (
        next(v for v in model.backbone.variables if v.path.endswith(kernel))
        for model in (fresh, classifier)
    )
    assert not np.allclose(one, two)


def test_lora_learns_beside_the_encoder_and_is_saved_merged(tiny_preset, tmp_path: Path):
    classifier = make(tiny_preset)
    kernel = classifier.backbone.blocks[0].query._kernel
    before, parameters = np.array(kernel), classifier.count_params()
    classifier.backbone.enable_lora(2)
    names = {v.path.rpartition("/")[2] for v in classifier.backbone.trainable_variables}
    assert names == {"bias", "lora_kernel_a", "lora_kernel_b"}
    classifier.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
    classifier.fit(TEXTS, LABELS, verbose=0)
    np.testing.assert_array_equal(kernel, before)
    inputs = classifier.preprocessor(TEXTS)
    classifier.save_to_preset(str(tmp_path / "preset"))
    loaded = CocoLMTextClassifier.from_preset(str(tmp_path / "preset"))
    assert loaded.count_params() == parameters
    np.testing.assert_allclose(loaded(inputs), classifier(inputs), atol=1e-5)


def test_what_learned_in_mixed_precision_loads_at_any(tiny_preset, tmp_path):
    model = make(tiny_preset, dtype="mixed_bfloat16")
    model.fit(TEXTS, LABELS, verbose=0)
    inputs = model.preprocessor(TEXTS)
    saved, logits = str(tmp_path / "preset"), model(inputs)
    assert logits.dtype == "float32"
    model.save_to_preset(saved)
    for cls in (CocoLMTextClassifier, keras_hub.models.TextClassifier):
        loaded = cls.from_preset(saved)
        assert loaded.backbone.compute_dtype == "float32"
        np.testing.assert_allclose(loaded(inputs), logits, atol=0.05)
    same = CocoLMTextClassifier.from_preset(saved, dtype="mixed_bfloat16")
    np.testing.assert_allclose(same(inputs), logits, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"label_names": ["only"]}, "num_classes=2, but 1 label_names"),
    ],
)
def test_what_does_not_fit_is_refused(classifier, changes, complaint):
    arguments = {"backbone": classifier.backbone, "num_classes": 2} | changes
    with pytest.raises(ValueError, match=complaint):
        CocoLMTextClassifier(**arguments)


def test_a_preprocessor_longer_than_the_model_is_refused(classifier, monkeypatch):
    preprocessor = classifier.preprocessor
    monkeypatch.setattr(preprocessor, "sequence_length", 25)
    with pytest.raises(ValueError, match="sequence_length=25 is more than the backbone's"):
        CocoLMTextClassifier(classifier.backbone, 2, preprocessor)


@pytest.fixture
def handed_on(monkeypatch) -> list[dict]:
    """What `fit()` hands on to KerasHub, which then does nothing."""
    calls = []

    def fit(self, x=None, y=None, batch_size=None, **kwargs):
        calls.append({"x": x, "y": y, "batch_size": batch_size, **kwargs})

    monkeypatch.setattr(keras_hub.models.TextClassifier, "fit", fit, raising=False)
    return calls


LONGER = [f"{text} and a dog of rain" for text in TEXTS]


@pytest.mark.parametrize(
    "texts", [TEXTS, pandas.Series(TEXTS), (TEXTS, LONGER), np.array([TEXTS, LONGER]).T], ids=type
)
def test_fit_shuffles_texts_in_every_form(tiny_preset, handed_on, texts):
    numbers = np.arange(len(TEXTS))
    classifier = make(tiny_preset)
    # Any loss but the usual one takes any labels.
    classifier.compile(loss="mse")
    classifier.fit(texts, list(numbers), batch_size=5, epochs=2, verbose=0)
    (call,) = handed_on
    assert (call["steps_per_epoch"], call["epochs"], call["verbose"]) == (3, 2, 0)
    batches = [
        (np.array(x["token_ids"])[w > 0], np.array(y)[w > 0])
        for x, y, w in ((x, y, w.numpy()) for x, y, w in call["x"].take(6))
    ]
    labels = [y for _, y in batches]
    assert sorted(map(len, labels[:3])) == sorted(map(len, labels[3:])) == [2, 5, 5]
    for epoch in (labels[:3], labels[3:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), numbers)
    assert not np.array_equal(np.concatenate(labels[:3]), np.concatenate(labels[3:]))
    columns = (TEXTS, LONGER) if np.ndim(texts) == 2 or isinstance(texts, tuple) else (TEXTS,)
    whole = np.array(classifier.preprocessor(x=tuple(map(tf.constant, columns)))["token_ids"])
    for rows, numbers in batches:
        width = rows.shape[1]
        np.testing.assert_array_equal(rows, whole[numbers][:, :width])
        assert (whole[numbers][:, width:] == classifier.preprocessor.tokenizer.pad_token_id).all()


def test_texts_of_like_lengths_share_a_batch(classifier, handed_on):
    texts = ["a cat", "a cat saw the red house on its hill and then some bird"] * 64
    for trim_padding in (False, True):
        classifier.trim_padding = trim_padding
        classifier.fit(texts, [0, 1] * 64, batch_size=4)
    equal, bucketed = ([*call["x"].take(call["steps_per_epoch"])] for call in handed_on)
    assert len(bucketed) == len(equal) == 32
    assert all(len(set(y.numpy())) == 1 for _, y, _ in bucketed)
    assert {x["token_ids"].shape[1] for x, *_ in equal} == {classifier.preprocessor.sequence_length}


@pytest.mark.parametrize("arguments", [{"shuffle": False}, {"validation_split": 0.25}], ids=str)
def test_splits_and_order_are_kerashubs(classifier, handed_on, arguments):
    weights = np.ones(12, np.float32)
    classifier.fit(TEXTS, LABELS, batch_size=4, sample_weight=weights, **arguments)
    (call,) = handed_on
    assert list(call["x"]) == TEXTS and list(call["y"]) == LABELS and call["batch_size"] == 4
    assert call["sample_weight"] is weights
    assert all(call[name] is value for name, value in arguments.items())


def test_weights_of_rows_and_of_classes_go_with_their_rows(tiny_preset, handed_on):
    classifier = make(tiny_preset)
    classifier.compile(loss="mse")
    numbers = np.arange(12)
    classifier.fit(
        TEXTS, numbers, batch_size=4, sample_weight=numbers / 2, class_weight={3: 0.0, 5: 4.0}
    )
    (call,) = handed_on
    expected = numbers / 2
    expected[3], expected[5] = 0, 10
    for _, y, weights in call["x"].take(3):
        np.testing.assert_array_equal(weights, expected[y])


def test_tokens_and_datasets_are_handed_on(classifier, handed_on):
    dataset = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(4)
    classifier.fit(dataset, epochs=3)
    tokens = classifier.preprocessor(TEXTS)
    classifier.fit(tokens, LABELS)
    assert handed_on[0]["x"] is dataset and handed_on[0]["epochs"] == 3
    assert handed_on[1]["x"] is tokens and handed_on[1]["y"] is LABELS


NAMES = ["bad", "good"]


@pytest.fixture(scope="module")
def named(tiny_preset) -> CocoLMTextClassifier:
    """One that does not learn, so that tests may share it."""
    named = make(tiny_preset, label_names=NAMES)
    named.optimizer.learning_rate = 0.0
    return named


def test_names_are_labels(named, handed_on):
    named.fit(TEXTS, pandas.Series([NAMES[label] for label in LABELS]), batch_size=12)
    (batch,) = handed_on[0]["x"].take(1)
    rows = named.preprocessor(TEXTS)["token_ids"].numpy()[:, : batch[0]["token_ids"].shape[1]]
    labels = {tuple(row): label for row, label in zip(rows, LABELS, strict=True)}
    assert [labels[tuple(row)] for row in batch[0]["token_ids"].numpy()] == [*batch[1].numpy()]


def test_names_are_labels_wherever_labels_go(named):
    names = [NAMES[label] for label in LABELS]
    expected = named.evaluate(TEXTS, LABELS, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices((TEXTS, names)).batch(5)
    weights = np.ones(len(TEXTS))
    assert named.evaluate(TEXTS, names, verbose=0) == pytest.approx(expected)
    assert named.evaluate(dataset, verbose=0) == pytest.approx(expected, abs=1e-5)
    given = named.evaluate(pandas.Series(TEXTS), names, sample_weight=weights, verbose=0)
    assert given == pytest.approx(expected)
    # What Keras splits are arrays.
    history = named.fit(TEXTS, names, validation_split=0.5, verbose=0).history
    assert len(history["val_loss"]) == 1


def test_what_cannot_be_learned_from_is_said(named):
    for y, more, complaint in (
        ([*LABELS, 1], {}, "12 texts, but 13 labels"),
        ([label + 1 for label in LABELS], {}, "2 classes are 0 to 1: count them from 0"),
        (["fine"] * 12, {}, "label 0 is 'fine', none of bad, good"),
        (None, {}, "there are no labels"),
        (LABELS, {"sample_weight": np.ones(11)}, "12 texts, but 11 sample weights"),
        (LABELS, {"validation_data": (TEXTS, LABELS[:2])}, "12 texts, but 2 labels"),
        (LABELS, {"validation_data": (TEXTS, ["good"] * 11 + ["fine"])}, "label 11 is 'fine'"),
        ([*LABELS, 1], {"shuffle": False}, "12 texts, but 13 labels"),
    ):
        with pytest.raises(ValueError, match=complaint):
            named.fit(TEXTS, y, **more)
        if not more:
            with pytest.raises(ValueError, match=complaint):
                named.evaluate(TEXTS, y)


def test_what_is_no_text_is_said(named):
    for texts, complaint in (("a cat", "texts come in batches"), (["a", None], "text 1 is None")):
        for call in (lambda x: named.fit(x, [0, 1]), named.predict):
            with pytest.raises(ValueError, match=complaint):
                call(texts)
    with pytest.raises(ValueError, match="there are no texts"):
        named.predict([])


def test_a_datasets_labels_are_seen_in_the_end(named):
    dataset = tf.data.Dataset.from_tensor_slices((TEXTS, ["good", "fine"] * 6)).batch(4)
    with pytest.raises(ValueError, match="the dataset has a label that is no class"):
        named.fit(dataset, verbose=0)
    unbatched = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS))
    for call in (named.fit, named.evaluate, named.predict):
        with pytest.raises(ValueError, match="one text at a time"):
            call(unbatched)


def test_another_loss_takes_shares_of_classes(tiny_preset):
    model, loss = make(tiny_preset), keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, metrics=[], run_eagerly=True)
    model.fit(TEXTS, np.eye(2)[LABELS], batch_size=12, verbose=0)


def test_a_regression_learns_from_numbers(tiny_preset, handed_on):
    rater = CocoLMTextClassifier.from_preset(tiny_preset, num_classes=1)
    rater.fit(TEXTS, pandas.Series(LABELS), batch_size=12)
    (batch,) = handed_on[0]["x"].take(1)
    assert batch[1].dtype == tf.float32
    with pytest.raises(ValueError, match="label 1 is 'good', not a finite number"):
        rater.fit(TEXTS[:2], [1, "good"])


@pytest.fixture(scope="module")
def topics(tiny_preset: str) -> CocoLMTextClassifier:
    """Of several labels, with outputs far enough apart to tell."""
    classifier = make(
        tiny_preset,
        num_classes=3,
        label_names=["a", "b", "c"],
        multi_label=True,
        thresholds=[0.2, 0.5, 0.8],
    )
    classifier.output_dense.kernel.assign(np.random.default_rng(0).normal(size=[16, 3]))
    return classifier


def test_several_labels_have_binary_cross_entropies(topics, tmp_path):
    texts = ["a cat saw", "the dog", "some rain"]
    labels = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    outputs = topics.predict(texts, verbose=0)
    shares = 1 / (1 + np.exp(-outputs))
    np.testing.assert_allclose(topics.probabilities(outputs), shares, rtol=1e-5)
    expected = -np.where(labels, np.log(shares), np.log(1 - shares)).mean()
    loss, accuracy = topics.evaluate(texts, labels, verbose=0)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert accuracy == pytest.approx(((shares > 0.5) == labels).mean())
    names = [["a", "c"], [], ["b"]]
    assert topics.evaluate(texts, names, verbose=0)[0] == pytest.approx(loss)
    np.testing.assert_array_equal(topics.assigned(outputs), shares >= [0.2, 0.5, 0.8])
    topics.save_to_preset(tmp_path / "preset")
    again = CocoLMTextClassifier.from_preset(tmp_path / "preset")
    assert again.multi_label and again.thresholds == [0.2, 0.5, 0.8]
    np.testing.assert_allclose(again(again.preprocessor(texts)), outputs, atol=1e-5)
    fresh = CocoLMTextClassifier.from_preset(tmp_path / "preset", num_classes=2)
    assert not fresh.multi_label and fresh.thresholds is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "there are no labels"),
        ([["a"]], "2 texts, but labels of 1"),
        (["a", "b"], "row 0 has the labels 'a': give 0 or 1 for each of the 3 labels"),
        ([["a"], ["x"]], "row 1 has the label 'x', none of a, b, c"),
        ([[0, 1, 0], [0, 2, 0]], r"row 1 has the labels \[0, 2, 0\]"),
        ([[0, 1], [0, 1]], r"row 0 has the labels \[0, 1\]"),
    ],
)
def test_labels_that_are_none_are_named(topics, labels, message):
    with pytest.raises(ValueError, match=message):
        topics.fit(["a", "b"], labels)


def test_thresholds_go_with_several_labels(topics):
    for arguments in ({"multi_label": True, "thresholds": [0.5]}, {"thresholds": [0.5, 0.5]}):
        with pytest.raises(ValueError, match="thresholds="):
            CocoLMTextClassifier(topics.backbone, 2, **arguments)


WIDTHS = ["a cat", "a dog saw the red house on its hill", "rain", "some bird sang to a dog of rain"]


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
    model = make(tiny_preset)
    labels = [0, 1, 0, 1]
    model.fit(
        WIDTHS, labels, batch_size=2, sample_weight=[1, 1, 2, 1], validation_data=(WIDTHS, labels)
    )
    model.evaluate(WIDTHS, labels, batch_size=1, verbose=0)
    whole = model.predict(WIDTHS, batch_size=1, verbose=0)
    # Each of another width.
    single = np.concatenate([model.predict([text], verbose=0) for text in WIDTHS])
    np.testing.assert_allclose(whole, single, atol=1e-5)


FIRST, SECOND = ["a cat saw", "red house on its hill"], ["the dog", "a good bird sang"]


def test_single_texts(preprocessor, sequence_length):
    features = preprocessor(FIRST)
    expected = preprocessor.tokenizer.pack(
        preprocessor.tokenizer(FIRST), sequence_length=sequence_length
    )
    assert features["token_ids"].shape == (2, sequence_length)
    for name in ("token_ids", "padding_mask"):
        np.testing.assert_array_equal(features[name], expected[name])
    np.testing.assert_array_equal(preprocessor(FIRST[0])["token_ids"], expected["token_ids"][0])


def test_pairs_are_laid_out_as_the_released_models_want(preprocessor):
    tokenizer = preprocessor.tokenizer
    token_ids = preprocessor(x=(FIRST, SECOND))["token_ids"]
    for row, first, second in zip(token_ids, FIRST, SECOND, strict=True):
        wanted = [0, *tokenizer(first).numpy(), 2, 2, *tokenizer(second).numpy(), 2]
        np.testing.assert_array_equal(row[: len(wanted)], wanted)
        assert set(np.array(row[len(wanted) :])) <= {1}


@pytest.mark.parametrize(
    "pairs",
    [
        [[first, second] for first, second in zip(FIRST, SECOND, strict=True)],
        np.array([FIRST, SECOND]).T,
    ],
    ids=["lists", "array"],
)
def test_pairs_may_be_rows_of_two(preprocessor, pairs):
    np.testing.assert_array_equal(
        preprocessor(pairs)["token_ids"], preprocessor(x=(FIRST, SECOND))["token_ids"]
    )


def test_labels_and_weights_pass_through(preprocessor):
    x, y = preprocessor(FIRST, [0, 1])
    assert set(x) == {"token_ids", "padding_mask"} and list(np.array(y)) == [0, 1]
    _, y, weights = preprocessor(FIRST, [0, 1], [0.5, 1.0])
    assert list(np.array(weights)) == [0.5, 1.0]


def test_maps_over_a_dataset(preprocessor):
    dataset = tf.data.Dataset.from_tensor_slices(((FIRST, SECOND), [0, 1])).batch(2)
    ((x, y),) = dataset.map(preprocessor)
    np.testing.assert_array_equal(x["token_ids"], preprocessor(x=(FIRST, SECOND))["token_ids"])
    assert list(y.numpy()) == [0, 1]


def test_the_length_is_the_models_unless_said(tiny_preset, sequence_length):
    assert CocoLMTextClassifierPreprocessor.from_preset(tiny_preset).sequence_length == (
        sequence_length
    )
    short = CocoLMTextClassifierPreprocessor.from_preset(tiny_preset, sequence_length=7)
    token_ids = short(["a cat saw the red house on its hill"])["token_ids"]
    assert token_ids.shape == (1, 7) and token_ids[0, -1] == 2


def test_config_round_trip(preprocessor):
    again = type(preprocessor).from_config(preprocessor.get_config())
    assert again.sequence_length == preprocessor.sequence_length


def test_what_it_does_not_take(preprocessor):
    with pytest.raises(ValueError, match="not 3 texts"):
        preprocessor(x=(FIRST, FIRST, SECOND))
    with pytest.raises(ValueError, match="truncate='waterfall'"):
        type(preprocessor)(preprocessor.tokenizer, truncate="waterfall")
