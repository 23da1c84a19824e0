"""Functions of many rows, computed for a chunk of them at a time."""

from collections.abc import Callable, Sequence

import tensorflow as tf

RowFunction = Callable[..., tuple[tf.Tensor, ...]]


def map_row_chunks(
    function: RowFunction,
    rows: Sequence[tf.Tensor],
    shared: Sequence[tf.Tensor],
    chunk_rows: int,
) -> tuple[tf.Tensor, ...]:
    """Applies a function of rows, to [N] each, chunk by chunk, and again for its gradient."""
    # For a function that makes much of each row and returns little, as a loss does over a large
    # vocabulary: its intermediate results exist for one chunk at a time, in either direction. The
    # price is that the function runs twice. It takes a chunk of each of `rows` [N, ...] and all of
    # `shared`, such as a matrix, whose gradients are added in float32; it captures no variables.
    # The last chunk is padded with zeros.
    count = _length(rows[0])

    def restored(chunks: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(chunks, tf.concat([[-1], tf.shape(chunks)[2:]], 0))
        return flat[:count]

    @tf.custom_gradient
    def apply(*tensors: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable]:
        pieces = [_cut(x, count, chunk_rows) for x in tensors[: len(rows)]]
        whole = tensors[len(rows) :]
        dtypes = _result_dtypes(function, pieces, whole)
        results = tf.map_fn(
            lambda chunks: function(*chunks, *whole),
            tuple(pieces),
            fn_output_signature=dtypes,
            parallel_iterations=1,
        )

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor | None]:
            slopes = [
                _cut(slope, count, chunk_rows)
                for slope, dtype in zip(upstream, dtypes, strict=True)
                if dtype.is_floating
            ]
            of_rows, of_whole = _gradients(function, pieces, whole, slopes)
            of_rows = [None if slope is None else restored(slope) for slope in of_rows]
            return [*of_rows, *of_whole]

        return tuple(restored(result) for result in results), gradient

    return apply(*rows, *shared)


def _length(x: tf.Tensor) -> tf.Tensor | int:
    return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


def _cut(x: tf.Tensor, count: tf.Tensor | int, chunk_rows: int) -> tf.Tensor:
    """[N, ...] to [chunks, chunk_rows, ...]."""
    x = tf.pad(x, [[0, -count % chunk_rows]] + [[0, 0]] * (x.shape.rank - 1))
    return tf.reshape(x, tf.concat([[-1, chunk_rows], tf.shape(x)[1:]], 0))


def _result_dtypes(
    function: RowFunction, pieces: list[tf.Tensor], whole: Sequence[tf.Tensor]
) -> tuple[tf.DType, ...]:
    specs = [tf.TensorSpec(x.shape[1:], x.dtype) for x in pieces]
    specs += [tf.TensorSpec(x.shape, x.dtype) for x in whole]
    traced = tf.function(function, autograph=False).get_concrete_function(*specs)
    return tuple(result.dtype for result in traced.outputs)


def _gradients(
    function: RowFunction,
    pieces: list[tf.Tensor],
    whole: Sequence[tf.Tensor],
    slopes: list[tf.Tensor],
) -> tuple[list[tf.Tensor | None], list[tf.Tensor]]:
    """The gradients of the rows, chunk by chunk, and those of what they share, added up."""
    chunks = _length(pieces[0])
    learning = [x.dtype.is_floating for x in pieces]

    def add(
        number: tf.Tensor, sums: list[tf.Tensor], written: list[tf.TensorArray]
    ) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.TensorArray]]:
        chunk = [x[number] for x in pieces]
        sources = [x for x, learns in zip(chunk, learning, strict=True) if learns]
        with tf.GradientTape() as tape:
            tape.watch([sources, list(whole)])
            results = [x for x in function(*chunk, *whole) if x.dtype.is_floating]
        of_chunk, of_whole = tape.gradient(
            results,
            [sources, list(whole)],
            output_gradients=[slope[number] for slope in slopes],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        sums = [s + tf.cast(g, tf.float32) for s, g in zip(sums, of_whole, strict=True)]
        written = [array.write(number, g) for array, g in zip(written, of_chunk, strict=True)]
        return number + 1, sums, written

    arrays = [
        tf.TensorArray(x.dtype, chunks, element_shape=x.shape[1:])
        for x, learns in zip(pieces, learning, strict=True)
        if learns
    ]
    zeros = [tf.zeros(tf.shape(x), tf.float32) for x in whole]
    _, sums, arrays = tf.while_loop(
        lambda number, *_: number < chunks,
        add,
        (tf.constant(0), zeros, arrays),
        parallel_iterations=1,
    )
    stacked = iter(arrays)
    of_rows = [next(stacked).stack() if learns else None for learns in learning]
    return of_rows, [tf.cast(s, x.dtype) for s, x in zip(sums, whole, strict=True)]
