import json
import sys

import pytest
import tensorflow as tf

from cocolm_tf.costs import targets
from cocolm_tf.costs.accelerators import ACCELERATORS
from cocolm_tf.costs.compiled import kernels_of
from cocolm_tf.costs.export import write_program
from cocolm_tf.costs.targets import (
    compare_with_measured,
    compile_for,
    format_report,
    targets_python,
)
from cocolm_tf.errors import UserError

# What run_step.py says of a program on a TPU, whose compiler counts for itself.
TOLD = {
    "target": "v5e",
    "device": "TPU v5 lite",
    "replicas": 2,
    "compile_seconds": 61.0,
    "program_bytes": 1_500_000,
    "argument_bytes": 3 * 2**30,
    "output_bytes": 3 * 2**30,
    "alias_bytes": 3 * 2**30,
    "temporary_bytes": 5 * 2**30,
    "code_bytes": 0,
    "flops": 197e12 * 0.2,
    "bytes_accessed": 819e9 * 0.5,
}
DESCRIBED = {
    "precision": "mixed_bfloat16",
    "tokens": 1000,
    "flops": 2e13,
    "replicas": 2,
    "batch_size": 40,
    "config": {"trainer": {"micro_batches": 5}, "model": {"rematerialize": False}},
}


@pytest.fixture
def program(tmp_path):
    path = str(tmp_path / "a.step")
    write_program(path, b"", DESCRIBED, {})
    return path


@pytest.fixture
def runner(tmp_path):
    path = tmp_path / "runner.py"
    path.write_text(f"import sys\nprint('noise')\nprint({json.dumps(json.dumps(TOLD))})\n")
    return str(path)


def test_what_the_compiler_says_becomes_a_bound(program, runner):
    result = compile_for(program, "v5e", runner, sys.executable)
    assert result["products_seconds"] == pytest.approx(0.2)
    assert result["memory_seconds"] == result["least_seconds"] == pytest.approx(0.5)
    assert result["tokens_per_second_at_most"] == pytest.approx(2000)
    # Of the model's FLOPs, each of two devices does half.
    assert result["share_of_peak_at_most"] == pytest.approx(1e13 / 0.5 / 197e12)
    # Five micro-batches of 4 sequences on each.
    assert (result["sequences"], result["model_flops"]) == (4, 2e12)
    assert json.loads(json.dumps(result)) == result
    shown = format_report(result, rows=5)
    for text in ("Google TPU v5e, 2 of them", "8.00 GiB", "5.00 GiB", "500 ms", "2,000", "1.5 MB"):
        assert text in shown


def test_a_compiler_that_refuses_is_told(tmp_path):
    runner = tmp_path / "runner.py"
    runner.write_text("import sys\nsys.exit('no such instruction')\n")
    with pytest.raises(UserError, match=r"a\.step was not compiled for v5e: .* status 1"):
        compile_for("a.step", "v5e", str(runner), sys.executable)


def test_the_environment_is_what_is_given_or_named_or_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(targets.VARIABLE, sys.executable)
    assert targets_python() == sys.executable
    assert targets_python("/bin/sh") == "/bin/sh"
    monkeypatch.delenv(targets.VARIABLE)
    with pytest.raises(UserError, match=r"\.venv-targets/bin/python is no interpreter.*make targ"):
        targets_python()
    with pytest.raises(UserError, match=r"/nowhere/python is no interpreter"):
        targets_python("/nowhere/python")


def test_every_target_has_its_peaks():
    assert set(targets.TARGETS) <= set(ACCELERATORS)


def test_measured_kernels_stand_beside_their_least_time(tmp_path, program):
    add = tf.function(lambda x: tf.exp(x) + x, jit_compile=True, autograph=False)
    written = add.experimental_get_compiler_ir(tf.ones([1000]))(stage="optimized_hlo_serialized")
    optimized = tmp_path / "a.hlo.pb"
    optimized.write_bytes(written)
    (kernel,) = kernels_of(written)
    measured = {kernel.instruction.name: 0.25, "another": 0.5}
    result = compare_with_measured(program, "h100", str(optimized), measured)
    assert result["measured_seconds"] == 0.75
    (group,) = result["groups"]
    assert group["measured_seconds"] == 0.25
    assert result["bytes_accessed"] == 2 * 4 * 1000
    shown = format_report(result, rows=1)
    assert "750 ms" in shown and "250.000 ms" in shown
    with pytest.raises(UserError, match="has none of the kernels"):
        compare_with_measured(program, "h100", str(optimized), {"another": 0.5})


def test_steps_are_exported_for_the_kind_of_their_target():
    kinds = {target: targets.device_kind(target) for target in targets.TARGETS}
    assert kinds == dict.fromkeys(targets.GPUS, "GPU") | dict.fromkeys(targets.TPUS, "TPU")
    assert targets.device_kind(None) == "GPU"
