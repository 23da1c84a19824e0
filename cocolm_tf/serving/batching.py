"""TensorFlow Serving's batching of requests that come at the same time."""

BATCHING_FILENAME = "batching_params.pbtxt"

# A start for two cores: requests that come while one is computed wait for nothing else.
# `scripts/benchmark_serving.py` measures what they are worth on a machine.
MAX_BATCH_SIZE = 32
BATCH_TIMEOUT_MICROS = 0
NUM_BATCH_THREADS = 2


def batching_parameters() -> str:
    """The file that `--enable_per_model_batching_parameters` reads from a SavedModel's folder.

    TensorFlow Serving's option to split large requests stays off: it joins the parts' results as
    they are, and those of `correct` are as wide as the text with the most words in each part.
    """
    return (
        f"max_batch_size {{ value: {MAX_BATCH_SIZE} }}\n"
        f"batch_timeout_micros {{ value: {BATCH_TIMEOUT_MICROS} }}\n"
        f"num_batch_threads {{ value: {NUM_BATCH_THREADS} }}\n"
    )
