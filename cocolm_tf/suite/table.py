"""A suite's results as a page of tables, the first of them like the paper's Table 3."""

from collections.abc import Mapping, Sequence
from typing import Any

from cocolm_tf.analysis.glossary import MEANINGS
from cocolm_tf.finetuning.results_page import markdown_table

_MISSING = "—"
# Of what held-out text is measured by, what tells rows apart.
_HELD_OUT = (
    "mlm_loss",
    "mlm_accuracy",
    "replacement_rate",
    "copy_accuracy_replaced",
    "copy_accuracy_original",
    "lm_accuracy_replaced",
    "lm_accuracy_original",
    "positive_cosine",
    "negative_cosine",
)


def suite_page(results: Mapping[str, Any]) -> str:
    """Lays a suite's results out as Markdown.

    Args:
        results: What `suite_results` returned.

    Returns:
        The page: medians, spreads, what pretraining measured, costs.

    Example:
    ```python
    print(suite_page(suite_results(plan, pretrained, finetuned)))
    ```
    """
    rows = results["rows"]
    sections = [f"# {results['suite']}"]
    if results["tasks"]:
        sections.append(
            f"Dev sets, medians over seeds ({results['seeds']} where all is done, see below), "
            "times 100: Matthews correlation for CoLA, Spearman's for STS-B, accuracy for the "
            "rest. AVG is the mean over the tasks, with the matched set for MNLI."
        )
        sections.append(_scores(results))
        sections.append(
            "How they spread over seeds: lowest to highest, and how many there are. AVG: mean and "
            "standard deviation of each seed's average. Differences within these mean little."
        )
        sections.append(_spreads(results))
    if any(_held_out(row) for row in rows):
        sections.append(
            "What pretraining came to, on held-out text. Cosines of a row without contrastive "
            "learning are those of its vectors as they are."
        )
        sections.append(_measures(rows))
    sections.append(
        "What it cost. FLOPs are the model's, of matrix products; tokens a second are the median "
        "of what was logged, and like the minutes they depend on what else the machine did."
    )
    sections.append(_costs(rows))
    return "\n\n".join(sections) + "\n"


def _scores(results: Mapping[str, Any]) -> str:
    def cells(row: Mapping[str, Any]) -> list[str]:
        average = row["average"]
        return [
            *(_score(row["finetuning"].get(task["name"])) for task in results["tasks"]),
            _MISSING if average is None else f"{100 * average:.1f}",
        ]

    return _table(results["rows"], [*(task["title"] for task in results["tasks"]), "AVG"], cells)


def _score(found: Mapping[str, Any] | None) -> str:
    if not found or "score" not in found:
        return "diverged" if found and found["diverged"] else _MISSING
    metric = found["metric"]
    return "/".join(f"{100 * metrics[metric]['median']:.1f}" for metrics in found["dev"].values())


def _spreads(results: Mapping[str, Any]) -> str:
    def cells(row: Mapping[str, Any]) -> list[str]:
        averages, average = row["averages"], _MISSING
        if averages:
            count = len(averages["values"])
            average = f"{100 * averages['mean']:.1f} ± {100 * averages['std']:.1f} ({count})"
        return [
            *(_spread(row["finetuning"].get(task["name"])) for task in results["tasks"]),
            average,
        ]

    return _table(results["rows"], [*(task["title"] for task in results["tasks"]), "AVG"], cells)


def _spread(found: Mapping[str, Any] | None) -> str:
    if not found:
        return _MISSING
    parts = []
    if "score" in found:
        score = found["score"]
        parts.append(
            f"{100 * score['min']:.1f} to {100 * score['max']:.1f} ({len(score['values'])})"
        )
    if found["diverged"]:
        parts.append(f"{found['diverged']} diverged")
    return ", ".join(parts)


def _measures(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [name for name in _HELD_OUT if any(name in _held_out(row) for row in rows)]

    def cells(row: Mapping[str, Any]) -> list[str]:
        found = _held_out(row)
        return [
            MEANINGS[name][1].format(found[name]) if name in found else _MISSING for name in shown
        ]

    return _table(
        [row for row in rows if _held_out(row)], [MEANINGS[name][0] for name in shown], cells
    )


def _held_out(row: Mapping[str, Any]) -> Mapping[str, float]:
    return (row["pretraining"] or {}).get("held_out", {})


def _costs(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["Params", "Steps", "Tokens", "Tokens/s", "FLOPs", "Minutes", "Fine-tuning minutes"]

    def cells(row: Mapping[str, Any]) -> list[str]:
        cost, found = row["pretraining"], row["finetuning"].values()
        minutes = sum(one.get("minutes", 0.0) for one in found)
        finetuning = f"{minutes:.1f}" if minutes else _MISSING
        if not cost:
            return [*[_MISSING] * 6, finetuning]
        rate = cost["tokens_per_second"]
        return [
            f"{cost['parameters'] / 1e6:.3g}M",
            f"{cost['steps']:,}",
            f"{cost['tokens']:,}",
            _MISSING if rate is None else f"{rate:,.0f}",
            f"{cost['flops']:.3g}",
            f"{cost['minutes']:.1f}",
            finetuning,
        ]

    return _table(rows, header, cells)


def _table(rows: Sequence[Mapping[str, Any]], header: Sequence[str], cells: Any) -> str:
    """A row each, with its group where a new one begins."""
    has_groups = any(row["group"] for row in rows)
    lines, before = [], None
    for row in rows:
        group = row["group"] if row["group"] != before else ""
        before = row["group"]
        lines.append([*([group] if has_groups else []), row["title"], *cells(row)])
    return markdown_table([*(["Group"] if has_groups else []), "Method", *header], lines)
