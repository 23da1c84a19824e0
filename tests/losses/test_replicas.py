"""Under a MirroredStrategy the losses and their gradients are those of one device."""

import losses_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from programs import run_python

from cocolm_tf.losses import (
    contrastive_cosines,
    in_batch_negatives_loss,
    masked_lm_loss,
    sequence_contrastive_loss,
)
from cocolm_tf.losses.replicas import gather_over_replicas, sum_over_replicas

two_and_four_replicas = pytest.mark.parametrize(
    "mirrored_strategy", [pytest.param(2, marks=pytest.mark.exhaustive), 4], indirect=True
)


def run(strategy: tf.distribute.Strategy, function, *batches: np.ndarray):
    """Calls `function` in replica context, compiled, on equal slices of the batches.

    Returns what each replica returned.
    """
    replicas = strategy.num_replicas_in_sync

    def distribute(batch):
        slices = np.split(batch, replicas)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(slices[context.replica_id_in_sync_group])
        )

    arguments = [distribute(batch) for batch in batches]
    results = tf.function(lambda *arguments: strategy.run(function, arguments))(*arguments)
    local = [strategy.experimental_local_results(result) for result in tf.nest.flatten(results)]
    return list(zip(*local, strict=True))


@two_and_four_replicas
def test_contrastive_loss_and_gradients_equal_one_device(mirrored_strategy, views):
    def step(first, second):
        with tf.GradientTape() as tape:
            tape.watch([first, second])
            loss = sequence_contrastive_loss(first, second, temperature=0.3)
            share = loss / mirrored_strategy.num_replicas_in_sync
        return loss, *tape.gradient(share, [first, second])

    losses, *gradients = zip(*run(mirrored_strategy, step, *views), strict=True)
    first, second = tf.constant(views[0]), tf.constant(views[1])
    with tf.GradientTape() as tape:
        tape.watch([first, second])
        expected = sequence_contrastive_loss(first, second, temperature=0.3)
    np.testing.assert_allclose(losses, [expected] * len(losses), rtol=1e-6)
    for gradient, one_device in zip(
        gradients, tape.gradient(expected, [first, second]), strict=True
    ):
        np.testing.assert_allclose(np.concatenate(gradient), one_device, atol=1e-7)


@two_and_four_replicas
def test_in_batch_negatives_are_those_of_all_replicas(mirrored_strategy):
    rng = np.random.default_rng(5)
    queries, documents = rng.normal(size=[8, 5]), rng.normal(size=[8, 3, 5])
    # Unlike each other on the replicas, so that shares which are not the batch's would show.
    weights, keys = np.float32([1, 0, 2, 1, 1, 0, 0, 0.5]), rng.integers(9, size=[8, 3])
    batch = (queries.astype(np.float32), documents.astype(np.float32), weights, keys)

    def step(queries, documents, weights, keys, replicas=None):
        replicas = replicas or mirrored_strategy.num_replicas_in_sync
        with tf.GradientTape() as tape:
            tape.watch([queries, documents])
            loss = in_batch_negatives_loss(
                queries, documents, 0.3, weights, keys, keys[:, 1], dimensions=(5, 2)
            )
            share = loss / replicas
        return loss, *tape.gradient(share, [queries, documents])

    losses, *gradients = zip(*run(mirrored_strategy, step, *batch), strict=True)
    expected, *expected_gradients = step(*map(tf.constant, batch), replicas=1)
    np.testing.assert_allclose(losses, [expected] * len(losses), rtol=1e-6)
    for gradient, one_device in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(np.concatenate(gradient), one_device, atol=1e-6)


def test_the_contrastive_loss_of_several_gpus_is_one_program(gpu_strategy, views):
    """A gather is all-reduces there, of which XLA has a kernel."""

    @tf.function(jit_compile=True)
    def step(first, second):
        with tf.GradientTape() as tape:
            tape.watch([first, second])
            loss = sequence_contrastive_loss(first, second)
        return tape.gradient(loss, [first, second])

    messages = []

    def count_messages():
        program = step.experimental_get_compiler_ir(*map(tf.constant, views))(stage="hlo")
        messages.append(program.count(" all-reduce("))

    gpu_strategy.run(count_messages)
    assert messages == [2, 2]  # both views together, there and back


