import json

import pytest

from cocolm_tf.benchmarking import scaling as module
from cocolm_tf.benchmarking.alternation import Contender, Timings
from cocolm_tf.errors import UserError
from cocolm_tf.training.config import PretrainingConfig


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps that take as long as their number of layers, but for a second that all take."""
    names = []

    def alternate(given: list[Contender], rounds: int, warmup_steps: int) -> dict[str, Timings]:
        names.extend(one.name for one in given)
        layers = {one.name: one.build.args[0].model.num_layers for one in given}
        return {
            name: Timings(30.0, 39.5, [1.0 + number] * rounds, [], 0.0)
            for name, number in layers.items()
        }

    monkeypatch.setattr(module, "alternate", alternate)
    return names


def test_time_is_set_beside_the_flops(tiny: PretrainingConfig, timed: list[str]):
    result = module.measure_scaling(tiny, ["model.num_layers"], [2, 0.5], 3, 1, threads=2)
    assert timed == ["model.num_layers=1", "model.num_layers=2", "model.num_layers=4"]
    rows = result["axes"]["model.num_layers"]
    assert [row["value"] for row in rows] == [1, 2, 4]
    assert [row["step_seconds"]["median"] for row in rows] == [2.0, 3.0, 5.0]
    assert rows[1]["flops_growth"] == rows[1]["time_per_flop_growth"]["median"] == 1
    largest = rows[2]
    assert largest["flops_growth"] == largest["flops"] / rows[1]["flops"] > 1
    assert largest["time_growth"]["median"] == pytest.approx(5 / 3)
    assert largest["time_per_flop_growth"]["median"] == pytest.approx(
        5 / 3 / largest["flops_growth"]
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    lines = module.format_scaling(result).splitlines()
    (row,) = [line for line in lines if line.split()[:2] == ["model.num_layers", "4"]]
    assert "5 (5 to 5)" in row and "1.67 (1.67 to 1.67)" in row


def test_what_belongs_to_a_size_grows_with_it(tiny: PretrainingConfig):
    wide = module.scaled(tiny, "model.hidden_dim", 2)
    assert (wide.model.hidden_dim, wide.model.intermediate_dim, wide.model.num_heads) == (32, 64, 4)
    long = module.scaled(tiny, "data.sequence_length", 2)
    assert long.data.sequence_length == long.model.max_sequence_length == 48
    assert tiny.model.hidden_dim == 16, "what was given stays as it was"


@pytest.mark.parametrize(
    ("axis", "factor", "complaint"),
    [
        ("model.dropout", 2, "--axes has 'model.dropout'"),
        ("trainer.batch_size", 0.3, "not a whole number"),
        ("model.hidden_dim", 0.25, "not a whole number"),
    ],
)
def test_sizes_that_there_cannot_be_are_the_users_mistake(
    tiny: PretrainingConfig, axis: str, factor: float, complaint: str
):
    with pytest.raises(UserError, match=complaint):
        module.scaled(tiny, axis, factor)


@pytest.mark.usefixtures("timed")
def test_an_impossible_size_is_told_before_anything_is_timed(
    tiny: PretrainingConfig, timed: list[str]
):
    with pytest.raises(UserError):
        module.measure_scaling(
            tiny, ["model.num_layers", "trainer.batch_size"], [0.5, 0.3], 3, 1, threads=2
        )
    assert not timed


@pytest.mark.slow
def test_a_step_of_random_tokens_trains(tiny: PretrainingConfig):
    step = module.training_step(tiny)
    assert step() > 0
