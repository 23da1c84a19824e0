"""`cocolm-tf COMMAND`: the programs of `scripts/`, where the package is installed without them.

A wheel has `scripts/` and `configs/` within the package; in a checkout they are beside it.
"""

import ast
import difflib
import os
import runpy
import sys
from collections.abc import Sequence

from cocolm_tf import files

_USAGE = "usage: cocolm-tf COMMAND [--flags]    (cocolm-tf COMMAND --help lists its flags)"
_CONFIGS = "configs/"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program that the first argument names, as `python scripts/NAME.py` does."""
    # A flag's value that begins with `configs/` is the installed file of that name, unless there is
    # one in the current folder.
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    folder = shipped("scripts")
    commands = sorted(name[:-3] for name in files.list_dir(folder) if name.endswith(".py"))
    if not arguments or arguments[0] in ("-h", "--help", "--helpshort", "help"):
        print("\n".join([_USAGE, "", *(_summary(folder, name) for name in commands)]))
        return
    command, *flags = arguments
    if command not in commands:
        close = difflib.get_close_matches(command, commands, n=1)
        hint = f"did you mean {close[0]}?" if close else "cocolm-tf --help lists them."
        print(f"error: there is no command {command!r}: {hint}", file=sys.stderr)
        sys.exit(1)
    program = os.path.join(folder, f"{command}.py")
    sys.argv = [program, *map(_with_shipped_config, flags)]
    sys.path.insert(0, folder)  # as for `python scripts/NAME.py`
    runpy.run_path(program, run_name="__main__")


def shipped(name: str) -> str:
    """The folder `scripts` or `configs`, within the package or beside it."""
    package = os.path.dirname(files.absolute(__file__))
    within = os.path.join(package, name)
    return within if files.is_dir(within) else os.path.join(os.path.dirname(package), name)


def _summary(folder: str, command: str) -> str:
    source = files.read_text(os.path.join(folder, f"{command}.py"))
    return f"  {command:25s} {ast.get_docstring(ast.parse(source)).splitlines()[0]}"


def _with_shipped_config(flag: str) -> str:
    name, equals, value = flag.rpartition("=")
    if value.startswith(_CONFIGS) and not files.exists(value):
        path = os.path.join(shipped("configs"), value.removeprefix(_CONFIGS))
        if files.exists(path):
            return f"{name}{equals}{path}"
    return flag
