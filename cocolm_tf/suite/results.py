"""The results of a suite, the page of tables, and the curves of its pretrainings."""

import os
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from scipy import stats

from cocolm_tf.analysis.comparison import Findings, write_comparison
from cocolm_tf.analysis.figures import PALETTE
from cocolm_tf.analysis.glossary import METRICS
from cocolm_tf.analysis.runs import TRAINING, Run, elapsed_seconds, read_metrics, read_run
from cocolm_tf.costs.flops import pretraining_flops
from cocolm_tf.finetuning.report import summarize, summarize_runs
from cocolm_tf.suite.plan import Plan, Row, run_folder
from cocolm_tf.training.config import PretrainingConfig
from cocolm_tf.training.model_card import markdown_table
from cocolm_tf.training.stages import Total, tokens_per_step

# The results of one row and task: from each seed to those of `run_task`.
Seeds = Mapping[int, Mapping[str, Any]]


def pretraining_cost(config: PretrainingConfig, model_dir: str) -> dict[str, Any]:
    """The steps, tokens, FLOPs and minutes of a finished pretraining."""
    run = Run("", read_metrics(model_dir), config)
    steps = config.trainer.train_steps
    rates = run.series(TRAINING, "tokens_per_second")
    return {
        "steps": steps,
        "tokens": Total(config, tokens_per_step)(steps),
        "tokens_per_second": float(rates.median()) if len(rates) else None,
        "flops": Total(config, lambda stage: sum(pretraining_flops(stage).values()))(steps),
        "minutes": elapsed_seconds(run.log).max() / 60,
    }


def suite_results(
    plan: Plan,
    pretrained: Mapping[str, Mapping[str, Any]],
    finetuned: Mapping[tuple[str, str], Seeds],
) -> dict[str, Any]:
    """Gathers the results so far, row by row."""
    return {
        "suite": plan.suite.name,
        "seeds": plan.seeds,
        "tasks": [{"name": task.name, "title": task.title} for task in plan.tasks],
        "rows": [_row(plan, row, pretrained, finetuned) for row in plan.suite.rows],
    }


def _row(
    plan: Plan,
    row: Row,
    pretrained: Mapping[str, Mapping[str, Any]],
    finetuned: Mapping[tuple[str, str], Seeds],
) -> dict[str, Any]:
    of_tasks = {task.name: finetuned.get((row.name, task.name), {}) for task in plan.tasks}
    of_tasks = {name: dict(sorted(seeds.items())) for name, seeds in of_tasks.items()}
    medians = [_of_task(seeds) for seeds in of_tasks.values()]
    complete = bool(medians) and all("score" in one for one in medians)
    return {
        "name": row.name,
        "title": row.title,
        "group": row.group,
        "changes": list(row.changes),
        "auxiliary_of": row.auxiliary_of,
        "random_weights_of": row.random_weights_of,
        "preset": row.preset,
        "pretraining": pretrained.get(row.name),
        "finetuning": {name: _of_task(seeds) for name, seeds in of_tasks.items() if seeds},
        "average": statistics.fmean(one["score"]["median"] for one in medians)
        if complete
        else None,
        "averages": _averages(of_tasks),
    }


def _of_task(seeds: Seeds) -> dict[str, Any]:
    done = {seed: run for seed, run in seeds.items() if not run.get("diverged")}
    found: dict[str, Any] = {"seeds": list(done), "diverged": len(seeds) - len(done)}
    if done:
        runs = list(done.values())
        found["metric"] = runs[0]["metric"]
        # The score of the first dev set, as in the paper's averages.
        found["score"] = summarize([run["score"] for run in runs])
        found["dev"] = summarize_runs([run["dev"] for run in runs])
        found["minutes"] = sum(run["seconds"] for run in runs) / 60
    return found


def _averages(of_tasks: Mapping[str, Seeds]) -> dict[str, Any] | None:
    """The averages over the tasks of each seed that all tasks were fine-tuned with, summed up."""
    averages = {}
    for seed in sorted(set.intersection(*map(set, of_tasks.values()))) if of_tasks else ():
        scores = [seeds[seed].get("score") for seeds in of_tasks.values()]
        if None not in scores:
            averages[seed] = statistics.fmean(scores)
    return summarize(list(averages.values())) | {"seeds": list(averages)} if averages else None


_MISSING = "—"
# The measures of held-out text in which rows differ.
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
    """A suite's results as Markdown."""
    rows = results["rows"]
    sections = [f"# {results['suite']}"]
    if results["tasks"]:
        sections.append(
            f"Dev sets, medians over seeds ({results['seeds']} where all is done, see below), "
            "times 100: Matthews correlation for CoLA, Spearman's for STS-B, accuracy for the "
            "rest. AVG is the mean over the tasks, with the matched set for MNLI."
        )
        sections.append(_of_tasks(results, _score, _average))
        sections.append(
            "How they spread over seeds: lowest to highest, and how many there are. AVG: mean and "
            "standard deviation of each seed's average. Differences within these mean little."
        )
        sections.append(_of_tasks(results, _spread, _average_spread))
        reference = _reference(rows)
        sections.append(
            f"Differences from {reference['title']} over the seeds that both have: their mean, "
            "times 100, and the p of a paired t test. One comparison in twenty is below 0.05 by "
            "chance."
        )
        sections.append(_differences(results, reference))
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


