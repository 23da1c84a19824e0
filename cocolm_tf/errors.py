"""The exceptions that a user, and not a developer, is meant to read."""


class UserError(Exception):
    """A mistake in what the user gave: a flag, a file, a row, a configuration key.

    Its message is one line that names what is wrong and what would be right. The programs print
    it without a traceback and exit with status 1 (see `cocolm_tf.program`).

    Example:
    ```python
    raise UserError("--sequence_length is 1024 but the model has 512 positions.")
    ```
    """


class RestartableError(BaseException):
    """An end that is nobody's mistake: the machine was wanted back, or another one is gone.

    Its message is one line. The programs print it and exit with status 75; started again with the
    same flags, the job goes on (see `cocolm_tf.program`). As `KeyboardInterrupt`, it may come at
    any moment and is no `Exception`, so that nobody on its way takes it for a failure.

    Example:
    ```python
    raise RestartableError("stopped by SIGTERM; start again with the same flags to go on.")
    ```
    """
