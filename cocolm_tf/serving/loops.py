"""A function applied to one part of a batch after the other, within the graph."""

from collections.abc import Callable

import tensorflow as tf


def concatenated(
    function: Callable[[tf.Tensor], tuple[tf.Tensor, ...]],
    count: tf.Tensor,
    outputs: tuple[tf.TensorSpec, ...],
) -> tuple[tf.Tensor, ...]:
    """Joins what a function gives for 0, 1, ... count - 1.

    The graph holds the function once, however often it runs, and one run's memory is free for
    the next.

    Args:
        function: takes an int32 scalar, gives tensors that differ in their first axis alone.
        count: int32 scalar; 0 gives tensors without rows.
        outputs: what `function` gives, first axis None.

    Returns:
        The results, joined along their first axis.

    Example:
    ```python
    squares = concatenated(
        lambda i: (i[tf.newaxis] ** 2,), tf.constant(3), (tf.TensorSpec([None], tf.int32),)
    )
    ```
    """
    collected = tuple(
        tf.TensorArray(spec.dtype, size=count, element_shape=spec.shape, infer_shape=False)
        for spec in outputs
    )

    def step(
        number: tf.Tensor, collected: tuple[tf.TensorArray, ...]
    ) -> tuple[tf.Tensor, tuple[tf.TensorArray, ...]]:
        results = function(number)
        written = zip(collected, results, strict=True)
        return number + 1, tuple(array.write(number, result) for array, result in written)

    _, collected = tf.while_loop(
        lambda number, _: number < count,
        step,
        (tf.constant(0), collected),
        parallel_iterations=1,
    )
    return tuple(array.concat() for array in collected)