@two_and_four_replicas
def test_summed_gradients_of_a_shared_weight_equal_one_device(mirrored_strategy, views):
    """The whole training arrangement: shared weights, shares of each loss, summed gradients."""
    rng = np.random.default_rng(4)
    kernel_value = rng.normal(size=(5, 6)).astype(np.float32)
    labels = rng.integers(6, size=8).astype(np.int32)
    weights = np.float32([1, 1, 1, 1, 0, 0, 0.5, 0])  # an unequal share for each replica

    def objective(kernel, first, second, labels, weights, replicas):
        contrastive = sequence_contrastive_loss(first @ kernel, second @ kernel)
        masked_lm = masked_lm_loss(first @ kernel, labels, weights)
        local = tf.reduce_sum(weights)
        share = tf.math.divide_no_nan(local, sum_over_replicas(local))
        return contrastive / replicas + share * masked_lm

    def loss_and_gradient(kernel, *batch, replicas=1):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            loss = objective(kernel, *batch, replicas=replicas)
        return loss, tape.gradient(loss, kernel)

    with mirrored_strategy.scope():
        kernel = tf.Variable(kernel_value)

    def step(*batch):
        loss, gradient = loss_and_gradient(
            kernel.value(), *batch, replicas=mirrored_strategy.num_replicas_in_sync
        )
        return sum_over_replicas((loss, gradient))

    batch = (*views, labels, weights)
    expected_loss, expected_gradient = loss_and_gradient(
        tf.constant(kernel_value), *(tf.constant(array) for array in batch)
    )
    for loss, gradient in run(mirrored_strategy, step, *batch):
        assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


@two_and_four_replicas
def test_cosines_are_those_of_the_global_batch(mirrored_strategy, views):
    expected = reference.contrastive_cosines(*views)
    for cosines in run(mirrored_strategy, contrastive_cosines, *views):
        np.testing.assert_allclose(cosines, expected, atol=1e-5)


def test_gather_is_in_replica_order(mirrored_strategy):
    batch = np.arange(6, dtype=np.float32).reshape(6, 1)
    for (gathered,) in run(mirrored_strategy, gather_over_replicas, batch):
        np.testing.assert_array_equal(gathered, batch)


@pytest.mark.parametrize("strategy_name", ["default", "one_device", "cross_replica"])
def test_communicates_nothing_elsewhere(strategy_name, views, mirrored_strategy):
    expected = pytest.approx(reference.sequence_contrastive_loss(*views), rel=1e-5)
    if strategy_name == "default":
        assert float(sequence_contrastive_loss(*views)) == expected
    elif strategy_name == "one_device":
        strategy = tf.distribute.OneDeviceStrategy("CPU:0")
        assert float(strategy.run(sequence_contrastive_loss, views)) == expected
    else:
        with mirrored_strategy.scope():
            assert float(sequence_contrastive_loss(*views)) == expected


COLLECTIVES = """
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)
from cocolm_tf.losses import sequence_contrastive_loss

strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(4)])


@tf.function
def step(rows):
    def replica_step(rows):
        with tf.GradientTape() as tape:
            tape.watch(rows)
            loss = sequence_contrastive_loss(rows, rows) / 4
        return 4 * loss, tape.gradient(loss, rows)

    return strategy.run(replica_step, [rows])


corner = tf.eye(8, 9) + tf.eye(9)[8]
rows = strategy.experimental_distribute_values_from_function(
    lambda context: corner[2 * context.replica_id_in_sync_group :][:2]
)
losses, gradients = map(strategy.experimental_local_results, step(rows))
with tf.GradientTape() as tape:
    tape.watch(corner)
    expected = sequence_contrastive_loss(corner, corner)
for loss in losses:
    tf.debugging.assert_near(loss, expected)
tf.debugging.assert_near(tf.concat(gradients, 0), tape.gradient(expected, corner), atol=1e-6)
"""


@pytest.mark.slow
def test_collectives_equal_one_device():
    """The default communication, in a process of its own (see `mirrored_strategy`)."""
    run_python(COLLECTIVES)
