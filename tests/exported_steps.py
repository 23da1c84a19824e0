"""A small exported step, the file that reads it, and an interpreter that has JAX."""

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import tensorflow as tf
from programs import ROOT

from cocolm_tf.costs.step_export import VARIABLE, stablehlo, write_program

BATCHES = [{"y": tf.constant([1.0, 2.0, 4.0]), "by": tf.constant(scale)} for scale in (0.5, -0.25)]


class ToyStep:
    """A step with a variable that it only reads, one that it fits, a counter and a loss."""

    def __init__(self):
        self.rate = keras.Variable(0.1, trainable=False, name="rate")
        self.weights = keras.Variable(np.full(3, 0.75, "float32"), name="weights")
        self.steps = keras.Variable(0, dtype="int64", trainable=False, name="steps")
        self.loss = keras.metrics.Mean(name="loss")
        self.variables = [self.rate, self.weights, self.steps, *self.loss.variables]

    def __call__(self, batch):
        self.steps.assign_add(1)
        error = self.weights - batch["by"] * batch["y"] * tf.constant([1.0, 1.0, 2.0])
        self.loss.update_state(tf.reduce_sum(error**2))
        self.weights.assign(self.weights - self.rate * 2.0 * error)


def export_toy(path: Path) -> ToyStep:
    """Writes the toy's program and returns it, as it was before any step."""
    toy = ToyStep()
    step = tf.function(toy, jit_compile=True, autograph=False)
    program, arguments, arrays = stablehlo(
        step, BATCHES, [(variable.path, variable.value) for variable in toy.variables]
    )
    loss = toy.loss
    description = {
        "format": 1,
        "title": "toy",
        "precision": "float32",
        "batch_size": 1,
        "sequence_length": 3,
        "replicas": 1,
        "tokens": 3,
        "flops": 12,
        "peak_flops": {"cpu": 1e12, "cp": 1.0},
        "losses": {"loss": [loss.total.path, loss.count.path]},
        "arguments": arguments,
    }
    write_program(str(path), program, description, arrays)
    return toy


def run_step_module() -> ModuleType:
    """`scripts/run_step.py`, which JAX is not needed to import."""
    spec = importlib.util.spec_from_file_location("run_step", ROOT / "scripts" / "run_step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python_with_jax() -> str | None:
    """The interpreter of an environment with JAX, if this machine has one."""
    python = os.environ.get(VARIABLE) or str(ROOT / ".venv-targets" / "bin" / "python")
    if not os.access(python, os.X_OK):
        return None
    done = subprocess.run([python, "-c", "import jax"], capture_output=True, check=False)
    return None if done.returncode else python
