import contextlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from modeling_models import make_auxiliary, make_batch, make_pretrainer, tensors, weights_of
from modeling_toy import Toy, toy_batch, toy_dataset, toy_objective

from cocolm_tf.modeling import training_step
from cocolm_tf.training.optimization import AdamW, ShardedAdamW


def make_toy(strategy=None, optimizer=None, model=None, **compile_options) -> Toy:
    with strategy.scope() if strategy else contextlib.nullcontext():
        toy = Toy(**(model or {}))
        toy.compile(optimizer() if optimizer else keras.optimizers.SGD(0.1), **compile_options)
    return toy


def run_step(model, *batches) -> None:
    """Steps in eager execution, on one device."""
    for batch in batches:
        model.train_step(tensors(batch))


def reported(model) -> dict[str, float]:
    return {name: float(value) for name, value in model.get_metrics_result().items()}


def make_adamw() -> AdamW:
    return AdamW(0.1, weight_decay=0.01, beta_2=0.98)


def make_sharded() -> ShardedAdamW:
    return ShardedAdamW(0.1, weight_decay=0.01, beta_2=0.98)


OPTIMIZERS = [make_adamw, lambda: keras.optimizers.Adam(0.1), lambda: keras.optimizers.SGD(0.1)]


# The step of one device.


