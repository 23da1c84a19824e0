import json
import os
import re
import sys
import types
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from exported_steps import BATCHES, export_toy, run_step_module
from tensorflow.compiler.xla.service import hlo_pb2

from cocolm_tf.costs import step_export
from cocolm_tf.costs.accelerators import ACCELERATORS
from cocolm_tf.costs.compiled import kernels_of
from cocolm_tf.costs.step_export import (
    _from_tokens,
    _read_weights,
    compare_with_measured,
    compile_for,
    export_step,
    import_weights,
    stablehlo,
    targets_python,
    write_program,
)
from cocolm_tf.data.augmentation import Augmentation, SpecialTokens
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.vocabulary import train_vocabulary
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.checkpoints import variable_paths
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.preset import load_preset

run_step = run_step_module()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.step"
    return export_toy(path), run_step.Program(str(path))


def test_arguments_are_named_in_the_order_of_the_program(toy):
    toy, program = toy
    step = tf.function(toy, jit_compile=True, autograph=False)
    text = step.experimental_get_compiler_ir(BATCHES[0])(stage="hlo_serialized")
    module = hlo_pb2.HloModuleProto.FromString(text)
    shapes = [list(shape.dimensions) for shape in module.host_program_shape.parameters]
    assert [one["shape"] for one in program.arguments] == shapes
    assert [one["name"] for one in program.arguments[:2]] == ["by", "y"]
    assert {one["name"]: one["kind"] for one in program.arguments[2:]} == {
        variable.path: "variable" for variable in toy.variables
    }


def test_constants_of_booleans_are_spelled_out():
    chosen = np.arange(128) % 3 > 0
    step = tf.function(
        lambda batch: tf.where(chosen, batch["x"], 0.0), jit_compile=True, autograph=False
    )
    program, _, _ = stablehlo(step, [{"x": tf.zeros([128])}], [])
    (values,) = re.findall(r"dense<\[([a-z, ]+)\]> : tensor<128xi1>", program.decode())
    assert [value == "true" for value in values.split(", ")] == list(chosen)


def test_variables_that_a_step_writes_are_its_results(toy):
    # As the attribute of the program says, by which run_step.py feeds them back.
    toy, program = toy
    step = tf.function(toy, jit_compile=True, autograph=False)
    text = step.experimental_get_compiler_ir(BATCHES[0])(stage="hlo_serialized")
    aliases = hlo_pb2.HloModuleProto.FromString(text).input_output_alias.entries
    written = {program.arguments[one.parameter_number]["name"] for one in aliases}
    assert written == {variable.path for variable in toy.variables} - {toy.rate.path}


def test_initial_values_are_like_those_of_the_variables(toy):
    toy, program = toy
    values = program.initial_values(seed=0)
    for one, value in zip(program.arguments, values, strict=True):
        assert (list(value.shape), value.dtype.name) == (one["shape"], one["dtype"])
    named = {one["name"]: v for one, v in zip(program.arguments, values, strict=True)}
    np.testing.assert_array_equal(named[toy.weights.path], [0.75] * 3)
    np.testing.assert_array_equal(named["by"], BATCHES[0]["by"])


def test_random_values_have_the_spread_of_the_variables(toy):
    _, program = toy
    one = {"name": "w", "kind": "variable", "shape": [10_000], "dtype": "bfloat16"}
    other = run_step.Program.__new__(run_step.Program)
    other.arguments, other.arrays = [one | {"mean": 2.0, "deviation": 0.5}], {}
    (value,) = other.initial_values(seed=1)
    assert value.dtype.name == "bfloat16"
    value = value.astype(np.float32)
    assert value.mean() == pytest.approx(2.0, abs=0.02)
    assert value.std() == pytest.approx(0.5, abs=0.02)


def test_batches_are_told_apart(toy):
    _, program = toy
    assert program.batches() == [
        {"by": batch["by"].numpy(), "y": pytest.approx(batch["y"].numpy())} for batch in BATCHES
    ]


