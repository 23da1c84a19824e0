import importlib.util
import json
from pathlib import Path

import pytest
from programs import Program

benchmark_peers = Program("benchmark_peers.py", timeout=600)

TINY = """
model: {vocabulary_size: 97, num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 16}
auxiliary: {num_layers: 1}
data: {sequence_length: 16}
trainer: {batch_size: 4}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.mark.slow
def test_ours_and_the_peers_at_hand_take_turns(config_file: Path):
    done = benchmark_peers(
        f"--config_file={config_file}",
        "--contenders=electra,model_garden,hugging_face",
        "--precisions=mixed_bfloat16",
        "--rounds=2",
        "--threads=1",
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    contenders = result["precisions"]["mixed_bfloat16"]
    at_hand = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    left_out = set() if at_hand else {"hugging_face"}
    assert set(contenders) == {"electra", "model_garden", "hugging_face"} - left_out
    assert set(result["left_out"]) == left_out
    assert all(one["step_seconds"]["min"] > 0 for one in contenders.values())
    # All start knowing nothing of the same tokens.
    losses = [one["first_loss"] for one in contenders.values()]
    assert max(losses) < 1.1 * min(losses)
    (row,) = [line for line in table if line.startswith("model_garden")]
    assert f"{contenders['model_garden']['times']['electra']['median']:.3g} (" in row
    assert f"{contenders['model_garden']['tokens_per_second']:,.0f}" in row


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config_file=/nowhere.yaml"], "--config_file=/nowhere.yaml does not exist."),
        (["--precisions=float32,float8"], "--precisions has 'float8'"),
        (["--rounds=0"], "--rounds"),
        (["--threads=0"], "--threads"),
    ],
    ids=str,
)
def test_a_mistake_in_the_flags_is_told_before_tensorflow_starts(
    config_file: Path, arguments: list[str], complaint: str
):
    (said,) = benchmark_peers.mistakes_before_tensorflow(f"--config_file={config_file}", *arguments)
    assert complaint in said


def test_help_names_every_contender():
    from benchmarks.peers import OURS, PEERS

    told = benchmark_peers.help()
    for name in (*OURS, *PEERS):
        assert name in told
