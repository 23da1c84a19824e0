"""A client of an export: loads it as any program with TensorFlow and TensorFlow Text can."""

import os
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (its operations are in the graph)

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.normalization import as_string_tensor

SAVED_MODEL_FILENAME = "saved_model.pb"
# The signatures that take raw texts, and their inputs.
TEXT_INPUTS = {
    "embed": ("texts",),
    "correct": ("texts",),
    "correct_tsv": ("texts",),
    "classify": ("texts",),
    "classify_pairs": ("first", "second"),
    "answer": ("questions", "contexts"),
    "tag": ("texts",),
    "tag_tsv": ("texts",),
}


class Export:
    """A SavedModel that `scripts/export_saved_model.py` wrote.

    Args:
        directory: The folder of all versions, of which the highest is loaded, as TensorFlow Serving
            does; or one version's.

    Raises:
        UserError: If there is no SavedModel.

    Example:
    ```python
    export = Export("exports/first")
    export("embed", texts=["A cat sat.", "A dog sat."])["embeddings"]
    ```
    """

    def __init__(self, directory: str) -> None:
        self.path = find_version(directory)
        try:
            self._model = tf.saved_model.load(self.path)
        except (OSError, ValueError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.path} cannot be loaded: {reason}") from error

    @property
    def signatures(self) -> list[str]:
        """The names of the signatures that take raw texts."""
        return [name for name in TEXT_INPUTS if name in self._model.signatures]

    @property
    def default(self) -> str:
        """The signature that is `serving_default`, as far as its inputs and outputs show."""
        default = self._model.signatures[tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY]
        for name in self.signatures:
            signature = self._model.signatures[name]
            if (signature.structured_input_signature, signature.structured_outputs.keys()) == (
                default.structured_input_signature,
                default.structured_outputs.keys(),
            ):
                return name
        raise UserError(f"{self.path} has no signature that takes texts.")

    def __call__(self, signature: str, **inputs: Any) -> dict[str, np.ndarray]:
        """Asks a signature.

        Args:
            signature: Its name.
            **inputs: By name; lists of strings, or of ids for the signatures that take these.

        Returns:
            The outputs as arrays; strings are bytes.

        Raises:
            UserError: If there is no such signature.
        """
        if signature not in self._model.signatures:
            raise UserError(
                f"{self.path} has no signature {signature!r}, but {', '.join(self.signatures)}."
            )
        function = self._model.signatures[signature]
        specs = function.structured_input_signature[1]
        tensors = {
            name: as_string_tensor(value)
            if specs[name].dtype == tf.string
            else tf.constant(value, specs[name].dtype)
            for name, value in inputs.items()
        }
        return {name: value.numpy() for name, value in function(**tensors).items()}


def find_version(directory: str) -> str:
    """The folder of the SavedModel that `Export` loads; UserError if there is none."""
    if not files.is_dir(directory):
        raise UserError(f"{directory} is not a folder.")
    if files.is_file(os.path.join(directory, SAVED_MODEL_FILENAME)):
        return directory
    versions = [
        name
        for name in files.list_dir(directory)
        if name.isdecimal() and files.is_file(os.path.join(directory, name, SAVED_MODEL_FILENAME))
    ]
    if not versions:
        raise UserError(f"{directory} has no SavedModel, nor a version of one.")
    return os.path.join(directory, max(versions, key=int))