def test_follows_the_gradient_of_the_objective():
    toy, batch = make_toy(), toy_batch()
    total, losses, gradient = toy_objective(batch, toy.kernel)
    expected = toy.kernel - 0.1 * gradient
    run_step(toy, batch)
    np.testing.assert_allclose(toy.kernel, expected, atol=1e-6)
    assert toy.optimizer.iterations == 1
    metrics = reported(toy)
    assert metrics == pytest.approx(
        {
            "loss": total,
            **losses,
            "size": batch["x"][batch["far"] == 1, 0].mean(),
            "gradient_norm": np.linalg.norm(gradient),
            "learning_rate": 0.1,
            "skipped_updates": 0,
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_clips_the_global_norm(share):
    batch = toy_batch()
    _, _, gradient = toy_objective(batch, make_toy().kernel)
    norm = np.linalg.norm(gradient)
    toy = make_toy(clip_norm=share * norm)
    expected = toy.kernel - 0.1 * gradient * min(1, share)
    run_step(toy, batch)
    np.testing.assert_allclose(toy.kernel, expected, atol=1e-6)
    # What is reported is the norm before.
    assert reported(toy)["gradient_norm"] == pytest.approx(norm, rel=1e-5)


def test_micro_batches_add_up_to_the_batch():
    whole, cut = make_toy(), make_toy(micro_batches=4)
    for model in (whole, cut):
        run_step(model, toy_batch(0), toy_batch(1))
    np.testing.assert_allclose(cut.kernel, whole.kernel, atol=1e-6)
    assert reported(cut) == pytest.approx(reported(whole), rel=1e-5)


def test_metrics_are_means_over_steps():
    toy, batches = (
        make_toy(optimizer=lambda: keras.optimizers.SGD(0.0)),
        [toy_batch(0), toy_batch(1)],
    )
    batches[1]["far"] = np.ones(8, np.float32)
    run_step(toy, *batches)
    totals, losses, _ = zip(*(toy_objective(batch, toy.kernel) for batch in batches), strict=True)
    metrics = reported(toy)
    assert metrics["loss"] == pytest.approx(np.mean(totals), rel=1e-5)
    # Of weight 3 and 8.
    assert metrics["far"] == pytest.approx((3 * losses[0]["far"] + 8 * losses[1]["far"]) / 11)
    toy.reset_metrics()
    assert reported(toy)["loss"] == 0


def test_measuring_changes_nothing():
    toy, batch = make_toy(model={"dropout": 0.5}), toy_batch()
    kernel = toy.kernel
    total, losses, _ = toy_objective(batch, kernel)
    toy.test_step(tensors(batch))
    np.testing.assert_array_equal(toy.kernel, kernel)
    assert toy.optimizer.iterations == 0
    assert reported(toy)["loss"] == pytest.approx(total, rel=1e-5)
    assert reported(toy)["near"] == pytest.approx(losses["near"], rel=1e-5)


def test_weights_are_averaged_and_can_take_the_place_of_the_last():
    toy, average = make_toy(ema_decay=0.25), make_toy().kernel
    for step in (1, 2, 3):
        run_step(toy, toy_batch(step))
        decay = min(0.25, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * toy.kernel
    np.testing.assert_allclose(toy.averages[0], average, atol=1e-6)
    kernel = toy.kernel
    with toy.averaged_weights():
        np.testing.assert_allclose(toy.kernel, average, atol=1e-6)
    np.testing.assert_array_equal(toy.kernel, kernel)
    assert not make_toy().averages


@pytest.mark.parametrize("mirrored_strategy", [2], indirect=True)
def test_every_replica_has_the_average_of_one_device(mirrored_strategy):
    batches = [toy_batch(0), toy_batch(1)]
    alone = make_toy(optimizer=make_adamw, ema_decay=0.5)
    run_step(alone, *batches)
    together = make_toy(mirrored_strategy, make_adamw, ema_decay=0.5)
    together.fit(toy_dataset(*batches), steps_per_epoch=2, verbose=0)
    for replica in mirrored_strategy.experimental_local_results(together.averages[0]):
        np.testing.assert_allclose(replica, alone.averages[0], atol=1e-6)


# Steps that are left out.


def spoiled(batch, value=np.nan):
    return batch | {"x": np.where(np.arange(8)[:, np.newaxis] == 5, value, batch["x"])}


@pytest.mark.parametrize(
    ("optimizer", "value"), [*zip(OPTIMIZERS, (np.nan, -np.inf, 1e30), strict=True)]
)
def test_a_gradient_that_is_not_finite_is_left_out(optimizer, value):
    toy = make_toy(optimizer=optimizer, clip_norm=1.0)
    kernel = toy.kernel
    run_step(toy, spoiled(toy_batch(), value), spoiled(toy_batch(1), value))
    np.testing.assert_array_equal(toy.kernel, kernel)
    assert toy.optimizer.iterations == 2
    assert toy.skipped_in_a_row == 2
    assert reported(toy)["skipped_updates"] == 2
    run_step(toy, toy_batch(2))
    assert np.isfinite(toy.kernel).all()
    assert (toy.kernel != kernel).all()
    assert toy.skipped_in_a_row == 0
    metrics = reported(toy)
    assert metrics["skipped_updates"] == 2
    _, _, gradient = toy_objective(toy_batch(2), kernel)
    assert metrics["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-5)


def test_the_first_skip_of_a_row_is_kept_with_its_norms():
    toy, good, bad = make_toy(), toy_batch(), spoiled(toy_batch(1))
    run_step(toy, good)
    assert (toy.skipped_at, toy.skipped_norms.numpy().tolist()) == (0, [0])
    run_step(toy, bad, spoiled(toy_batch(2), 1e30))
    assert toy.skipped_at == 2
    np.testing.assert_array_equal(toy.skipped_norms, [np.nan])
    run_step(toy, good, spoiled(toy_batch(2), 1e30))
    assert toy.skipped_at == 5
    np.testing.assert_array_equal(toy.skipped_norms, [np.inf])


def test_a_row_of_skips_that_continues_after_a_restart_is_reported_too():
    toy = make_toy()
    toy.skipped_in_a_row.assign(3)
    run_step(toy, spoiled(toy_batch()))
    assert (toy.skipped_at, toy.skipped_in_a_row) == (1, 4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS[:2], ids=["ours", "Adam"])
def test_one_bad_replica_holds_all_back(mirrored_strategy, optimizer):
    toy = make_toy(mirrored_strategy, optimizer, clip_norm=1.0)
    kernel = toy.kernel
    toy.fit(toy_dataset(spoiled(toy_batch())), steps_per_epoch=2, verbose=0)
    for replica in mirrored_strategy.experimental_local_results(toy.linear.kernel.value):
        np.testing.assert_array_equal(replica, kernel)
    assert int(toy.skipped_in_a_row.numpy()) == 2
    assert reported(toy)["skipped_updates"] == 2
    assert toy.skipped_at.numpy() == 1
    np.testing.assert_array_equal(toy.skipped_norms.numpy(), [np.nan])


def test_loss_scale_shrinks_with_overflows_and_grows_again(monkeypatch):
    monkeypatch.setattr(training_step, "_LOSS_SCALE_GROWTH_STEPS", 3)
    toy = make_toy(model={"dtype": "mixed_float16"})
    kernel = toy.kernel
    assert toy.loss_scale == 2**15
    run_step(toy, spoiled(toy_batch(), 1e30))
    assert toy.loss_scale == 2**14
    np.testing.assert_array_equal(toy.kernel, kernel)
    run_step(toy, toy_batch(), toy_batch())
    assert toy.loss_scale == 2**14
    run_step(toy, toy_batch())
    assert toy.loss_scale == 2**15
    assert toy.steps_since_overflow == 0


def test_loss_scale_leaves_the_update_alone():
    plain, scaled = (make_toy(model={"dtype": dtype}) for dtype in ("float32", "mixed_float16"))
    for toy in (plain, scaled):
        run_step(toy, toy_batch())
    np.testing.assert_allclose(scaled.kernel, plain.kernel, atol=1e-5)
    assert reported(scaled) == pytest.approx(reported(plain), rel=1e-4)
    assert plain.loss_scale == 1


# Several replicas.


@pytest.mark.parametrize(
    ("mirrored_strategy", "optimizer", "micro_batches"),
    [
        (4, OPTIMIZERS[0], 2),
        (2, OPTIMIZERS[1], 1),
        (2, make_sharded, 2),
    ],
    indirect=["mirrored_strategy"],
    ids=["4-ours-2", "2-Adam-1", "2-sharded-2"],
)
def test_replicas_make_the_step_of_one_device(mirrored_strategy, optimizer, micro_batches):
    batches = toy_batch(0), toy_batch(1)
    alone = make_toy(None, make_adamw if optimizer is make_sharded else optimizer, clip_norm=0.5)
    run_step(alone, *batches)
    together = make_toy(mirrored_strategy, optimizer, clip_norm=0.5, micro_batches=micro_batches)
    history = together.fit(toy_dataset(*batches), steps_per_epoch=2, verbose=0).history
    np.testing.assert_allclose(together.kernel, alone.kernel, atol=1e-5)
    assert {name: values[0] for name, values in history.items()} == pytest.approx(
        reported(alone), rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize("mirrored_strategy", [4], indirect=True)
def test_replicas_measure_as_one_device(mirrored_strategy):
    batch, toy = toy_batch(), make_toy(mirrored_strategy)
    total, losses, _ = toy_objective(batch, toy.kernel)
    measured = toy.evaluate(toy_dataset(batch), steps=1, return_dict=True, verbose=0)
    assert measured["loss"] == pytest.approx(total, rel=1e-5)
    assert measured["far"] == pytest.approx(losses["far"], rel=1e-5)


def test_refuses_to_compile_a_step_of_several_replicas(mirrored_strategy):
    with pytest.raises(ValueError, match="for one device, or for the GPUs of one host"):
        make_toy(mirrored_strategy, jit_compile=True)


@pytest.mark.parametrize(
    ("optimizer", "micro_batches", "messages"),
    [(make_adamw, 2, 2), (make_sharded, 1, 3)],
    ids=["ours", "sharded"],
)
def test_the_step_of_several_gpus_is_one_program(gpu_strategy, optimizer, micro_batches, messages):
    """Compiled as a whole: what replicas say to each other is all-reduces within it."""
    options = {"jit_compile": True, "micro_batches": micro_batches, "ema_decay": 0.9}
    toy = make_toy(gpu_strategy, optimizer, **options)
    batch = tensors(toy_batch())
    step = toy._unconverted(toy._train)
    programs = []

    def export():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        program = step.experimental_get_compiler_ir(batch, tf.constant(replica))(stage="hlo")
        programs.append(re.sub(r"metadata=.*|(train|body|cond)_\d+", "", program))

    gpu_strategy.run(export)
    # Of different ones XLA might order the messages differently.
    assert programs[0] == programs[1]
    sums = [line for line in programs[0].splitlines() if " all-reduce(" in line]
    # The weights of both losses, the gradients and, if need be, the updated parts.
    assert len(sums) == messages
    assert all("replica_groups={{0,1}}" in line for line in sums)
    # And both replicas have theirs in the function that `fit()` calls.
    for step in (toy._train, toy._test):
        step = toy._unconverted(step)
        run = tf.function(lambda batch, step=step: gpu_strategy.run(step, args=(batch, 0)))
        assert run.get_concrete_function(batch)


def test_keras_optimizers_are_not_compiled_for_several_gpus(gpu_strategy):
    with pytest.raises(ValueError, match="Keras's optimizers cannot be compiled"):
        make_toy(gpu_strategy, jit_compile=True)


# Randomness.


def masks_of(toy, *batches) -> list[np.ndarray]:
    run_step(toy, *batches)
    return [mask for _, mask in toy.masks]


def differ(masks) -> bool:
    return len({mask.tobytes() for mask in masks}) == len(masks)


def test_dropout_differs_from_step_to_step_and_follows_from_the_seed():
    batches = [toy_batch(rows=16)] * 3
    first, again, other = (
        masks_of(make_toy(model={"dropout": 0.5, "seed": seed}), *batches) for seed in (1, 1, 2)
    )
    assert differ(first + other)
    np.testing.assert_array_equal(first, again)


def test_dropout_follows_from_the_step_not_from_the_steps_before():
    model = {"dropout": 0.5}
    batches = [toy_batch(rows=16)] * 3
    whole = masks_of(make_toy(model=model), *batches)
    resumed = make_toy(model=model)
    resumed.optimizer.iterations.assign(2)
    np.testing.assert_array_equal(masks_of(resumed, batches[2])[0], whole[2])


def test_dropout_differs_between_micro_batches():
    toy = make_toy(model={"dropout": 0.5}, micro_batches=2)
    assert differ(masks_of(toy, toy_batch(rows=32)))


@pytest.mark.parametrize("mirrored_strategy", [4], indirect=True)
def test_dropout_differs_between_replicas(mirrored_strategy):
    toy = make_toy(mirrored_strategy, model={"dropout": 0.5})
    batch = tensors(toy_batch(rows=16))
    mirrored_strategy.run(toy.train_step, args=(batch,))
    assert sorted(replica for replica, _ in toy.masks) == [0, 1, 2, 3]
    assert differ([mask for _, mask in toy.masks])


# What Keras calls.


def test_fit_validates_and_tells_its_history():
    toy = make_toy(optimizer=make_adamw)
    history = toy.fit(
        toy_dataset(toy_batch()),
        steps_per_epoch=4,
        epochs=3,
        validation_data=toy_dataset(toy_batch()).take(2),
        verbose=0,
    ).history
    assert {"loss", "val_loss", "near", "val_near", "size", "gradient_norm"} <= history.keys()
    assert all(len(values) == 3 for values in history.values())
    assert history["val_loss"][2] < history["val_loss"][0]
    assert toy.optimizer.iterations == 12


@pytest.mark.parametrize("mirrored_strategy", [2], indirect=True)
@pytest.mark.parametrize("replicas", [1, 2])
def test_validation_reads_its_data_to_the_end(mirrored_strategy, replicas):
    toy = make_toy(mirrored_strategy if replicas > 1 else None, steps_per_execution=2)
    batches = [toy_batch(seed) for seed in range(3)]
    expected = np.mean([toy_objective(batch, toy.kernel)[0] for batch in batches])
    # Of a length that is not known before.
    data = toy_dataset(*batches).take(3).filter(lambda batch: True)
    measured = toy.evaluate(data, return_dict=True, verbose=0)
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("jit_compile", [True])
def test_the_end_of_the_data_is_no_step(jit_compile):
    toy = make_toy(optimizer=make_adamw, jit_compile=jit_compile)
    data = toy_dataset(toy_batch(0), toy_batch(1)).take(2).filter(lambda batch: True)
    toy.fit(data, epochs=3, verbose=0)
    assert toy.optimizer.iterations == 6
    assert reported(toy)["learning_rate"] == pytest.approx(0.1)


def test_steps_per_execution_are_steps():
    batches = [toy_batch(seed) for seed in range(3)]
    one_by_one = make_toy(optimizer=make_adamw, model={"dropout": 0.3})
    at_once = make_toy(optimizer=make_adamw, model={"dropout": 0.3}, steps_per_execution=3)
    for toy in (one_by_one, at_once):
        toy.fit(toy_dataset(*batches), steps_per_epoch=3, verbose=0)
    assert at_once.optimizer.iterations == 3
    np.testing.assert_allclose(at_once.kernel, one_by_one.kernel, atol=1e-7)
    assert reported(at_once) == pytest.approx(reported(one_by_one), rel=1e-6)


def test_compiled_by_xla():
    batches, model = [toy_batch(0), toy_batch(1)], {"dropout": 0.0}
    plain = make_toy(None, make_adamw, model, clip_norm=0.5)
    compiled = make_toy(None, make_adamw, model, clip_norm=0.5, jit_compile=True, micro_batches=2)
    for toy in (plain, compiled):
        toy.fit(toy_dataset(*batches, spoiled(batches[0])), steps_per_epoch=3, verbose=0)
    np.testing.assert_allclose(compiled.kernel, plain.kernel, atol=1e-5)
    assert reported(compiled) == pytest.approx(reported(plain), rel=1e-4, nan_ok=True)
    assert reported(compiled)["skipped_updates"] == 1
    assert (compiled.skipped_at, plain.skipped_at) == (3, 3)


def test_compiling_again_takes_effect():
    toy, data = make_toy(), toy_dataset(toy_batch())
    toy.fit(data, steps_per_epoch=1, verbose=0)
    kernel = toy.kernel
    toy.compile(keras.optimizers.SGD(0.0))
    toy.fit(data, steps_per_epoch=1, verbose=0)
    np.testing.assert_array_equal(toy.kernel, kernel)


# COCO-LM's own step.


ONLY_CONTRAST = {
    "auxiliary": None,
    "copy_weight": 0.0,
    "lm_weight": 0.0,
    "use_copy": False,
}


def make_compiled(strategy=None, optimizer=None, compiled=None, **options):
    with strategy.scope() if strategy else contextlib.nullcontext():
        pretrainer = make_pretrainer(**options)
        optimizer = optimizer or (lambda: AdamW(1e-2, epsilon=1e-3))
        pretrainer.compile(optimizer(), clip_norm=2.0, **(compiled or {}))
    return pretrainer


def assert_same_run(one, other, atol) -> None:
    assert reported(one) == pytest.approx(reported(other), rel=1e-4, abs=1e-5)
    for first, second in zip(one.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_allclose(first.numpy(), second.numpy(), atol=atol, err_msg=first.path)


@pytest.mark.parametrize(
    "options",
    [{"scl_weight": 0.0}, {"scl_over_micro_batches": True}],
    ids=["no-contrast", "contrast"],
)
def test_pretraining_in_micro_batches(likeliest_samples, options):
    """The contrast too is that of the whole batch, if asked for."""
    whole = make_compiled(**options)
    cut = make_compiled(**options, compiled={"micro_batches": 2})
    for model in (whole, cut):
        run_step(model, make_batch())
    assert_same_run(cut, whole, atol=1e-5)


@pytest.mark.parametrize("options", [{"auxiliary_dropout": 0.3}, ONLY_CONTRAST])
def test_contrast_of_the_whole_batch_is_of_the_vectors_that_learn(options):
    """Each micro-batch is computed twice: with the same dropout and samples."""
    options = options | {"dropout": 0.3, "scl_over_micro_batches": True}
    batch, model = tensors(make_batch()), make_compiled(**options)
    model.micro_batches = 2
    totals, objective, views = model.denominators(batch), 0.0, []

    def keep(*vectors):
        views.append(vectors)
        return {}, {}

    with tf.GradientTape() as tape:
        for number in range(2):
            part = {name: rows[2 * number :][:2] for name, rows in batch.items()}
            with model._seeded(0, number):
                losses, _ = model.compute(part, training=True, contrast=keep)
            objective += model._objective(losses, model.denominators(part), totals)
        losses, _ = model.contrast(*(tf.concat(rows, 0) for rows in zip(*views, strict=True)))
        objective += losses["scl_loss"]
    expected = tape.gradient(objective, [variable.value for variable in model.trainable_variables])
    for found, gradient, variable in zip(
        model._accumulate(batch, totals, 0), expected, model.trainable_variables, strict=True
    ):
        gradient = tf.convert_to_tensor(gradient)
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-5, err_msg=variable.path)
    assert reported(model)["loss"] == pytest.approx(float(objective), rel=1e-5)


def test_contrast_is_within_a_micro_batch(likeliest_samples):
    batch = make_batch()
    first, second = ({name: rows[at : at + 2] for name, rows in batch.items()} for at in (0, 2))
    plain, cut = make_pretrainer(), make_compiled(compiled={"micro_batches": 2})
    losses = [
        plain.compute(tensors(half), training=True)[0]["scl_loss"] for half in (first, second)
    ]
    run_step(cut, batch)
    assert reported(cut)["scl_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_same_run_twice_is_the_same_to_the_bit():
    def run():
        pretrainer = make_compiled(dropout=0.2, auxiliary_dropout=0.2)
        run_step(pretrainer, make_batch(0), make_batch(1))
        return weights_of(pretrainer)

    for first, second in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_forward_pass_that_overflows_is_left_out():
    pretrainer = make_compiled()
    table = pretrainer.backbone.token_embedding.embeddings
    rows = table.numpy()
    rows[0] = 3e38
    table.assign(rows)
    before = weights_of(pretrainer)
    run_step(pretrainer, make_batch())
    for first, second in zip(before, weights_of(pretrainer), strict=True):
        np.testing.assert_array_equal(first, second)
    assert pretrainer.skipped_in_a_row == 1
    assert reported(pretrainer)["skipped_updates"] == 1


def test_a_frozen_auxiliary_stays_as_it_is():
    auxiliary = make_auxiliary(None)
    auxiliary.trainable = False
    pretrainer = make_compiled(auxiliary=auxiliary)
    frozen, free = [v.numpy() for v in auxiliary.weights], weights_of(pretrainer.backbone)
    run_step(pretrainer, make_batch())
    for before, variable in zip(frozen, auxiliary.weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), before)
    assert all(
        (before != after).any()
        for before, after in zip(free, weights_of(pretrainer.backbone), strict=True)
    )


def test_half_precision_overflow_is_survived():
    pretrainer = make_compiled(dtype="mixed_float16")
    pretrainer.loss_scale.assign(2.0**24)
    before = weights_of(pretrainer)
    run_step(pretrainer, make_batch())
    assert pretrainer.loss_scale == 2.0**23
    for first, second in zip(before, weights_of(pretrainer), strict=True):
        np.testing.assert_array_equal(first, second)
    pretrainer.loss_scale.assign(2.0**6)
    run_step(pretrainer, make_batch())
    assert pretrainer.skipped_in_a_row == 0
    assert all(np.isfinite(weight).all() for weight in weights_of(pretrainer))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mirrored_strategy", "micro_batches"),
    [(2, 2), pytest.param(4, 1, marks=pytest.mark.exhaustive)],
    indirect=["mirrored_strategy"],
)
def test_the_contrast_of_the_whole_batch_on_replicas(mirrored_strategy, micro_batches):
    options = ONLY_CONTRAST | {"scl_over_micro_batches": True}
    batch = make_batch(sequences=8)
    batch["replacements"] = batch["masked_positions"]  # Random ones would differ.
    alone = make_compiled(**options)
    run_step(alone, batch)
    together = make_compiled(
        mirrored_strategy, **options, compiled={"micro_batches": micro_batches}
    )
    data = tf.data.Dataset.from_tensor_slices(batch).batch(8, drop_remainder=True)
    together.fit(data, verbose=0)
    assert_same_run(together, alone, atol=2e-5)


@pytest.mark.slow
def test_pretraining_compiled_by_xla(likeliest_samples):
    batch, options = make_batch(), {"scl_over_micro_batches": True}
    plain = make_compiled(**options)
    run_step(plain, batch)
    compiled = make_compiled(**options, compiled={"jit_compile": True, "micro_batches": 2})
    compiled.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
    assert_same_run(compiled, plain, atol=1e-4)
