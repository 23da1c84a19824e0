import keras
import modeling_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from modeling_models import (
    MASK,
    SIZES,
    make_auxiliary,
    make_backbone,
    make_batch,
    make_pretrainer,
    tensors,
    weights_of,
)

from cocolm_tf.modeling import masked_lm
from cocolm_tf.modeling import pretrainer as pretrainer_module
from cocolm_tf.modeling.corruption import SamplingTemperature
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer


@pytest.fixture
def corrupted(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The sequences that pretrainers write from now on: masked ones, then corrupted ones."""
    written = []

    def replace_tokens(*arguments):
        written.append(place_itself(*arguments))
        return written[-1]

    place_itself = pretrainer_module.replace_tokens
    monkeypatch.setattr(pretrainer_module, "replace_tokens", replace_tokens)
    return written


def objective(pretrainer: CocoLMPretrainer, names: tuple[str, ...], batch) -> list[tf.Tensor]:
    """Gradients of the sum of some losses by all trainable variables."""
    with tf.GradientTape() as tape:
        losses, _ = pretrainer.compute(tensors(batch), training=True)
        total = tf.add_n([losses[name] for name in names])
    return tape.gradient(total, [v.value for v in pretrainer.trainable_variables])


def moved(pretrainer: CocoLMPretrainer, names: tuple[str, ...], batch=None) -> set[int]:
    """The identities of the variables that some losses have a gradient to."""
    gradients = objective(pretrainer, names, batch or make_batch())
    return {
        id(variable)
        for variable, gradient in zip(pretrainer.trainable_variables, gradients, strict=True)
        if gradient is not None and np.any(tf.convert_to_tensor(gradient))
    }


def own(model, *others) -> set[int]:
    theirs = {id(v) for other in others for v in other.trainable_variables}
    return {id(v) for v in model.trainable_variables} - theirs


OPTIONS = [
    {},
    {"sampling": "train"},
    {"sampling": "zero_dropout"},
    {"use_copy": False},
    {"use_copy": False, "weighted_lm": True, "copy_head_bias": True},
    {"weighted_lm": True, "all_token_lm": True},
    {"stop_gradient": False},
    {"all_token_lm": True, "copy_weight": 0.0, "stop_gradient": False},
    {"all_token_lm": True, "use_copy": False},
    {"projection": False, "temperature": 0.5},
    {"auxiliary": None},
    {"lm_weight": 0.0},
    {"copy_weight": 0.0},
    {"scl_weight": 0.0},
    {"num_layers": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_losses_equal_the_equations(options, corrupted):
    pretrainer, batch = make_pretrainer(**options), make_batch()
    losses, measures = pretrainer.compute(tensors(batch), training=True)
    ids = corrupted[-1].numpy()
    hidden = reference.encode(pretrainer.backbone, ids, batch["padding_mask"])
    expected = {}
    if pretrainer.auxiliary:
        expected["mlm_loss"] = reference.masked_lm_loss(pretrainer.auxiliary, batch)
    if options.get("copy_weight", 1) or options.get("use_copy", True):
        expected["copy_loss"] = reference.copy_loss(pretrainer, hidden, batch, ids)
    if options.get("lm_weight", 1):
        expected["lm_loss"] = reference.lm_loss(pretrainer, hidden, batch, ids)
    if options.get("scl_weight", 1):
        expected["scl_loss"] = reference.scl_loss(pretrainer, hidden, batch)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value, rel=1e-5, abs=1e-5), name
    # What is reported is what is computed, and every loss of the objective is there.
    assert sorted([*losses, *measures]) == sorted(pretrainer.meter_names())
    assert pretrainer.loss_weights.keys() <= losses.keys() <= pretrainer.denominators(batch).keys()


@pytest.mark.parametrize(
    "options",
    [
        {"auxiliary_dropout": 0.3, "dropout": 0.3},
        {"weighted_lm": True, "all_token_lm": True, "sampling": "train"},
        {"use_copy": False, "stop_gradient": False, "auxiliary": None},
    ],
    ids=str,
)
def test_chunks_of_logits_change_nothing(options, corrupted):
    found = []
    for chunk_rows in (0, 5):
        pretrainer = make_pretrainer(logit_chunk_rows=chunk_rows, **options)
        pretrainer.compile(keras.optimizers.SGD(0.1), clip_norm=1.0)
        pretrainer.train_step(tensors(make_batch()))
        metrics = pretrainer.get_metrics_result()
        assert metrics["gradient_norm"] > 0
        found.append([*metrics.values(), *weights_of(pretrainer), corrupted[-1]])
    for whole, chunked in zip(*found, strict=True):
        np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-5)


def test_denominators_are_what_the_means_are_over():
    batch = make_batch()
    weights = make_pretrainer().denominators(tensors(batch))
    expected = {"mlm_loss": 6, "lm_loss": 6, "scl_loss": 4}
    assert {name: float(weight) for name, weight in weights.items()} == expected | {
        "copy_loss": batch["padding_mask"].sum()
    }
    weights = make_pretrainer(all_token_lm=True).denominators(tensors(batch))
    assert weights["lm_loss"] == weights["copy_loss"]


def test_loss_weights_are_equation_4s():
    assert make_pretrainer().loss_weights == {
        "mlm_loss": 1.0,
        "copy_loss": 50.0,
        "lm_loss": 1.0,
        "scl_loss": 1.0,
    }
    options = {"copy_weight": 2.0, "lm_weight": 0.0, "scl_weight": 0.5}
    assert make_pretrainer(auxiliary=None, **options).loss_weights == {
        "copy_loss": 2.0,
        "scl_loss": 0.5,
    }


def test_a_batch_without_masked_tokens_gives_zero():
    batch = make_batch() | {"masked_weights": np.zeros([4, 3], np.float32)}
    losses, _ = make_pretrainer().compute(tensors(batch), training=True)
    assert losses["mlm_loss"] == losses["lm_loss"] == 0
    assert all(np.isfinite(loss) for loss in losses.values())


# Corruption.


@pytest.mark.parametrize("auxiliary", ["shared", None])
def test_only_used_masked_positions_change(auxiliary, corrupted):
    pretrainer, batch = make_pretrainer(auxiliary=auxiliary), make_batch()
    pretrainer.compute(tensors(batch), training=True)
    used = np.zeros(batch["token_ids"].shape)
    np.put_along_axis(used, batch["masked_positions"], batch["masked_weights"], axis=1)
    changed = corrupted[-1].numpy() != batch["token_ids"]
    assert changed.any()
    assert not changed[used == 0].any()


def test_the_auxiliary_reads_masks_at_used_positions_alone(corrupted):
    batch = make_batch()
    make_pretrainer().compute(tensors(batch), training=True)
    expected = batch["token_ids"].copy()
    used = batch["masked_weights"] > 0
    for row in range(len(expected)):
        expected[row, batch["masked_positions"][row][used[row]]] = MASK
    assert (expected == MASK).sum() == used.sum() == 6
    np.testing.assert_array_equal(corrupted[0], expected)


def samples(pretrainer, corrupted, dropout_seed, training=True) -> np.ndarray:
    pretrainer.sampling_seeds.state.assign([1, 2])
    pretrainer.auxiliary.backbone.seed_generator.state.assign([dropout_seed, 3])
    pretrainer.compute(tensors(make_batch(sequences=16)), training)
    return corrupted[-1].numpy()


def test_samples_are_drawn_without_dropout(corrupted):
    pretrainer = make_pretrainer(auxiliary_dropout=0.5)
    first = samples(pretrainer, corrupted, 1)
    np.testing.assert_array_equal(samples(pretrainer, corrupted, 2), first)
    np.testing.assert_array_equal(samples(pretrainer, corrupted, 3, training=False), first)


def test_samples_of_the_training_pass_depend_on_dropout(corrupted):
    pretrainer = make_pretrainer(auxiliary_dropout=0.5, sampling="train")
    first, second, again = (samples(pretrainer, corrupted, seed) for seed in (1, 2, 1))
    assert (first != second).any()
    np.testing.assert_array_equal(first, again)


def test_samples_differ_from_step_to_step(corrupted):
    pretrainer, batch = make_pretrainer(), tensors(make_batch(sequences=16))
    pretrainer.compute(batch, training=True)
    first = corrupted[-1].numpy()
    pretrainer.compute(batch, training=True)
    assert (corrupted[-1].numpy() != first).any()


def test_the_temperature_follows_the_step(monkeypatch):
    """In one trace: it is a tensor. After the run, and without one, it is that of the end."""
    schedule = SamplingTemperature(start=3.0, decay=0.5, steps=4)
    pretrainer = make_pretrainer(sampling_temperature=schedule)
    used = []

    def sample(logits, seed, first_row, temperature):
        tf.py_function(lambda value: used.append(float(value)), [temperature], [])
        return tf.argmax(logits, axis=-1, output_type=tf.int32)

    monkeypatch.setattr(masked_lm, "sample_tokens", sample)
    pretrainer.compute(tensors(make_batch()), training=True)
    pretrainer.compile(keras.optimizers.SGD(0.0))
    run = pretrainer.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(make_batch()).repeat())
    for _ in range(3):
        run(batches)
    expected = [1 + 2 * np.exp(-share / 0.5) for share in (1, 0, 0.25, 0.5)]
    assert used == pytest.approx(expected)


def test_refuses_zero_dropout_of_an_auxiliary_with_dropout():
    with pytest.raises(ValueError, match="needs an auxiliary model without dropout"):
        make_pretrainer(auxiliary_dropout=0.1, sampling="zero_dropout")
    make_pretrainer(auxiliary=None, sampling="zero_dropout")


def test_refuses_unknown_sampling():
    with pytest.raises(ValueError, match="eval, train, zero_dropout, not 'greedy'"):
        make_pretrainer(sampling="greedy")


# What is computed, and what is not.


def products_with_the_vocabulary(pretrainer, training=True) -> list[int]:
    """The numbers of rows that meet the vocabulary matrix in a forward pass."""

    @tf.autograph.experimental.do_not_convert
    def compute(batch):
        return pretrainer.compute(batch, training)

    operations = tf.function(compute).get_concrete_function(tensors(make_batch())).graph
    shapes = [op.outputs[0].shape for op in operations.get_operations() if "MatMul" in op.type]
    return [shape[0] for shape in shapes if shape[-1] == SIZES["vocabulary_size"]]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, [12, 12]),
        ({"auxiliary_dropout": 0.1}, [12, 12, 12]),
        ({"auxiliary_dropout": 0.1, "sampling": "train"}, [12, 12]),
        ({"sampling": "zero_dropout", "lm_weight": 0.0}, [12]),
        ({"auxiliary": None}, [12]),
        ({"all_token_lm": True, "sampling": "train"}, [12, 48]),
    ],
    ids=str,
)
def test_only_masked_positions_meet_the_vocabulary(options, rows):
    assert products_with_the_vocabulary(make_pretrainer(**options)) == rows


def test_a_frozen_auxiliary_takes_one_pass_without_dropout(corrupted):
    auxiliary = make_auxiliary(None, dropout=0.5)
    auxiliary.trainable = False
    pretrainer = make_pretrainer(auxiliary=auxiliary)
    assert products_with_the_vocabulary(pretrainer) == [12, 12]
    first = samples(pretrainer, corrupted, 1)
    np.testing.assert_array_equal(samples(pretrainer, corrupted, 2), first)


def test_measuring_takes_one_pass_of_the_auxiliary():
    assert products_with_the_vocabulary(make_pretrainer(), training=False) == [12, 12]


@pytest.mark.parametrize("dtype", ["mixed_bfloat16"])
def test_half_precision_multiplies_in_half_precision(dtype):
    pretrainer = make_pretrainer(dtype=dtype, dropout=0.1, num_layers=2)
    batch = tensors(make_batch())
    compute = tf.autograph.experimental.do_not_convert(lambda b: pretrainer.compute(b, True))
    graph = tf.function(compute).get_concrete_function(batch).graph
    sizes = {}
    for op in graph.get_operations():
        if "MatMul" in op.type:
            sizes.setdefault(op.outputs[0].dtype.name, []).append(op.outputs[0].shape)
    # The contrastive similarities alone are float32.
    assert sizes["float32"] == [(8, 8)]
    assert len(sizes[dtype.removeprefix("mixed_")]) > 30
    losses, _ = pretrainer.compute(batch, training=True)
    assert all(loss.dtype == tf.float32 and np.isfinite(loss) for loss in losses.values())
    assert {v.dtype for v in pretrainer.trainable_variables} == {"float32"}


def test_tasks_of_weight_zero_are_not_built():
    full = make_pretrainer()
    assert full.copy_head and full.lm_head and full.projection
    assert make_pretrainer(lm_weight=0.0).lm_head is None
    assert make_pretrainer(scl_weight=0.0).projection is None
    assert make_pretrainer(projection=False).projection is None
    assert make_pretrainer(copy_weight=0.0, use_copy=False).copy_head is None
    # The LM loss still copies.
    assert make_pretrainer(copy_weight=0.0).copy_head is not None
    rtd = make_pretrainer(lm_weight=0.0, scl_weight=0.0)
    heads = own(rtd, rtd.backbone, rtd.auxiliary)
    assert heads == {id(rtd.copy_head.kernel)}


def test_the_copy_head_may_start_at_zero():
    main = make_backbone(num_layers=1)
    zeros, normal = (
        CocoLMPretrainer(main, None, MASK, copy_head_zeros=option).copy_head.kernel.numpy()
        for option in (True, False)
    )
    assert not zeros.any() and normal.any()


def test_shared_tables_are_held_once():
    pretrainer = make_pretrainer()
    identities = [id(v) for v in pretrainer.trainable_variables]
    assert len(identities) == len(set(identities))
    assert identities.count(id(pretrainer.backbone.token_embedding.embeddings)) == 1
    assert sum(tuple(v.shape) == (60, 16) for v in pretrainer.trainable_variables) == 1


# Who learns from what.


def test_the_lm_loss_trains_the_copy_head_only_without_the_stop():
    stopped, free = make_pretrainer(), make_pretrainer(stop_gradient=False)
    assert id(stopped.copy_head.kernel) not in moved(stopped, ("lm_loss",))
    assert id(free.copy_head.kernel) in moved(free, ("lm_loss",))
    assert id(stopped.copy_head.kernel) in moved(stopped, ("copy_loss",))


def test_the_main_losses_do_not_train_the_auxiliary():
    pretrainer = make_pretrainer()
    trained = moved(pretrainer, ("copy_loss", "lm_loss", "scl_loss"))
    assert not trained & own(pretrainer.auxiliary, pretrainer.backbone)
    assert id(pretrainer.backbone.token_embedding.embeddings) in trained


def test_the_auxiliary_loss_trains_the_shared_tables_only_of_the_main_model():
    pretrainer = make_pretrainer()
    trained = moved(pretrainer, ("mlm_loss",))
    tables = {
        id(pretrainer.backbone.token_embedding.embeddings),
        id(pretrainer.backbone.position_embedding.position_embeddings),
    }
    assert trained & own(pretrainer, pretrainer.auxiliary) == set()
    assert trained & {id(v) for v in pretrainer.backbone.trainable_variables} == tables


def test_both_views_train_the_main_model():
    pretrainer, batch = make_pretrainer(), make_batch()
    gradients = objective(pretrainer, ("scl_loss",), batch)
    others = batch["crop_token_ids"].copy()
    others[:, 1:][batch["crop_padding_mask"][:, 1:]] = 7
    changed = objective(pretrainer, ("scl_loss",), batch | {"crop_token_ids": others})
    table = next(
        i
        for i, v in enumerate(pretrainer.trainable_variables)
        if v is pretrainer.backbone.token_embedding.embeddings
    )
    gradient, other = (tf.convert_to_tensor(g[table]).numpy() for g in (gradients, changed))
    assert np.any(other[7])
    assert np.any(gradient != other)


def test_a_frozen_auxiliary_samples_without_learning(corrupted):
    auxiliary = make_auxiliary(None)
    auxiliary.trainable = False
    pretrainer = make_pretrainer(auxiliary=auxiliary)
    assert "mlm_loss" not in pretrainer.loss_weights
    assert not {id(v) for v in auxiliary.weights} & {id(v) for v in pretrainer.trainable_variables}
    losses, _ = pretrainer.compute(tensors(make_batch()), training=True)
    # It is still watched.
    assert losses["mlm_loss"] > 0
    assert (corrupted[-1].numpy() != make_batch()["token_ids"]).any()


def test_seeds_come_from_every_generator():
    generators = list(make_pretrainer(dropout=0.1, auxiliary_dropout=0.1).seed_generators())
    assert len({id(generator) for generator in generators}) == 3
    assert len(list(make_pretrainer(auxiliary=None).seed_generators())) == 2


def test_refuses_a_frozen_auxiliary_that_would_freeze_the_main_models_tables():
    main = make_backbone()
    auxiliary = make_auxiliary(main)
    auxiliary.trainable = False
    with pytest.raises(ValueError, match="tables of its own"):
        CocoLMPretrainer(main, auxiliary, MASK)


def test_refuses_an_lm_head_on_narrower_embeddings():
    main = make_backbone(embedding_dim=4)
    with pytest.raises(ValueError, match="no layer between"):
        CocoLMPretrainer(main, None, MASK)
    CocoLMPretrainer(main, None, MASK, lm_weight=0.0)
