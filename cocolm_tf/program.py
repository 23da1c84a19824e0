"""How every program in `scripts/` starts and ends: its flags, its quiet, its exit status."""

import os
import sys
from collections.abc import Callable

# TensorFlow reads this when it is first imported, so it must be set before any module that does.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, logging

from cocolm_tf.errors import UserError


def run(main: Callable[[], str | None]) -> None:
    """Parses the flags, calls `main` and ends the process.

    A `UserError` becomes one line on standard error and exit status 1, an interruption status
    130; any other exception is a defect of ours and keeps its traceback.

    Args:
        main: The job. What it returns, the path of what it wrote, is the program's last line.

    Example:
    ```python
    program.run(lambda: "runs/first")
    ```
    """

    def guarded(arguments: list[str]) -> None:
        if len(arguments) > 1:
            _fail(f"unexpected argument {arguments[1]!r}: flags are written --name=value.")
        try:
            written = main()
        except UserError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        if written:
            print(written)

    logging.set_verbosity(logging.WARNING)
    app.run(guarded)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