def test_small_variables_begin_exactly_as_they_are(tmp_path):
    # As a table of relative positions that begins with a bias does, which is no normal sample.
    table = keras.Variable([5.0, 0.0, -1.0], name="table")
    step = tf.function(lambda batch: table.assign_add(batch["y"]), jit_compile=True)
    _, arguments, arrays = stablehlo(step, [{"y": tf.ones([3])}], [("table", table.value)])
    program = run_step.Program.__new__(run_step.Program)
    program.arguments, program.arrays = arguments, arrays
    np.testing.assert_array_equal(program.initial_values(seed=0)[1], [5.0, 0.0, -1.0])


def test_masks_and_crops_follow_from_the_number_of_the_step():
    config = PretrainingConfig()
    config.override({"model": {"vocabulary_size": 99}, "runtime": {"seed": 7}})
    seen = {}
    pretrainer = types.SimpleNamespace(
        optimizer=types.SimpleNamespace(iterations=tf.constant(3, tf.int64)),
        train_step=seen.update,
    )
    token_ids = tf.constant([[0, *range(10, 20), 2, 1, 1], [0, *range(20, 32), 2]])
    _from_tokens(pretrainer, config)({"token_ids": token_ids})
    as_in_training = Augmentation(SpecialTokens(mask=98))(token_ids, tf.constant([7, 3]))
    assert set(seen) == set(as_in_training)
    for name, value in as_in_training.items():
        np.testing.assert_array_equal(seen[name], value)


def test_trained_weights_come_in_parts_of_limited_size(tmp_path, monkeypatch):
    monkeypatch.setattr(run_step, "_PART_BYTES", 6_000)
    arrays = [np.arange(3000, dtype=np.float32).reshape(1000, 3), np.ones(10, np.float32)]
    weights = {"main/table": "a/table", "other/table": "a/table:1"}
    execution = types.SimpleNamespace(
        program=types.SimpleNamespace(description={"weights": weights}),
        index={"a/table": 1, "a/table:1": 2},
        state=[0, *arrays],
    )
    prefix = tmp_path / "weights"
    files = run_step._write_weights(execution, str(prefix))
    assert len(files) == 3
    assert all(os.path.getsize(file) <= 6_000 for file in files)
    read = _read_weights(str(prefix))
    np.testing.assert_array_equal(read["main/table"], arrays[0])
    np.testing.assert_array_equal(read["other/table"], arrays[1])


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("TPU v5", 2.0),
        ("TPU v5 lite", 1.0),
        ("NVIDIA H100 80GB HBM3", 3.0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H100 PCIe", None),
    ],
)
def test_a_device_is_known_by_its_whole_name(device, peak):
    peaks = {"TPU v5 lite": 1.0, "TPU v5": 2.0, "NVIDIA H100 80GB HBM3": 3.0}
    assert run_step._peak_flops(peaks, device) == peak


@pytest.mark.slow
def test_trained_weights_become_a_preset(tmp_path):
    vocabulary = str(tmp_path / "vocabulary")
    tokenizer = train_vocabulary(
        ["the cat sat on the mat", "a dog ran in the park"], 30, vocabulary
    )
    config = PretrainingConfig()
    config.override(
        {
            "model": {
                "vocabulary_size": tokenizer.vocabulary_size(),
                "num_layers": 1,
                "num_heads": 2,
                "hidden_dim": 8,
                "intermediate_dim": 16,
            },
            "auxiliary": {"num_layers": 1},
        }
    )
    program, weights = str(tmp_path / "it.step"), str(tmp_path / "trained")
    write_program(program, b"", {"config": config.as_dict()}, {})
    (tmp_path / "trained.jsonl").write_text("")
    random = np.random.default_rng(0)
    pretrainer = build_pretrainer(config, tokenizer.mask_token_id)
    trained = {
        path: random.standard_normal(variable.shape, np.float32)
        for path, variable in variable_paths(pretrainer).items()
        if variable.trainable
    }
    np.savez(f"{weights}-00.npz", **{f"0/{path}": value for path, value in trained.items()})
    preset = import_weights(program, weights, vocabulary, str(tmp_path / "run"))
    assert load_preset(pretrainer, preset) == []
    for path, value in trained.items():
        np.testing.assert_array_equal(variable_paths(pretrainer)[path], value, err_msg=path)

    path = trained.popitem()[0]
    np.savez(f"{weights}-00.npz", **{f"0/{path}": value for path, value in trained.items()})
    with pytest.raises(UserError, match=f"have nothing for {path}"):
        import_weights(program, weights, vocabulary, str(tmp_path / "run"))


