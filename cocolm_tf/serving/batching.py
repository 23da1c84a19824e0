"""TensorFlow Serving's batching of requests."""

BATCHING_FILENAME = "batching_params.pbtxt"


def batching_parameters() -> str:
    """The file that `--enable_per_model_batching_parameters` reads from a SavedModel's folder."""
    return "max_batch_size { value: 32 }\nbatch_timeout_micros { value: 1000 }\n"
