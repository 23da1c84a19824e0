"""Public names of a package that load with the module that has them, on first use."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def exports(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """A package's `__getattr__`, `__dir__` and `__all__`, of each module the names or itself."""
    homes = {name: module for module, names in modules.items() for name in names or [module]}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = importlib.import_module(f"{package}.{homes[name]}")
        return home if name == homes[name] else getattr(home, name)

    names = list(homes)  # One list: what is added to `__all__` is in `dir`, too.
    return load, lambda: sorted(names), names
