"""The versions of installed packages, for reports."""

import importlib.metadata

import keras
import tensorflow as tf

import cocolm_tf


def own_versions() -> dict[str, str]:
    """The versions of this package and of those that every run computes with."""
    # Of the modules: TensorFlow's distribution has other names too, as tensorflow-cpu.
    return {
        "cocolm_tf": cocolm_tf.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def installed_versions(*distributions: str) -> dict[str, str]:
    """The versions of those distributions that are installed."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def versions_line(versions: dict[str, str]) -> str:
    """Formats versions as one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