@pytest.mark.slow
def test_a_pretraining_step_is_exported_whole(tmp_path):
    config = PretrainingConfig()
    config.override(
        {
            "model": {
                "vocabulary_size": 97,
                "num_layers": 1,
                "num_heads": 2,
                "hidden_dim": 8,
                "intermediate_dim": 16,
            },
            "auxiliary": {"num_layers": 1},
            "data": {"sequence_length": 16},
            "trainer": {"batch_size": 4},
            "runtime": {"precision": "mixed_bfloat16"},
        }
    )
    path = tmp_path / "tiny.step"
    described = export_step(config, str(path), "tiny")
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("step.json")) == described
    assert (described["tokens"], described["precision"]) == (64, "mixed_bfloat16")
    assert {"loss", "mlm_loss", "copy_loss", "lm_loss", "scl_loss"} <= set(described["losses"])
    names = [one["name"] for one in described["arguments"]]
    assert len(set(names)) == len(names)
    assert all(path in names for paths in described["losses"].values() for path in paths)
    kinds = {one["name"]: one["kind"] for one in described["arguments"]}
    assert kinds["token_ids"] == "feature"
    # Weights begin with the spread of their initializer, and what counts with 0.
    by_name = {one["name"]: one for one in described["arguments"]}
    embedding = next(n for n in names if n.endswith("embedding/embeddings") and "adam" not in n)
    assert by_name[embedding]["deviation"] == pytest.approx(0.02, rel=0.2)
    assert all(one["deviation"] == 0 for one in by_name.values() if "momentum" in one["name"])
    assert described["peak_flops"]["NVIDIA H100 80GB HBM3"] == 989.4e12
    program = run_step.Program(str(path))
    assert len(program.batches()) == 4
    assert {value.dtype.name for value in program.initial_values(0)} <= {
        "float32",
        "int32",
        "int64",
        "bool",
    }


# --- Compiled for devices that are not there ---

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


def test_a_compiler_that_refuses_is_reported(tmp_path):
    runner = tmp_path / "runner.py"
    runner.write_text("import sys\nsys.exit('no such instruction')\n")
    with pytest.raises(UserError, match=r"a\.step was not compiled for v5e: .* status 1"):
        compile_for("a.step", "v5e", str(runner), sys.executable)


def test_the_environment_is_what_is_given_or_named_or_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(step_export.VARIABLE, sys.executable)
    assert targets_python() == sys.executable
    assert targets_python("/bin/sh") == "/bin/sh"
    monkeypatch.delenv(step_export.VARIABLE)
    with pytest.raises(UserError, match=r"\.venv-targets/bin/python is no interpreter.*make targ"):
        targets_python()
    with pytest.raises(UserError, match=r"/nowhere/python is no interpreter"):
        targets_python("/nowhere/python")


def test_every_target_has_its_peaks():
    assert set(step_export.TARGETS) <= set(ACCELERATORS)


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
    with pytest.raises(UserError, match="has none of the kernels"):
        compare_with_measured(program, "h100", str(optimized), {"another": 0.5})
