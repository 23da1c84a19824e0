import json
from pathlib import Path

import numpy as np
import pytest
from programs import Program

convert_checkpoint = Program("convert_checkpoint.py")

CONFIG = {
    "vocab_size": 11,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "max_position_embeddings": 8,
    "layer_norm_eps": 1e-5,
}
SHAPES = {
    "cocolm.embeddings.word_embeddings.weight": (11, 4),
    "cocolm.embeddings.position_embeddings.weight": (8, 4),
    "cocolm.embeddings.LayerNorm.weight": (4,),
    "cocolm.embeddings.LayerNorm.bias": (4,),
    "cocolm.encoder.layer.0.attention.self_attn.in_proj.weight": (12, 4),
    "cocolm.encoder.layer.0.attention.self_attn.in_proj.bias": (12,),
    "cocolm.encoder.layer.0.attention.self_attn.out_proj.weight": (4, 4),
    "cocolm.encoder.layer.0.attention.self_attn.out_proj.bias": (4,),
    "cocolm.encoder.layer.0.attention.LayerNorm.weight": (4,),
    "cocolm.encoder.layer.0.attention.LayerNorm.bias": (4,),
    "cocolm.encoder.layer.0.intermediate.dense.weight": (6, 4),
    "cocolm.encoder.layer.0.intermediate.dense.bias": (6,),
    "cocolm.encoder.layer.0.output.dense.weight": (4, 6),
    "cocolm.encoder.layer.0.output.dense.bias": (4,),
    "cocolm.encoder.layer.0.output.LayerNorm.weight": (4,),
    "cocolm.encoder.layer.0.output.LayerNorm.bias": (4,),
}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    folder = tmp_path / "official"
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    np.savez(folder / "weights.npz", **tensors, stray=np.zeros(2, np.float32))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.mark.slow
def test_a_checkpoint_goes_there_and_back(official: Path, tmp_path: Path):
    preset, back = tmp_path / "preset", tmp_path / "back"
    done = convert_checkpoint(f"--official={official}", f"--preset={preset}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{official}/weights.npz: 16 tensors used, 1 not"
    assert lines[1] == "not used: stray"
    assert lines[-1] == str(preset)

    done = convert_checkpoint(
        f"--preset={preset}", f"--official={back}", "--reverse", "--weights_format=npz"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(back)
    found, expected = np.load(back / "weights.npz"), np.load(official / "weights.npz")
    assert set(found.files) == SHAPES.keys()
    for name in SHAPES:
        np.testing.assert_array_equal(found[name], expected[name])


def test_help_is_instant():
    told = convert_checkpoint.help()
    for flag in ("official", "preset", "reverse", "weights_format", "overwrite"):
        assert f"--{flag}" in told.replace("[no]", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--preset=p"], "flag --official=None: Flag --official must have a value"),
        (["--official=/nowhere", "--preset=p"], "--official=/nowhere does not exist."),
        (["--official=o", "--preset=/nowhere", "--reverse"], "--preset=/nowhere does not exist."),
        (["--official=.", "--preset=p", "--weights_format=npz"], "is of what --reverse writes"),
        (["--official=.", "--preset=.", "--weights_format=h5"], "--weights_format=h5"),
        (["--official=.", "--preset=/usr"], "/usr is not empty"),
    ],
)
def test_a_mistake_in_the_flags_is_reported_before_tensorflow_starts(arguments, complaint: str):
    (said,) = convert_checkpoint.mistakes_before_tensorflow(*arguments)
    assert complaint in said
