"""The entry point of every program in `scripts/`: flags, log level, exit status."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

# TensorFlow reads this when it is first imported, so it must be set before any module that does.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags, logging

from cocolm_tf.errors import RestartableError, UserError, is_hdf5_refusal, refusal

# What sysexits.h calls EX_TEMPFAIL: try again.
RESTARTABLE = 75


def run(
    main: Callable[..., str | None], operands: Sequence[str] = (), takes_more: bool = False
) -> None:
    """Parses the flags, calls `main` and ends the process."""
    # What `main` returns, the path of what it wrote, is the program's last line; it gets the
    # `operands`, the arguments that are no flags; `takes_more`: or more of them, as after `--`.
    # A mistake in the flags, a `UserError` or what the system refuses (see `errors.refusal`)
    # becomes one line on standard error and exit status 1, a `RestartableError` one and exit status
    # 75, an interruption status 130; any other exception is a defect of ours and keeps its
    # traceback.

    def guarded(arguments: list[str]) -> None:
        given = arguments[1:]
        if len(given) > len(operands) and not takes_more:
            unexpected = given[len(operands)]
            _fail(f"unexpected argument {unexpected!r}: flags are written --name=value.")
        if len(given) < len(operands):
            _fail(f"{operands[len(given)]} is missing (--help lists the flags)")
        try:
            written = main(*given)
        except UserError as error:
            _fail(str(error))
        except RestartableError as error:
            print(error, file=sys.stderr)
            sys.exit(RESTARTABLE)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            message = refusal(error)
            if message is None:
                raise
            _fail(message)
        if written:
            print(written)

    logging.set_verbosity(logging.WARNING)
    sys.unraisablehook = _report_unraisable
    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        _fail(f"{'; '.join(str(error).splitlines())} (--help lists the flags)")
    except SystemExit:
        # Only --help and the like exit here, and absl gives them a failure status.
        sys.exit(0)


def _report_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    # While its files are closed, HDF5 repeats the error that has ended the program.
    if unraisable.exc_value is None or not is_hdf5_refusal(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
