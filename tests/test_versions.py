import re

import keras
import tensorflow as tf

import cocolm_tf
from cocolm_tf.versions import installed_versions, own_versions, versions_line


def test_own_versions_are_those_that_run():
    assert own_versions() == {
        "cocolm_tf": cocolm_tf.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def test_what_is_not_installed_is_left_out():
    versions = installed_versions("numpy", "no-such-distribution")
    assert list(versions) == ["numpy"]
    assert re.match(r"\d+\.\d+", versions["numpy"])


def test_a_line_lists_versions():
    assert versions_line({"a": "1", "b": "2.0"}) == "a 1, b 2.0"
