"""Scores over what was varied: pretraining, training rows, shots, crops (figures 3, 4 and 7)."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from cocolm_tf.analysis.figures import PALETTE, legend_below, new_panels, styled
from cocolm_tf.analysis.run_comparison import X_AXES
from cocolm_tf.analysis.scores import Score

# Where scores stand, by tasks and then by what one line is of.
Curves = dict[str, dict[str, list["Point"]]]

_SHAPES = "os^D"


@dataclasses.dataclass(frozen=True)
class Point:
    """A score on a line: the mean, the least and the greatest of its runs.

    Example:
    ```python
    Point(0.1, mean=0.6, low=0.58, high=0.63)
    ```
    """

    x: float
    mean: float
    low: float
    high: float


def pretraining_curves(scores: Iterable[Score], x_axis: str) -> Curves:
    """Scores over how far pretraining was, with all training rows (paper, figure 3).

    Args:
        scores: of presets whose runs and steps are known; others are left out.
        x_axis: one of `X_AXES`.

    Returns:
        A line for each run, of tasks that some run was fine-tuned on at several of its steps.

    Example:
    ```python
    pretraining_curves(scores, "hours")["MNLI matched"]["COCO-LM"]
    ```
    """
    chosen = (score for score in _complete(scores) if score.run and not score.from_scratch)
    curves = _curves(
        chosen, lambda score: score.run.name, lambda score: score.run.at(score.step, x_axis)
    )
    # The other runs' points are what the lines are compared with.
    return {task: curves[task] for task in _varied(curves)}


def few_shot_curves(scores: Iterable[Score]) -> Curves:
    """Scores over the share of the training rows (paper, figures 7c and 7d).

    Args:
        scores: of fine-tunings; those by prompts are left out.

    Returns:
        A line for each model, of tasks that were learned with several shares.

    Example:
    ```python
    few_shot_curves(scores)["MNLI matched"]["COCO-LM"]
    ```
    """
    chosen = [score for score in scores if not score.shots]
    return _varied(_curves(chosen, _model, lambda score: score.train_fraction))


def prompt_curves(scores: Iterable[Score]) -> Curves:
    """Scores of fine-tuning by prompts over the examples of each class (paper, table 4).

    Args:
        scores: those of `finetune_prompt.py`; others are left out.

    Returns:
        A line for each model.

    Example:
    ```python
    prompt_curves(scores)["MNLI matched"]["COCO-LM"]
    ```
    """
    return _curves((score for score in scores if score.shots), _model, lambda score: score.shots)


def crop_curves(scores: Iterable[Score]) -> Curves:
    """Scores over the share of a text that its second view keeps (paper, figure 4).

    Args:
        scores: of presets whose runs are known; others are left out.

    Returns:
        A line for runs that are alike in everything else, named by the first of them.

    Example:
    ```python
    crop_curves(read_scores("runs/figure4"))["RTE"]
    ```
    """
    chosen = [score for score in _complete(scores) if score.run and not score.from_scratch]
    chosen = [score for score in chosen if score.step == score.run.config.trainer.train_steps]
    names: dict[str, str] = {}
    for score in chosen:
        names.setdefault(_all_but_crop(score), score.run.name)
    return _varied(
        _curves(
            chosen,
            lambda score: names[_all_but_crop(score)],
            lambda score: score.run.config.data.crop_fraction,
        )
    )


def draw_pretraining(curves: Curves, x_axis: str) -> Figure:
    """Draws `pretraining_curves`.

    Example:
    ```python
    draw_pretraining(pretraining_curves(scores, "hours"), "hours")
    ```
    """
    return _draw(curves, X_AXES[x_axis], _from_zero)


def draw_few_shot(curves: Curves) -> Figure:
    """Draws `few_shot_curves`.

    Example:
    ```python
    draw_few_shot(few_shot_curves(scores))
    ```
    """
    return _draw(curves, "training rows learned from", _in_powers(lambda x: f"{100 * x:g}%"))


def draw_prompts(curves: Curves) -> Figure:
    """Draws `prompt_curves`.

    Example:
    ```python
    draw_prompts(prompt_curves(scores))
    ```
    """
    return _draw(curves, "examples of each class", _in_powers("{:g}".format))


def draw_crops(curves: Curves) -> Figure:
    """Draws `crop_curves`.

    Example:
    ```python
    draw_crops(crop_curves(scores))
    ```
    """
    return _draw(curves, "share of the text kept", _shares)


def _complete(scores: Iterable[Score]) -> Iterable[Score]:
    return (score for score in scores if score.train_fraction == 1 and not score.shots)


def _model(score: Score) -> str:
    return f"{score.model}, from scratch" if score.from_scratch else score.model


def _all_but_crop(score: Score) -> str:
    config = score.run.config.as_dict()
    config["data"] = {k: v for k, v in config["data"].items() if k != "crop_fraction"}
    return json.dumps(config, sort_keys=True)


def _curves(
    scores: Iterable[Score], name: Callable[[Score], str], place: Callable[[Score], float]
) -> Curves:
    curves: Curves = {}
    for score in scores:
        points = curves.setdefault(f"{score.task}, {score.metric}", {}).setdefault(name(score), [])
        points.append(Point(place(score), score.mean, min(score.values), max(score.values)))
    for lines in curves.values():
        for points in lines.values():
            points.sort(key=lambda point: point.x)
    return curves


def _varied(curves: Curves) -> Curves:
    """Lines of several places, and the tasks that have any."""
    kept = {
        task: {name: line for name, line in lines.items() if len({point.x for point in line}) > 1}
        for task, lines in curves.items()
    }
    return {task: lines for task, lines in kept.items() if lines}


def _draw(curves: Curves, x_label: str, set_places: Callable[[Axes, list[float]], None]) -> Figure:
    names = list(dict.fromkeys(name for lines in curves.values() for name in lines))
    styles = {
        name: {
            "color": PALETTE[number % len(PALETTE)],
            "marker": _SHAPES[number // len(PALETTE) % len(_SHAPES)],
        }
        for number, name in enumerate(names)
    }
    with styled():
        figure, panels = new_panels(list(curves), x_label, "score", height=3.1, share_y=False)
        for axes, lines in zip(panels, curves.values(), strict=True):
            for name, points in lines.items():
                _draw_line(axes, points, styles[name])
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        places = sorted({p.x for lines in curves.values() for line in lines.values() for p in line})
        set_places(panels[0], places)
        handles = [Line2D([], [], linewidth=1.4, markersize=4.5, **styles[name]) for name in names]
        legend_below(figure, handles, names)
    return figure


def _draw_line(axes: Axes, points: Sequence[Point], style: Mapping[str, str]) -> None:
    means = [point.mean for point in points]
    below = [point.mean - point.low for point in points]
    above = [point.high - point.mean for point in points]
    axes.errorbar(
        [point.x for point in points],
        means,
        yerr=[below, above],
        linewidth=1.4,
        elinewidth=0.9,
        capsize=2.5,
        markersize=4.5,
        **style,
    )


def _from_zero(axes: Axes, places: list[float]) -> None:
    axes.set_xlim(0, 1.05 * max(places) or None)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _in_powers(form: Callable[[float], str]) -> Callable[[Axes, list[float]], None]:
    def set_places(axes: Axes, places: list[float]) -> None:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: form(x))
        axes.set_xlim(places[0] / 1.25, places[-1] * 1.25)

    return set_places


def _shares(axes: Axes, places: list[float]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlim(places[0] - 0.03, places[-1] + 0.03)
