"""The vocabulary of a released checkpoint: `sp.model`, `dict.txt` and `tokenizer_config.json`."""

import os

from cocolm_tf import files
from cocolm_tf.conversion.json_files import read_json, write_json
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.tokenizer import (
    DICTIONARY_FILENAME,
    MODEL_FILENAME,
    CocoLMTokenizer,
)
from cocolm_tf.tokenization.vocabulary import MODEL_FILENAME as RELEASED_MODEL_FILENAME

_CONFIGURATION = "tokenizer_config.json"


def read_tokenizer(folder: str, vocabulary_size: int) -> CocoLMTokenizer | None:
    """Reads the tokenizer of a released checkpoint.

    Args:
        folder: The folder of the checkpoint.
        vocabulary_size: How many tokens the model knows.

    Returns:
        The tokenizer, or None if there is none.

    Raises:
        UserError: If a file is missing, or is not what it should be, or the model does not know
            all tokens.

    Example:
    ```python
    tokenizer = read_tokenizer("released", 64_000)
    ```
    """
    paths = [os.path.join(folder, n) for n in (RELEASED_MODEL_FILENAME, DICTIONARY_FILENAME)]
    if not any(map(files.is_file, paths)):
        return None
    for path in paths:
        if not files.is_file(path):
            raise UserError(f"{path} is missing: a vocabulary is two files.")
    configuration = os.path.join(folder, _CONFIGURATION)
    lowercase = False
    if files.is_file(configuration):
        lowercase = bool(read_json(configuration).get("do_lower_case", False))
    tokenizer = CocoLMTokenizer(*paths, lowercase=lowercase)
    if tokenizer.vocabulary_size() > vocabulary_size:
        raise UserError(
            f"{paths[1]} makes a vocabulary of {tokenizer.vocabulary_size()}, the model's has "
            f"{vocabulary_size}."
        )
    return tokenizer


def write_tokenizer(tokenizer: CocoLMTokenizer, folder: str) -> None:
    """Writes a tokenizer into the folder of a released checkpoint.

    Args:
        tokenizer: The tokenizer.
        folder: The folder, which exists.

    Example:
    ```python
    write_tokenizer(tokenizer, "released")
    ```
    """
    tokenizer.save_assets(folder)
    released = os.path.join(folder, RELEASED_MODEL_FILENAME)
    files.rename(os.path.join(folder, MODEL_FILENAME), released)
    write_json(os.path.join(folder, _CONFIGURATION), {"do_lower_case": tokenizer.lowercase})
