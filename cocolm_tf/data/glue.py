"""The tasks of GLUE, from their official TSV files or from TensorFlow Datasets."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from cocolm_tf import files
from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.data.sources import tfds_rows
from cocolm_tf.data.tables import Table, label_parser, labeled_examples, number_parser, read_table
from cocolm_tf.errors import UserError

# Some official files have rows without a text, or with one that a tab or line end has split.
MAX_BAD_SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """One task of GLUE, as its files are."""

    title: str  # Its name in tables, of its folder, and of its file on the leaderboard
    texts: tuple[str, ...]  # The columns of the texts in its TSV files
    label: str  # The column of the label
    # The classes in order, as TFDS has them; None for a regression.
    label_names: tuple[str, ...] | None
    # How the files and the leaderboard write the classes; None as their names.
    label_values: tuple[str, ...] | None = None
    tfds_texts: tuple[str, ...] | None = None  # TFDS's features of the texts; None as the columns
    # The columns of `train.tsv` and `dev.tsv` where they have no header.
    header: tuple[str, ...] | None = None
    bounds: tuple[float, float] | None = None  # The lowest and the highest number of a regression
    # The files of its dev sets, by their names.
    dev: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"dev": "dev"})
    # Its test files, by the names of the leaderboard's files; None for one, `test`.
    test: Mapping[str, str] | None = None
    metrics: tuple[str, ...] = ()  # As of `TaskData`; the first is that of Table 1 of the paper


_YES_NO = ("0", "1")
_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

GLUE_TASKS = {
    "cola": GlueTask(
        "CoLA",
        ("sentence",),
        "label",
        ("unacceptable", "acceptable"),
        _YES_NO,
        header=("source", "label", "star", "sentence"),
        metrics=("matthews", "accuracy"),
    ),
    "sst2": GlueTask("SST-2", ("sentence",), "label", ("negative", "positive"), _YES_NO),
    "mrpc": GlueTask(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        ("not_equivalent", "equivalent"),
        _YES_NO,
        tfds_texts=_SENTENCES,
    ),
    "stsb": GlueTask("STS-B", _SENTENCES, "score", None, bounds=(0.0, 5.0)),
    "qqp": GlueTask(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        ("not_duplicate", "duplicate"),
        _YES_NO,
    ),
    "mnli": GlueTask(
        "MNLI",
        _SENTENCES,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        tfds_texts=("premise", "hypothesis"),
        dev={"matched": "dev_matched", "mismatched": "dev_mismatched"},
        test={
            "MNLI-m": "test_matched",
            "MNLI-mm": "test_mismatched",
            "AX": os.path.join("..", "diagnostic", "diagnostic"),
        },
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", _ENTAILMENT),
    "rte": GlueTask("RTE", _SENTENCES, "label", _ENTAILMENT),
    "wnli": GlueTask("WNLI", _SENTENCES, "label", ("not_entailment", "entailment"), _YES_NO),
}


def read_glue(task: str, data_dir: str | None = None) -> TaskData:
    """Reads a task of GLUE from its official TSV files, or from TFDS without a `data_dir`."""
    # The folder has `CoLA/train.tsv` and so on, or is the task's own. TensorFlow Datasets downloads
    # missing data. Broken rows of training and dev files, up to one in a hundred, are left out and
    # reported. Missing test files are no test sets.
    if task not in GLUE_TASKS:
        raise UserError(f"--task is one of {', '.join(GLUE_TASKS)}, not {task!r}.")
    known = GLUE_TASKS[task]
    if data_dir and not files.is_file(task_path(data_dir, known.title, "train.tsv")):
        raise UserError(
            f"--data_dir={data_dir} has no {os.path.join(known.title, 'train.tsv')}: it is the "
            "folder that GLUE's own files lie in."
        )

    def read(name: str, is_labeled: bool = True) -> Examples:
        texts = len(known.texts)
        if data_dir:
            columns = [*known.texts, *([known.label] if is_labeled else [])]
            header = known.header if is_labeled else None
            table = read_table(task_path(data_dir, known.title, f"{name}.tsv"), columns, header)
        else:
            table = _tfds_table(task, name, is_labeled)
        if not is_labeled:  # Every row of a test file needs a prediction.
            return labeled_examples(table, texts, None, allow_empty=True)
        parse = number_parser(known.bounds)
        if known.label_names:
            parse = label_parser(known.label_values or known.label_names)
        return labeled_examples(table, texts, parse, MAX_BAD_SHARE)

    tests = {
        name: read(file, is_labeled=False)
        for name, file in _test_files(known).items()
        if not data_dir or files.is_file(task_path(data_dir, known.title, f"{file}.tsv"))
    }
    return TaskData(
        known.title,
        known.label_names,
        read("train"),
        {name: read(file) for name, file in known.dev.items()},
        tests,
        known.label_values,
        known.bounds,
        known.metrics,
    )


def glue_files(task: str, data_dir: str | None = None) -> list[str]:
    """The paths that `read_glue` reads, those included that may be missing; none for TFDS."""
    known = GLUE_TASKS[task]
    names = ["train", *known.dev.values(), *_test_files(known).values()]
    return [task_path(data_dir, known.title, f"{name}.tsv") for name in names] if data_dir else []


def task_path(data_dir: str, title: str, name: str) -> str:
    """The path of an official file: in the task's folder in `data_dir`, or in `data_dir` itself."""
    folder = os.path.join(data_dir, title)
    return files.normal(files.join(folder if files.is_dir(folder) else data_dir, name))


def _test_files(task: GlueTask) -> Mapping[str, str]:
    return task.test or {task.title: "test"}


def _tfds_table(task: str, file: str, is_labeled: bool) -> Table:
    known = GLUE_TASKS[task]
    config, split = f"glue/{task}", file.replace("dev", "validation")
    if "diagnostic" in file:
        config, split = "glue/ax", "test"
    names = known.label_values or known.label_names

    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        texts = [row[name].decode("utf-8", "replace") for name in known.tfds_texts or known.texts]
        if is_labeled:
            label = row["label"]
            texts.append(str(float(label)) if names is None else names[int(label)])
        return tuple(texts)

    # TFDS shuffles the rows when it writes them, and the leaderboard wants their numbers.
    rows = sorted((int(row["idx"]), cells(row)) for row in tfds_rows(config, split))
    return Table(
        f"{config} ({split})", [row for _, row in rows], [number for number, _ in rows], []
    )
