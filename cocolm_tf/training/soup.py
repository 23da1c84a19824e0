"""Model soups: presets of one architecture, averaged weight by weight (Wortsman et al., 2022)."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cocolm_tf import files
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.tokenizer import CONFIG_FILENAME
from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.model_card import Facts, Result, markdown_table
from cocolm_tf.training.preset import (
    ARCHITECTURE,
    AUXILIARY_DIRECTORY,
    BACKBONE_FILENAME,
    check_is_preset,
    read_backbone,
    saved_heads,
    write_preset,
)
from cocolm_tf.training.pretraining_card import describe_encoder
from cocolm_tf.versions import own_versions, versions_line

_DESCRIPTION = (
    "A Transformer encoder whose weights are the mean of those of several pretrained ones: a "
    "model soup."
)


class Score(NamedTuple):
    """How presets are compared.

    Args:
        name: The metric, as "CLM loss".
        data: What it is measured on.
        of: Measures the preset in a folder.
        higher_is_better: Whether a greater score is a better one.

    Example:
    ```python
    Score("accuracy", "RTE (dev)", measure, higher_is_better=True)
    ```
    """

    name: str
    data: str
    of: Callable[[str], float]
    higher_is_better: bool = False

    def better_first(self, scores: Mapping[str, float]) -> list[str]:
        """Sorts presets by their scores."""
        sign = -1 if self.higher_is_better else 1
        return sorted(scores, key=lambda preset: sign * scores[preset])

    def falls(self, new: float, old: float) -> bool:
        """Whether a new score is worse than an old one."""
        return new < old if self.higher_is_better else new > old


class Soup(NamedTuple):
    """The result of averaging presets.

    Args:
        weights: The share of each preset that is in the soup.
        scores: Those of all presets, if they were measured.
        score: The soup's own, if it was measured.

    Example:
    ```python
    average_presets(["runs/a/preset", "runs/b/preset"], "runs/soup").weights["runs/a/preset"]  # 0.5
    ```
    """

    weights: dict[str, float]
    scores: dict[str, float]
    score: float | None


def average_presets(
    presets: Sequence[str],
    output_dir: str,
    weights: Sequence[float] = (),
    greedy: bool = False,
    score: Score | None = None,
) -> Soup:
    """Averages presets into one, with a card that names them.

    Encoders, auxiliary models and heads are averaged in float64. Parts that some presets lack, as
    a head of a task that they were not trained on, are left out.

    Args:
        presets: Folders of at least two, all of one architecture and vocabulary.
        output_dir: The preset; replaced if it is there.
        weights: The share of each, in any unit; empty for equal ones.
        greedy: Whether to begin with the best and to add the next best as long as the soup
            does not become worse, equal shares of each.
        score: How they, and the soups of them, are measured. Greedy soups need it; others are
            measured for their card.

    Returns:
        The shares of the presets in it, and the scores.

    Raises:
        UserError: If presets do not fit together, naming one and the difference.

    Example:
    ```python
    average_presets(["runs/a/preset", "runs/b/preset"], "runs/soup")
    ```
    """
    check_presets(presets, weights)
    shares = dict(zip(presets, weights or [1.0] * len(presets), strict=True))
    scores: dict[str, float] = {}
    best = None
    if score:
        # Candidates are measured elsewhere: `output_dir` gets only the finished soup.
        with tempfile.TemporaryDirectory() as folder:
            candidate = os.path.join(folder, "preset")
            scores = {preset: score.of(preset) for preset in presets}
            if greedy:
                shares, best = _best_mean(score, scores, candidate)
            else:
                _write(shares, candidate)
                best = score.of(candidate)
    total = sum(shares.values())
    soup = Soup({preset: share / total for preset, share in shares.items()}, scores, best)
    _write(shares, output_dir, _facts(output_dir, soup, score))
    return soup


def _best_mean(
    score: Score, scores: Mapping[str, float], candidate: str
) -> tuple[dict[str, float], float]:
    """The greedy soup: its equal shares, and its score."""
    first, *others = score.better_first(scores)
    chosen, best = [first], scores[first]
    for preset in others:
        _write(dict.fromkeys([*chosen, preset], 1.0), candidate)
        found = score.of(candidate)
        if not score.falls(found, best):
            chosen, best = [*chosen, preset], found
    return dict.fromkeys(chosen, 1.0), best


def check_presets(presets: Sequence[str], weights: Sequence[float] = ()) -> None:
    """Raises the `UserError` of `average_presets` for presets that cannot be averaged."""
    if len(presets) < 2 or len(set(map(files.absolute, presets))) < len(presets):
        raise UserError("--preset: give at least two different ones to average.")
    if weights and len(weights) != len(presets):
        raise UserError(f"--weights has {len(weights)} numbers for {len(presets)} presets.")
    if any(not 0 < weight < float("inf") for weight in weights):
        raise UserError("--weights must be more than 0: leave the other presets out.")
    for preset in presets:
        check_is_preset("--preset", preset, BACKBONE_FILENAME, CONFIG_FILENAME)
        if files.is_file(files.join(preset, "task.json")):
            raise UserError(
                f"--preset={preset} is of a fine-tuned model, whose task would be lost: average "
                "presets of pretraining."
            )
    first, *others = presets
    vocabulary = load_vocabulary(first).fingerprint()
    for preset in others:
        if load_vocabulary(preset).fingerprint() != vocabulary:
            raise UserError(f"--preset={preset} has another vocabulary than {first}.")
        for part in ("", AUXILIARY_DIRECTORY):
            folders = [files.join(one, part) if part else one for one in (first, preset)]
            if all(files.is_file(files.join(folder, "config.json")) for folder in folders):
                _check_architecture(*folders)
        expected, heads = saved_heads(first), saved_heads(preset)
        for name in expected.keys() & heads.keys():
            if expected[name].shape != heads[name].shape:
                raise UserError(
                    f"--preset={preset} has {name} of the shape {heads[name].shape}, {first} of "
                    f"{expected[name].shape}."
                )


def _check_architecture(first: str, other: str) -> None:
    expected, found = (
        read_backbone(folder, load_weights=False).get_config() for folder in (first, other)
    )
    for key in (*ARCHITECTURE, "layer_norm_epsilon"):
        if found[key] != expected[key]:
            raise UserError(
                f"--preset={other} has {key}={found[key]}, {first} has {expected[key]}: only "
                "weights of one architecture can be averaged."
            )


def _write(shares: Mapping[str, float], output_dir: str, facts: Facts | None = None) -> None:
    """Writes the mean of the parts that all of the presets have."""
    total, of_presets = sum(shares.values()), [saved_heads(preset) for preset in shares]
    heads = {}
    for name, array in of_presets[0].items():
        if all(name in others for others in of_presets):
            arrays = zip(shares.values(), of_presets, strict=True)
            mean = sum(share * np.float64(one[name]) for share, one in arrays) / total
            heads[name] = mean.astype(array.dtype)
    auxiliaries = {files.join(one, AUXILIARY_DIRECTORY): share for one, share in shares.items()}
    has_auxiliary = all(map(files.is_dir, auxiliaries))
    write_preset(
        output_dir,
        _mean_backbone(shares),
        _mean_backbone(auxiliaries) if has_auxiliary else None,
        heads,
        load_vocabulary(next(iter(shares))),
        facts,
    )


def _mean_backbone(shares: Mapping[str, float]) -> CocoLMBackbone:
    """The encoder whose weights are the means, of presets read one after the other."""
    total, sums = sum(shares.values()), []
    for folder, share in shares.items():
        backbone = read_backbone(folder)
        values = [share * np.asarray(v, np.float64) for v in backbone.trainable_variables]
        sums = [s + value for s, value in zip(sums, values, strict=True)] if sums else values
    for variable, value in zip(backbone.trainable_variables, sums, strict=True):
        variable.assign((value / total).astype(variable.dtype))
    return backbone


def _facts(output_dir: str, soup: Soup, score: Score | None) -> Facts:
    """The model card: the presets and the score of each, beside the soup's."""
    columns = ["preset", "share", *([score.name] if score else [])]
    rows = [
        [preset, f"{soup.weights.get(preset, 0):.4f}"]
        + ([f"{soup.scores[preset]:.4f}"] if score else [])
        for preset in soup.scores or soup.weights
    ]
    if score:
        rows.append(["this soup", "", f"{soup.score:.4f}"])
    return Facts(
        files.name(output_dir),
        description=_DESCRIPTION,
        model_type=describe_encoder(read_backbone(next(iter(soup.weights)), load_weights=False)),
        training_data="That of the presets it is the mean of:\n\n" + markdown_table(columns, rows),
        settings={f"share of {preset}": share for preset, share in soup.weights.items()},
        evaluation_data=score.data if score else "",
        results=[Result("fill-mask", score.data, score.name, soup.score)] if score else (),
        software=versions_line(own_versions()),
    )
