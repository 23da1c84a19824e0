import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from exported_steps import BATCHES, ToyStep, export_toy, python_with_jax
from programs import ROOT

from cocolm_tf.costs.step_export import stablehlo, write_program

RUN_STEP = ROOT / "scripts" / "run_step.py"


def run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Alone, as on a machine that it was copied to: not with our packages.
    return subprocess.run(
        [python, "-P", str(RUN_STEP), *arguments],
        env={"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_steps_follow_one_another(tmp_path: Path):
    python = python_with_jax()
    if python is None:
        pytest.skip("no environment with JAX: make targets")
    path = tmp_path / "toy.step"
    export_toy(path)
    done = run(python, str(path), "--steps=4", "--warmup=1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["device"], result["steps"], result["program"]) == ("cpu", 4, "toy")
    seconds = result["step_seconds"]
    assert seconds["first_quartile"] <= seconds["median"] <= seconds["third_quartile"]
    assert result["tokens_per_second"] == pytest.approx(3 / seconds["median"])
    assert result["share_of_peak"] == pytest.approx(12 / seconds["median"] / 1e12)
    assert result["peak_memory_bytes"] > 0

    # One after the other, as TensorFlow takes them, on each batch in turn.
    toy, losses = ToyStep(), []
    for number in range(10):
        toy.loss.reset_state()
        toy(BATCHES[number % 2])
        losses.append(float(toy.loss.result()))
    assert result["first_losses"]["loss"] == pytest.approx(losses[0], rel=1e-5)
    assert result["last_losses"]["loss"] == pytest.approx(sum(losses[6:]) / 4, rel=1e-5)


def export_counter(path: Path) -> None:
    """Writes a step that counts the tokens it sees, as if it learned them."""
    counts = keras.Variable(np.zeros(4, "float32"), name="counts")
    steps = keras.Variable(0, dtype="int64", name="steps")
    loss = keras.metrics.Mean(name="loss")

    def count(batch):
        steps.assign_add(1)
        counts.assign_add(tf.reduce_sum(tf.one_hot(batch["token_ids"], 4), [0, 1]))
        loss.update_state(tf.cast(steps, tf.float32))

    step = tf.function(count, jit_compile=True, autograph=False)
    batch = {"token_ids": tf.zeros([2, 3], tf.int32)}
    variables = [(one.path, one.value) for one in (counts, steps, *loss.variables)]
    program, arguments, arrays = stablehlo(step, [batch], variables)
    description = {
        "format": 1,
        "title": "counter",
        "tokens": 6,
        "replicas": 1,
        "meters": {"loss": [loss.total.path, loss.count.path]},
        "iterations": steps.path,
        "weights": {"model/counts": counts.path},
        "arguments": arguments,
    }
    write_program(str(path), program, description, arrays)


def test_it_trains_on_every_sequence_once_an_epoch(tmp_path: Path):
    python = python_with_jax()
    if python is None:
        pytest.skip("no environment with JAX: make targets")
    path, tokens, weights = (tmp_path / name for name in ("it.step", "tokens.npy", "out/it"))
    export_counter(path)
    rows = np.random.default_rng(0).integers(0, 4, [9, 3]).astype(np.uint16)
    np.save(tokens, rows)
    train = (str(path), f"--train={tokens}", f"--weights={weights}")
    done = run(python, *train, "--steps=4", "--log_every=3")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["steps"], result["epochs"], result["skipped_steps"]) == (4, 1.0, 0)
    lines = [json.loads(line) for line in weights.with_suffix(".jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(3, 2.0), (4, 4.0)]
    with np.load(f"{weights}-00.npz") as arrays:
        missing = np.bincount(rows.ravel(), minlength=4) - arrays["0/model/counts"]
    # Batches of two of nine sequences: one is left out.
    assert any((np.bincount(row, minlength=4) == missing).all() for row in rows)

    # Where time is short, the schedule ends in time.
    done = run(python, *train, "--steps=1000", "--log_every=3", "--seconds=1e-3")
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["steps"], result["skipped_steps"]) == (3, 997)


def test_a_file_that_is_no_program_is_reported_in_a_line(tmp_path: Path):
    path = tmp_path / "no.step"
    path.write_text("words")
    done = run(sys.executable, str(path))
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert f"{path} is no program that compile_step.py wrote" in said


@pytest.mark.parametrize(
    "argument", ["--steps=0", "--target=abacus", "--xla_option=fast", "--train=ids.npy"]
)
def test_mistakes_in_the_flags(argument: str):
    done = run(sys.executable, "toy.step", argument)
    assert done.returncode == 2
    assert argument.split("=")[0] in done.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_it_compiles_for_what_is_not_there(tmp_path: Path, target: str):
    python = python_with_jax()
    if python is None:
        pytest.skip("no environment with the compilers: make targets")
    path = tmp_path / "toy.step"
    export_toy(path)
    done = run(python, str(path), f"--target={target}")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["target"] == target
    assert 0 < result["argument_bytes"] < 1e6
