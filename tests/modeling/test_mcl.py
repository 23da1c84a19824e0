import itertools
from typing import Any

import keras
import modeling_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from modeling_models import MASK, PAD, make_auxiliary, make_backbone, randomize, tensors, weights_of

from cocolm_tf.data.augmentation import SpecialTokens
from cocolm_tf.data.mcl_augmentation import MCLAugmentation
from cocolm_tf.modeling import masked_lm
from cocolm_tf.modeling.mcl import Course, DetectorInput, MCLPretrainer

TASKS = ("mlm", "slm", "rtd", "std", "itd", "re_mlm", "re_slm", "re_rtd", "re_std")
GENERATOR = ("mlm", "slm", "re_mlm", "re_slm")
SELF_SUPERVISION = {f"re_{task}_weight": 0.0 for task in ("mlm", "slm", "rtd", "std")}
RTD_ONLY = SELF_SUPERVISION | {"slm_weight": 0.0, "std_weight": 0.0, "itd_weight": 0.0}


def make_pretrainer(
    auxiliary_dropout: float = 0.0,
    dropout: float = 0.0,
    dtype: str | None = None,
    num_layers: int = 1,
    **options: Any,
) -> MCLPretrainer:
    main = make_backbone(num_layers, dropout=dropout, dtype=dtype)
    auxiliary = make_auxiliary(main, dropout=auxiliary_dropout, dtype=dtype)
    pretrainer = MCLPretrainer(main, auxiliary, MASK, **options)
    randomize(pretrainer)
    return pretrainer


@pytest.fixture(scope="module")
def whole() -> MCLPretrainer:
    """All five courses, without dropout; tests leave its weights as they are."""
    return make_pretrainer()


