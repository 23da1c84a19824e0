"""The one exception that a user, and not a developer, is meant to read."""


class UserError(Exception):
    """A mistake in what the user gave: a flag, a file, a row, a configuration key.

    Its message is one line that names what is wrong and what would be right. The programs print
    it without a traceback and exit with status 1 (see `cocolm_tf.program`).

    Example:
    ```python
    raise UserError("--sequence_length is 1024 but the model has 512 positions.")
    ```
    """
