"""The tasks of GLUE, from their official TSV files or from TensorFlow Datasets."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

from cocolm_tf import files
from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.data.labeled_tables import label_parser, labeled_examples, number_parser
from cocolm_tf.data.tables import Table, read_table
from cocolm_tf.data.tfds_builder import prepared_builder
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
    read = _tsv_reader(known, data_dir) if data_dir else _tfds_reader(task, known)
    test_files = known.test or {known.title: "test"}
    tests = {name: read(file, False) for name, file in test_files.items()}
    return TaskData(
        known.title,
        known.label_names,
        read("train", True),
        {name: read(file, True) for name, file in known.dev.items()},
        {name: examples for name, examples in tests.items() if examples is not None},
        known.label_values,
        known.bounds,
        known.metrics,
    )


def glue_files(task: str, data_dir: str | None = None) -> list[str]:
    """The paths that `read_glue` reads, those included that may be missing; none for TFDS."""
    if not data_dir:
        return []
    known = GLUE_TASKS[task]
    names = ["train", *known.dev.values(), *(known.test or {"": "test"}).values()]
    return [_tsv_path(known, data_dir, name) for name in names]


# Reads a file by its name, with its labels or without; None for an optional one that is missing.
_Reader = Callable[[str, bool], Examples | None]


def _tsv_path(task: GlueTask, data_dir: str, name: str) -> str:
    folder = os.path.join(data_dir, task.title)
    if not files.is_dir(folder):
        folder = data_dir
    return files.normal(files.join(folder, f"{name}.tsv"))


def _tsv_reader(task: GlueTask, data_dir: str) -> _Reader:
    if not files.is_file(_tsv_path(task, data_dir, "train")):
        raise UserError(
            f"--data_dir={data_dir} has no {os.path.join(task.title, 'train.tsv')}: it is the "
            "folder that GLUE's own files lie in."
        )

    def read(name: str, is_labeled: bool) -> Examples | None:
        path = _tsv_path(task, data_dir, name)
        if not is_labeled:
            if not files.is_file(path):
                return None
            # Every row of a test file needs a prediction.
            return labeled_examples(
                read_table(path, task.texts), len(task.texts), None, allow_empty=True
            )
        table = read_table(path, [*task.texts, task.label], task.header)
        parse = _parser(task)
        return labeled_examples(table, len(task.texts), parse, MAX_BAD_SHARE)

    return read


def _parser(task: GlueTask) -> Callable[[str], int | float]:
    if task.label_names is None:
        return number_parser(task.bounds)
    return label_parser(task.label_values or task.label_names)


def _tfds_reader(name: str, task: GlueTask) -> _Reader:
    def read(file: str, is_labeled: bool) -> Examples:
        config = "ax" if "diagnostic" in file else name
        builder = prepared_builder(f"glue/{config}")
        split = "test" if config == "ax" else file.replace("dev", "validation")
        features = [*(task.tfds_texts or task.texts), *(["label"] if is_labeled else [])]
        dataset = builder.as_dataset(split=split, shuffle_files=False)
        rows = [
            (int(row["idx"]), [row[feature] for feature in features])
            for row in dataset.as_numpy_iterator()
        ]
        # TFDS shuffles the rows when it writes them, and the leaderboard wants their numbers.
        rows.sort(key=lambda row: row[0])
        table = Table(
            f"glue/{config} ({split})",
            [_tfds_row(values, task, is_labeled) for _, values in rows],
            [index for index, _ in rows],
            [],
        )
        parse = _parser(task) if is_labeled else None
        share = MAX_BAD_SHARE if is_labeled else 0.0
        return labeled_examples(table, len(task.texts), parse, share, allow_empty=not is_labeled)

    return read


def _tfds_row(values: Sequence[object], task: GlueTask, is_labeled: bool) -> tuple[str, ...]:
    texts = values[:-1] if is_labeled else values
    row = [text.decode("utf-8", "replace") for text in texts]
    if is_labeled:
        names = task.label_values or task.label_names
        label = values[-1]
        row.append(str(float(label)) if names is None else names[int(label)])
    return tuple(row)
