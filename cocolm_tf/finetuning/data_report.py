"""What a run has read, for people to look at before it trains."""

from collections.abc import Mapping

import numpy as np

from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.finetuning.batches import Tokens, describe_lengths


def describe_data(data: TaskData, train: Examples, tokens: Mapping[str, Tokens]) -> dict:
    """Sums up the examples of a run.

    Args:
        data: Of the task.
        train: Those of the training examples that the run learns from.
        tokens: Of `train` and of the dev and test sets, by their names.

    Returns:
        For each of them `rows`, `source`, `left_out`, `tokens` (see `describe_lengths`) and, where
        they are known, `labels`: how many there are of each class, or a regression's `mean`,
        `min` and `max`.

    Example:
    ```python
    describe_data(data, data.train, tokens)["train"]["rows"]
    ```
    """
    parts = {"train": train, **data.dev, **data.test}
    return {
        name: {
            "rows": len(examples),
            "source": examples.source,
            "left_out": list(examples.left_out),
            "labels": _labels(examples, data),
            "tokens": describe_lengths(tokens[name]) if name in tokens else None,
        }
        for name, examples in parts.items()
    }


def data_lines(name: str, report: dict) -> str:
    """Lays out what `describe_data` gave.

    Args:
        name: Of the task.
        report: What `describe_data` gave.

    Returns:
        Some lines.

    Example:
    ```python
    print(data_lines("RTE", describe_data(data, data.train, tokens)))
    ```
    """
    lines = [f"{name}:"]
    for part, facts in report.items():
        line = f"  {part}: {facts['rows']:,} rows of {facts['source']}"
        if facts["labels"]:
            line += f"; labels: {_label_text(facts['labels'], facts['rows'])}"
        if facts["tokens"]:
            lengths = facts["tokens"]
            line += (
                f"; tokens: median {lengths['median']}, 95% up to {lengths['percentile_95']}, "
                f"longest {lengths['longest']}; {lengths['truncated']:,} truncated"
            )
        lines.append(line)
        if facts["left_out"]:
            lines.append(f"    left out: {'; '.join(facts['left_out'])}")
    return "\n".join(lines)


def _labels(examples: Examples, data: TaskData) -> dict[str, float] | None:
    if examples.labels is None:
        return None
    if data.label_names is None:
        values = examples.labels
        return {name: float(getattr(values, name)()) for name in ("mean", "min", "max")}
    counts = np.bincount(examples.labels, minlength=data.num_classes)
    return {name: int(count) for name, count in zip(data.label_names, counts, strict=True)}


def _label_text(labels: Mapping[str, float], rows: int) -> str:
    if set(labels) == {"mean", "min", "max"}:
        return f"mean {labels['mean']:.2f}, from {labels['min']:g} to {labels['max']:g}"
    shown = [f"{name} {count:,} ({count / rows:.1%})" for name, count in labels.items()]
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
