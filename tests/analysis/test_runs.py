"""Runs side by side, their curves, and what they do on held-out text."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from cocolm_tf.analysis.curves import PLOTS, Plot, draw_runs, plots_of
from cocolm_tf.analysis.figures import PALETTE
from cocolm_tf.analysis.metrics_log import Metrics
from cocolm_tf.analysis.runs import X_AXES, Run, measure_run, read_run
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.data.build import build_shards
from cocolm_tf.errors import UserError
from cocolm_tf.tokenization.vocabulary import train_vocabulary
from cocolm_tf.training.config import PretrainingConfig

PAIR = Plot("pair", "A pair", "share", {"a": "first", "b": "second"})


def run_of(name: str, train: list[dict], validation: list[dict], config: PretrainingConfig) -> Run:
    return Run(name, Metrics({"train": train, "validation": validation}), config)


def test_axes_count_what_they_say(config: PretrainingConfig):
    train = [{"step": step, "seconds": 10.0 * step, "a": 0.5} for step in (1, 3)]
    run = run_of("one", train, [{"step": 2, "seconds": 20.0, "a": 0.1}], config)
    flops = sum(pretraining_flops(config).values())
    expected = {
        "steps": [1, 3],
        "tokens": [1 * 4 * 24, 3 * 4 * 24],
        "flops": [flops, 3 * flops],
        "hours": [10 / 3600, 30 / 3600],
    }
    for x_axis, places in expected.items():
        assert run.abscissa("train", x_axis).tolist() == pytest.approx(places)
    assert list(expected) == list(X_AXES)


def test_the_hours_of_a_resumed_run_go_on(config: PretrainingConfig):
    seconds = [5.0, 9.0, 2.0, 4.0]  # the third line is another attempt's first
    train = [{"step": step, "seconds": second} for step, second in enumerate(seconds)]
    run = run_of("one", train, [], config)
    assert 3600 * run.abscissa("train", "hours") == pytest.approx([5, 9, 11, 13])
    assert run.metrics.seconds == 13


def test_each_run_has_a_color_and_each_curve_a_line(config: PretrainingConfig):
    train = [{"step": step, "seconds": 1.0, "a": 0.1 * step, "b": 0.9} for step in (1, 2)]
    validation = [{"step": 2, "seconds": 1.0, "a": 0.7}]
    runs = [run_of("one", train, validation, config), run_of("two", train, [], config)]
    runs.append(run_of("without", [{"step": 1, "seconds": 1.0}], [], config))
    figure = draw_runs(PAIR, runs)
    lines = figure.axes[0].lines
    drawn = [(line.get_color(), line.is_dashed(), *map(list, line.get_data())) for line in lines]
    assert drawn == [
        (PALETTE[0], False, [2], [0.7]),  # validation before training
        (PALETTE[0], True, [1, 2], [0.9, 0.9]),
        (PALETTE[1], False, [1, 2], [0.1, 0.2]),
        (PALETTE[1], True, [1, 2], [0.9, 0.9]),
    ]
    labels = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    assert labels == [["one", "two"], ["first", "second"]]
    plt.close(figure)


def test_a_plot_is_made_for_what_any_run_has(config: PretrainingConfig):
    one = Metrics({"train": [{"step": 1, "loss": 1.0}], "validation": []})
    other = Metrics({"train": [{"step": 1, "positive_cosine": 1.0}], "validation": []})
    assert [plot.name for plot in plots_of(one, other)] == ["loss", "cosine"]


@pytest.mark.parametrize("x_axis", X_AXES)
def test_every_plot_of_a_real_log_can_be_drawn(model_dir: Path, x_axis: str):
    runs = [read_run("one", str(model_dir)), read_run("other", str(model_dir))]
    for plot in PLOTS[:: 4 if x_axis != "steps" else 1]:
        figure = draw_runs(plot, runs, x_axis)
        figure.canvas.draw()
        assert figure.axes[0].get_xlabel() == X_AXES[x_axis]
        assert all(np.isfinite(line.get_xdata()).all() for line in figure.axes[0].lines)
        plt.close(figure)


def test_a_run_without_configuration_is_named(model_dir: Path):
    (model_dir / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        read_run("one", str(model_dir))


TEXTS = [
    "the cat sat on a mat and dog ran to its house",
    "it was cold outside again when the dog sat on its mat and the cat ran",
    "a dog and a cat ran outside to the cold house again and again when it was on",
]


def shards(vocabulary: Path, folder: Path) -> str:
    build_shards(TEXTS * 4, str(vocabulary), 16, 2, 0, str(folder))
    return str(folder)


def test_a_run_is_measured_on_shards_of_its_vocabulary(finished_run: Path, tmp_path: Path):
    data = shards(finished_run / "preset", tmp_path / "data")
    measures = measure_run(str(finished_run), data, batches=3, batch_size=2)
    logged = {"mlm_loss", "copy_loss", "lm_loss", "scl_loss", "positive_cosine", "negative_cosine"}
    assert logged <= set(measures)
    assert all(np.isfinite(list(measures.values())))
    assert -1 <= measures["negative_cosine"] <= 1
    # The same data, masks and samples every time.
    assert measure_run(str(finished_run), data, batches=3, batch_size=2) == measures


def test_cosines_are_measured_without_contrastive_learning_too(finished_run: Path, tmp_path: Path):
    data = shards(finished_run / "preset", tmp_path / "data")
    config = finished_run / "config.yaml"
    config.write_text(config.read_text().replace("scl_weight: 1.0", "scl_weight: 0.0"))
    measures = measure_run(str(finished_run), data, batches=2, batch_size=2)
    assert {"positive_cosine", "negative_cosine"} <= set(measures)


def test_shards_of_another_vocabulary_are_named(finished_run: Path, tmp_path: Path):
    train_vocabulary([" ".join(TEXTS) * 9], 60, tmp_path / "other")
    data = shards(tmp_path / "other", tmp_path / "data")
    with pytest.raises(UserError, match=r"--data=.* was built with another vocabulary"):
        measure_run(str(finished_run), data)


def test_an_unfinished_run_is_named(finished_run: Path, tmp_path: Path):
    data = shards(finished_run / "preset", tmp_path / "data")
    shutil.rmtree(finished_run / "preset")
    with pytest.raises(UserError, match="has no preset yet"):
        measure_run(str(finished_run), data)