def make_batch(sequences: int = 6, length: int = 14, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(3, MASK, (sequences, length)).astype(np.int32)
    real = np.arange(length) < np.resize([length, 9, 4, 12], sequences)[:, np.newaxis]
    token_ids[:, 0] = 0
    token_ids = np.where(real, token_ids, PAD)
    augment = MCLAugmentation(SpecialTokens(mask=MASK), 0.3, 0.4, 0.2)
    batch = augment(tf.constant(token_ids), tf.constant([seed, 7]))
    return {name: value.numpy() for name, value in batch.items()}


class Watched:
    """What a pretrainer's models read, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pretrainer: MCLPretrainer) -> None:
        self.courses: list[dict[str, Course]] = []
        self.samples: list[dict[str, np.ndarray]] = []
        self.inputs: list[dict[str, DetectorInput]] = []
        self.logits: list[dict[str, np.ndarray]] = []
        predict, detect = pretrainer._predict, pretrainer._detect

        def watched_predict(courses, training, score, sample):
            found = predict(courses, training, score, sample)
            self.courses.append(courses)
            if sample and found:
                self.samples.append({name: rows[-1].numpy() for name, rows in found.items()})
            return found

        def watched_detect(inputs, training):
            found = detect(inputs, training)
            self.inputs.append(inputs)
            self.logits.append({name: logits.numpy() for name, logits in found.items()})
            return found

        monkeypatch.setattr(pretrainer, "_predict", watched_predict)
        monkeypatch.setattr(pretrainer, "_detect", watched_detect)


def chosen(batch, name: str):
    """Row, slot and position of each used slot."""
    positions, weights = batch[f"{name}_positions"], batch[f"{name}_weights"]
    for row, slot in np.ndindex(weights.shape):
        if weights[row, slot]:
            yield row, slot, positions[row, slot]


# What both models read, written down in plain Python.


@settings(max_examples=5)
@given(number=st.integers(0, 10_000))
def test_the_models_read_what_the_courses_say(whole: MCLPretrainer, number: int):
    with pytest.MonkeyPatch.context() as patch:
        watched, batch = Watched(patch, whole), make_batch(seed=number)
        whole.compute(tensors(batch), training=True)
    original, is_real = batch["token_ids"], batch["padding_mask"]
    first = {**watched.courses[0], **watched.courses[1]}
    reads = {"rtd": original.copy(), "std": original.copy()}
    fills = {"rtd": original.copy(), "std": original.copy(), "itd": batch["inserted_token_ids"]}
    fills["itd"] = fills["itd"].copy()
    samples = watched.samples[0] | watched.samples[1]
    slots = batch["masked_positions"].shape[1]
    for name, view in (("rtd", "masked"), ("std", "swapped"), ("itd", "inserted")):
        for row, slot, position in chosen(batch, view):
            fills[name][row, position] = samples[name][row * slots + slot]
            if name == "rtd":
                reads[name][row, position] = MASK
            if name == "std":
                reads[name][row, position] = batch["swapped_tokens"][row, slot]
    reads["itd"] = batch["inserted_token_ids"]
    labels = {name: fills[name] == original for name in ("rtd", "std")}
    labels["itd"] = np.ones_like(is_real)
    for row, _, position in chosen(batch, "inserted"):
        labels["itd"][row, position] = False
    lines, logits = watched.inputs[0], watched.logits[0]
    for name in ("rtd", "std", "itd"):
        np.testing.assert_array_equal(first[name].token_ids, reads[name])
        np.testing.assert_array_equal(lines[name].token_ids, fills[name])
        np.testing.assert_array_equal(lines[name].is_original, labels[name])
    # Special tokens and padding are never touched.
    for name in ("rtd", "std"):
        special = np.isin(original, [0, PAD, 2])
        for tokens in (reads[name], fills[name]):
            assert (tokens[special] == original[special]).all()
    # The second lessons.
    again, revised = watched.courses[2], watched.inputs[1]
    for name in ("rtd", "std"):
        tries, judged = original.copy(), fills[name].copy()
        failed = np.zeros_like(is_real)
        for row, column in np.argwhere(is_real):
            says_original = logits[name][row, column] > 0
            if not labels[name][row, column] and not says_original:
                failed[row, column] = True
                tries[row, column] = reads[name][row, column]
                judged[row, column] = original[row, column]
        np.testing.assert_array_equal(again[name].token_ids, tries)
        np.testing.assert_array_equal(revised[name].token_ids, judged)
        expected = np.zeros_like(again[name].weights)
        for row, slot, position in chosen(batch, "masked" if name == "rtd" else "swapped"):
            expected[row, slot] = failed[row, position]
        np.testing.assert_array_equal(again[name].weights, expected)
        assert expected.sum() == failed.sum()  # only chosen tokens can be
        np.testing.assert_array_equal(revised[name].is_original, labels[name])


def test_an_inserted_token_is_not_the_original_even_if_it_is_the_mask(monkeypatch):
    pretrainer = make_pretrainer()
    monkeypatch.setattr(masked_lm, "sample_tokens", lambda logits, *_: tf.fill([len(logits)], MASK))
    watched, batch = Watched(monkeypatch, pretrainer), make_batch()
    pretrainer.compute(tensors(batch), training=True)
    is_original = watched.inputs[0]["itd"].is_original.numpy()
    inserted = batch["inserted_token_ids"] == MASK
    assert inserted.any() and (is_original == ~inserted).all()


def test_a_swapped_token_that_is_guessed_right_is_the_original(monkeypatch):
    """Labels compare tokens and not places, also where two tokens are equal."""
    pretrainer, batch = make_pretrainer(), make_batch()
    batch["token_ids"][0, 1:-1] = 7
    batch["swapped_tokens"][0] = 7
    monkeypatch.setattr(masked_lm, "sample_tokens", lambda logits, *_: tf.fill([len(logits)], 7))
    watched = Watched(monkeypatch, pretrainer)
    pretrainer.compute(tensors(batch), training=True)
    assert watched.inputs[0]["std"].is_original.numpy()[0].all()


# The losses.


def binary_losses(logits: np.ndarray, is_original: np.ndarray) -> np.ndarray:
    probability = reference.sigmoid(np.float64(logits))
    return -np.log(np.where(is_original, probability, 1 - probability))


def test_losses_equal_the_equations(whole: MCLPretrainer, monkeypatch):
    watched, batch = Watched(monkeypatch, whole), make_batch()
    losses, measures = whole.compute(tensors(batch), training=True)
    heads = {"rtd": whole.copy_head, "std": whole.swap_head, "itd": whole.insert_head}
    expected, verdicts = {}, {}

    def cross_entropy(course: Course) -> float:
        read, original, is_real, positions, weights = (np.asarray(x) for x in course)
        inputs = {"token_ids": read, "padding_mask": is_real}
        logits = reference.masked_lm_logits(whole.auxiliary, inputs, positions)
        labels = np.take_along_axis(original, positions, axis=1)
        return reference.mean(reference.cross_entropy(logits, labels), weights)

    def logits(name: str, lines: DetectorInput) -> np.ndarray:
        hidden = reference.encode(whole.backbone, np.asarray(lines[0]), np.asarray(lines[2]))
        return hidden @ reference.array(heads[name].kernel)

    for name, task in (("rtd", "mlm"), ("std", "slm")):
        expected[f"{task}_loss"] = cross_entropy(watched.courses[0][name])
        expected[f"re_{task}_loss"] = cross_entropy(watched.courses[2][name])
    for name, lines in watched.inputs[0].items():
        verdicts[name] = logits(name, lines)
        errors = binary_losses(verdicts[name], lines.is_original)
        expected[f"{name}_loss"] = errors[np.asarray(lines.is_real)].mean()
    for name, lines in watched.inputs[1].items():
        first = np.asarray(watched.inputs[0][name].is_original)
        wrong = np.asarray(lines.is_real) & (first != (verdicts[name] > 0))
        errors = binary_losses(logits(name, lines), first)
        expected[f"re_{name}_loss"] = errors[wrong].mean()
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value, rel=1e-4), name
    assert sorted([*losses, *measures]) == sorted(whole.meter_names())
    assert whole.loss_weights.keys() == losses.keys() == whole.denominators(batch).keys()
    for name in ("rtd", "std"):
        kinds = [float(measures[f"{name}_pos{kind}"][0]) for kind in (1, 2, 3, 4)]
        assert sum(kinds) == pytest.approx(1)
        lines, real = watched.inputs[0][name], batch["padding_mask"]
        replaced = real & ~np.asarray(lines.is_original)
        value, weight = measures[f"{name}_accuracy_replaced"]
        assert float(weight) == replaced.sum()
        assert float(value) == pytest.approx((verdicts[name] <= 0)[replaced].mean())


def test_mistakes_about_chosen_tokens_alone_may_be_revised():
    batch, counts = make_batch(), []
    for option in (True, False):
        pretrainer = make_pretrainer(revise_all_tokens=option)
        _, measures = pretrainer.compute(tensors(batch), training=True)
        rates = {kind: measures[f"rtd_{kind}"] for kind in ("pos2", "pos3")}
        counts.append(float(measures["re_rtd_accuracy"][1]))
    of_chosen = sum(float(rate * weight) for rate, weight in rates.values())
    assert counts[1] == pytest.approx(of_chosen) and counts[0] > counts[1] > 0


def test_swapping_is_retried_as_it_is_or_masked(monkeypatch):
    for masked in (False, True):
        pretrainer = make_pretrainer(re_slm_masked=masked)
        watched = Watched(monkeypatch, pretrainer)
        pretrainer.compute(tensors(make_batch()), training=True)
        read = watched.courses[2]["std"].token_ids.numpy()
        assert (read == MASK).any() == masked


def test_nothing_to_learn_from_gives_zero():
    batch = make_batch()
    for name in batch:
        if name.endswith("weights"):
            batch[name] = np.zeros_like(batch[name])
    losses, _ = make_pretrainer().compute(tensors(batch), training=True)
    assert losses["mlm_loss"] == losses["slm_loss"] == losses["re_mlm_loss"] == 0
    assert all(np.isfinite(loss) for loss in losses.values())


# Who learns from what.


@pytest.fixture(scope="module")
def moved(whole: MCLPretrainer) -> dict[str, set[int]]:
    """The identities of the variables that each loss has a gradient to."""
    variables = whole.trainable_variables
    with tf.GradientTape(persistent=True) as tape:
        losses, _ = whole.compute(tensors(make_batch()), training=True)
    found = {}
    for task in TASKS:
        gradients = tape.gradient(losses[f"{task}_loss"], [v.value for v in variables])
        found[task] = {
            id(variable)
            for variable, gradient in zip(variables, gradients, strict=True)
            if gradient is not None and np.any(tf.convert_to_tensor(gradient))
        }
    return found


def trained(model) -> set[int]:
    """All that learning can move: a key's bias changes no attention."""
    return {id(v) for v in model.trainable_variables if not v.path.endswith("key/bias")}


@pytest.mark.parametrize("task", TASKS)
def test_each_course_trains_what_it_should(whole: MCLPretrainer, moved, task: str):
    heads = {"rtd": whole.copy_head, "std": whole.swap_head, "itd": whole.insert_head}
    if task in GENERATOR:
        assert moved[task] >= trained(whole.auxiliary)
        assert moved[task] <= {id(v) for v in whole.auxiliary.trainable_variables}
    else:
        head = heads[task.removeprefix("re_")]
        learns = trained(whole.backbone) | {id(head.kernel)}
        assert moved[task] >= learns
        everything = {id(v) for v in whole.backbone.trainable_variables} | {id(head.kernel)}
        assert moved[task] <= everything


def test_tasks_of_weight_zero_are_not_built():
    pretrainer = make_pretrainer(**RTD_ONLY)
    assert pretrainer.swap_head is pretrainer.insert_head is None
    assert list(pretrainer.loss_weights) == ["mlm_loss", "rtd_loss"]
    assert not pretrainer.communicates
    losses, measures = pretrainer.compute(
        {
            name: value
            for name, value in tensors(make_batch()).items()
            if not name.startswith(("swapped", "inserted"))
        },
        training=True,
    )
    assert sorted([*losses, *measures]) == sorted(pretrainer.meter_names())
    assert make_pretrainer(**SELF_SUPERVISION, rtd_weight=0.0).copy_head is None
    shared = make_pretrainer(shared_head=True)
    assert shared.swap_head is shared.insert_head is None
    paths = [v.path for v in shared.trainable_variables if v.path.endswith("_head/kernel")]
    assert paths == ["copy_head/kernel"]


@pytest.mark.parametrize(
    ("options", "generated", "detected"),
    [
        # How many courses are stacked in each pass of either model.
        ({"sampling": "train"}, [2, 1, 2], [3, 2]),
        ({"auxiliary_dropout": 0.1}, [2, 3, 2], [3, 2]),
        (RTD_ONLY, [1], [1]),
        (SELF_SUPERVISION | {"slm_weight": 0.0, "std_weight": 0.0}, [1, 1], [2]),
        ({"re_slm_weight": 0.0, "re_std_weight": 0.0}, [2, 1, 1], [3, 1]),
        ({"slm_weight": 0.0, "re_slm_weight": 0.0}, [1, 2, 1], [3, 2]),
    ],
    ids=str,
)
def test_passes_hold_only_the_courses_that_are_trained(options, generated, detected, monkeypatch):
    pretrainer = make_pretrainer(**options)
    watched = Watched(monkeypatch, pretrainer)
    pretrainer.compute(tensors(make_batch()), training=True)
    assert [len(courses) for courses in watched.courses if courses] == generated
    assert [len(lines) for lines in watched.inputs if lines] == detected


# The step.


def step(pretrainer: MCLPretrainer, batch, **options) -> list[np.ndarray]:
    """Metrics and weights after one update."""
    pretrainer.compile(keras.optimizers.SGD(0.1), clip_norm=1.0, **options)
    if pretrainer.compile_step:
        dataset = tf.data.Dataset.from_tensors(batch).repeat()
        pretrainer.make_train_function()(iter(dataset))
    else:
        pretrainer.train_step(tensors(batch))
    metrics = pretrainer.get_metrics_result()
    return [*(np.asarray(value) for value in metrics.values()), *weights_of(pretrainer)]


def test_a_compiled_step_equals_the_uncompiled_one(likeliest_samples):
    plain, compiled = (
        step(make_pretrainer(), make_batch(), jit_compile=jit) for jit in (False, True)
    )
    for one, other in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_self_supervision_is_the_same_in_micro_batches(likeliest_samples):
    one, two = (
        step(make_pretrainer(**SELF_SUPERVISION), make_batch(), micro_batches=parts)
        for parts in (1, 2)
    )
    for whole, cut in zip(one, two, strict=True):
        np.testing.assert_allclose(cut, whole, rtol=1e-3, atol=1e-5)


def test_corrections_are_means_of_micro_batches(likeliest_samples):
    pretrainer, batch = make_pretrainer(), make_batch()
    parts = [
        {name: value[rows] for name, value in batch.items()} for rows in ([0, 1, 2], [3, 4, 5])
    ]
    losses = [pretrainer.compute(tensors(part), training=True)[0] for part in parts]
    pretrainer.compile(keras.optimizers.SGD(0.0), micro_batches=2)
    pretrainer.train_step(tensors(batch))
    metrics = pretrainer.get_metrics_result()
    for name in ("re_mlm_loss", "re_slm_loss", "re_rtd_loss", "re_std_loss"):
        assert float(metrics[name]) == pytest.approx(np.mean([x[name] for x in losses]), rel=1e-4)


@pytest.mark.parametrize("dtype", ["mixed_float16"])
def test_half_precision(dtype: str):
    losses, _ = make_pretrainer(dtype=dtype, dropout=0.1).compute(tensors(make_batch()), True)
    assert all(loss.dtype == tf.float32 and np.isfinite(loss) for loss in losses.values())


def test_chunks_of_logits_change_nothing():
    whole, chunked = (
        step(make_pretrainer(auxiliary_dropout=0.2, logit_chunk_rows=rows), make_batch())
        for rows in (0, 11)
    )
    for one, other in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_refuses_a_correction_of_no_course():
    for correction, course in (("re_mlm", "rtd"), ("re_rtd", "rtd"), ("re_std", "std")):
        others = {k: 0.0 for k in SELF_SUPERVISION if k != f"{correction}_weight"}
        with pytest.raises(ValueError, match=f"{correction}_weight needs {course}_weight"):
            make_pretrainer(**others, **{f"{course}_weight": 0.0})


def test_refuses_sampling_that_does_not_exist_or_fit():
    with pytest.raises(ValueError, match="eval, train, zero_dropout, not 'greedy'"):
        make_pretrainer(sampling="greedy")
    with pytest.raises(ValueError, match="needs an auxiliary model without dropout"):
        make_pretrainer(auxiliary_dropout=0.1, sampling="zero_dropout")


def test_seeds_and_meters_come_in_an_order():
    pretrainer = make_pretrainer()
    assert list(pretrainer.seed_generators()) == [
        pretrainer.sampling_seeds,
        pretrainer.backbone.seed_generator,
        pretrainer.auxiliary.backbone.seed_generator,
    ]
    names = pretrainer.meter_names()
    assert names[: len(TASKS)] == [f"{task}_loss" for task in TASKS]
    assert len(names) == len(set(names))
    pairs = itertools.product(("rtd", "std"), (1, 2, 3, 4))
    assert {f"{course}_pos{kind}" for course, kind in pairs} <= set(names)