def _of_tasks(
    results: Mapping[str, Any], of_task: Callable[[Any], str], of_average: Callable[[Any], str]
) -> str:
    """A table with a column for each task and one for the averages over them."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        found = [row["finetuning"].get(task["name"]) for task in results["tasks"]]
        return [*map(of_task, found), of_average(row)]

    return _table(results["rows"], [*(task["title"] for task in results["tasks"]), "AVG"], cells)


def _average(row: Mapping[str, Any]) -> str:
    return _MISSING if row["average"] is None else f"{100 * row['average']:.1f}"


def _average_spread(row: Mapping[str, Any]) -> str:
    if not (found := row["averages"]):
        return _MISSING
    return f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f} ({len(found['values'])})"


def _score(found: Mapping[str, Any] | None) -> str:
    if not found or "score" not in found:
        return "diverged" if found and found["diverged"] else _MISSING
    metric = found["metric"]
    return "/".join(f"{100 * metrics[metric]['median']:.1f}" for metrics in found["dev"].values())


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


def _reference(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row that the others are compared with: no pretraining, or else the first row."""
    return next((row for row in rows if row["random_weights_of"]), rows[0])


def _differences(results: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    tasks = results["tasks"]

    def by_seed(row: Mapping[str, Any]) -> list[dict[int, float]]:
        scored = [row["finetuning"].get(task["name"]) or {} for task in tasks]
        found = [(one.get("seeds", ()), one.get("score")) for one in scored]
        averages = row["averages"]
        found.append((averages["seeds"], averages) if averages else ((), None))
        return [
            dict(zip(seeds, score["values"], strict=True)) if score else {}
            for seeds, score in found
        ]

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [_difference(*pair) for pair in zip(by_seed(row), by_seed(reference), strict=True)]

    others = [row for row in results["rows"] if row is not reference]
    return _table(others, [*(task["title"] for task in tasks), "AVG"], cells)


def _difference(scores: Mapping[int, float], reference: Mapping[int, float]) -> str:
    seeds = [seed for seed in scores if seed in reference]
    if not seeds:
        return _MISSING
    pairs = [scores[seed] for seed in seeds], [reference[seed] for seed in seeds]
    mean = f"{100 * (statistics.fmean(pairs[0]) - statistics.fmean(pairs[1])):+.1f}"
    if len({one - other for one, other in zip(*pairs, strict=True)}) < 2:
        return mean  # A single seed, or differences without a spread: there is nothing to test.
    return f"{mean} (p = {stats.ttest_rel(*pairs).pvalue:.2g})"


def _measures(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [name for name in _HELD_OUT if any(name in _held_out(row) for row in rows)]

    def cells(row: Mapping[str, Any]) -> list[str]:
        found = _held_out(row)
        return [
            METRICS[name][1].format(found[name]) if name in found else _MISSING for name in shown
        ]

    return _table(
        [row for row in rows if _held_out(row)], [METRICS[name][0] for name in shown], cells
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
    """A Markdown table of the rows, each group named in its first row."""
    has_groups = any(row["group"] for row in rows)
    lines, before = [], None
    for row in rows:
        group = row["group"] if row["group"] != before else ""
        before = row["group"]
        lines.append([*([group] if has_groups else []), row["title"], *cells(row)])
    return markdown_table([*(["Group"] if has_groups else []), "Method", *header], lines)


CURVES_DIRECTORY = "curves"


def write_curves(plan: Plan, output_dir: str) -> list[str]:
    """Draws what the rows logged while they were pretrained, over the tokens that they read."""
    pages = []
    for name, rows in _groups(plan):
        runs = [read_run(row.title, run_folder(output_dir, row.name)) for row in rows]
        folder = os.path.join(output_dir, CURVES_DIRECTORY, name)
        pages.append(write_comparison(folder, Findings(runs=runs), "tokens"))
    return pages


def _groups(plan: Plan) -> Iterator[tuple[str, list[Row]]]:
    """The rows that are drawn together, as many as there are colors, and their folder's name."""
    first, *others = (row for row in plan.suite.rows if row.name in plan.configs)
    groups: dict[str, list[Row]] = {}
    for row in others:
        groups.setdefault(row.group, []).append(row)
    for group, rows in (groups or {first.group: []}).items():
        for start in range(0, max(1, len(rows)), len(PALETTE) - 1):
            part = [first, *rows[start : start + len(PALETTE) - 1]]
            number = f"_{1 + start // (len(PALETTE) - 1)}" if len(rows) >= len(PALETTE) else ""
            yield re.sub(r"\W+", "_", group.lower() or "all") + number, part
