"""Which versions were measured."""

import importlib.metadata


def installed_versions(*distributions: str) -> dict[str, str]:
    """Looks up the versions of those distributions that are installed.

    Example:
    ```python
    installed_versions("tensorflow", "torch")  # {"tensorflow": "2.20.0"}
    ```
    """
    versions = {}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
