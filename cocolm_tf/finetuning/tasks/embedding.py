"""Vectors of texts: learned from pairs, measured by their cosines and by searches."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.data.examples import Examples
from cocolm_tf.data.text_pairs import (
    Retrieval,
    TextPairs,
    read_pairs,
    read_retrieval,
    retrieval_files,
    retrieval_of_pairs,
)
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.batches import (
    Tokens,
    describe_lengths,
    predict_rows,
    tokenized,
)
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.encoder import encoder_of, row_length
from cocolm_tf.finetuning.metrics import evaluate
from cocolm_tf.finetuning.models.pair_batches import pair_batches
from cocolm_tf.finetuning.models.text_embedder import (
    CocoLMTextEmbedder,
    CocoLMTextEmbedderPreprocessor,
)
from cocolm_tf.finetuning.predictions import PREDICTIONS_DIRECTORY
from cocolm_tf.finetuning.presets import backbone_config
from cocolm_tf.finetuning.retrieval import RETRIEVAL_METRICS, search_scores
from cocolm_tf.finetuning.tasks.classification import data_lines
from cocolm_tf.finetuning.tasks.task import (
    Prepared,
    Scores,
    Task,
    base_model,
    best_epoch_line,
    card_results,
    settings_of,
    shared_facts,
)
from cocolm_tf.training.model_card import Facts

STS_METRICS = ("spearman", "pearson")

_HUB_TASK = "sentence-similarity"
_FILES = ("train_file", "dev_file")


@dataclasses.dataclass(frozen=True)
class EmbeddingData:
    """Pairs to learn from, and parts to measure on, each pairs or a collection to search."""

    name: str
    train: TextPairs
    dev: Mapping[str, TextPairs | Retrieval]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the first part; the first of them chooses the best measurement."""
        first = next(iter(self.dev.values()))
        return STS_METRICS if isinstance(first, TextPairs) else RETRIEVAL_METRICS


def read_embedding_data(
    name: str,
    train_file: str,
    columns: Sequence[str],
    score_column: str = "",
    score_range: Sequence[float] = (0.0, 1.0),
    dev_file: str = "",
    dev_fraction: float = 0.1,
    dev_score_column: str = "",
    retrieval_dir: str = "",
    retrieval_part: str = "test",
    max_bad_share: float = 0.0,
    encoding: str = "",
    delimiter: str = "",
) -> EmbeddingData:
    """Reads the data of an `EmbeddingTask`: pairs and, where wanted, a collection to search.

    Args:
        name: The task's name, for people.
        train_file: The table to learn from.
        columns: Its columns of first texts, second texts and hard negatives.
        score_column: Its column of similarities; empty where the first two texts belong together.
        score_range: The scores that mean a cosine of 0 and of 1.
        dev_file: The table to choose the best measurement by. Without it, and without a
            collection, some of the training pairs are split off.
        dev_fraction: The share to split off.
        dev_score_column: The column of similarities in `dev_file`; empty for `score_column`.
        retrieval_dir: A collection in BEIR's layout to measure on, see `read_retrieval`.
        retrieval_part: Which of the collection's sets of queries to take.
        max_bad_share: The share of rows that may be left out, see `read_pairs`.
        encoding: Of the tables, see `read_pairs`.
        delimiter: Between their columns, see `read_pairs`.

    Returns:
        The data. Pairs without scores are measured by a search for each first text's second.

    Raises:
        UserError: If a file is missing or is not what it should be.

    Example:
    ```python
    read_embedding_data("STS", "train.tsv", ["first", "second"], "score", (0, 5))
    ```
    """
    options = {
        "score_range": tuple(score_range),
        "max_bad_share": max_bad_share,
        "encoding": encoding,
        "delimiter": delimiter,
    }
    train, dev = read_pairs(train_file, columns, score_column, **options), None
    if dev_file:
        dev = read_pairs(dev_file, columns[:2], dev_score_column or score_column, **options)
    elif not retrieval_dir:
        train, dev = train.split(dev_fraction)
    parts: dict[str, TextPairs | Retrieval] = {}
    if dev is not None:
        parts["dev"] = retrieval_of_pairs(dev) if dev.scores is None else dev
    if retrieval_dir:
        parts["retrieval"] = read_retrieval(retrieval_dir, retrieval_part)
    return EmbeddingData(name, train, parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingTask(Task):
    """A run of a text embedder, on pairs of texts.

    Args:
        data: The arguments of `read_embedding_data`.
        pooling: What becomes the vector, `mean` or `cls`; see `CocoLMTextEmbedder`.
        dimensions: The numbers of leading dimensions that vectors may be cut to; empty for all of
            the encoder's alone.
        temperature: Divides the cosines in the loss of in-batch negatives.
        metric: What chooses the best measurement; empty for the first of the first part.
        **kwargs: As for `Task`.

    Example:
    ```python
    data = {"name": "STS", "train_file": "train.tsv", "columns": ["a", "b"], "score_column": "s"}
    EmbeddingTask(preset="runs/first/preset", config=config.as_dict(), data=data)
    ```
    """

    family: ClassVar[str] = "embedding"

    data: dict[str, Any]
    pooling: str = "mean"
    dimensions: Sequence[int] = ()
    temperature: float = 0.05
    metric: str = ""

    def read(self) -> EmbeddingData:
        """Reads the data and checks `metric`."""
        data = read_embedding_data(**self.data)
        if self.metric and self.metric not in data.metrics:
            raise UserError(f"--metric={self.metric} is none of {', '.join(data.metrics)}.")
        return data

    def check(self) -> str:
        width = backbone_config(self.preset)["hidden_dim"]
        if odd := [one for one in self.dimensions if not 0 < one <= width]:
            raise UserError(f"--dimensions={odd[0]}: vectors have 1 to {width} of them.")
        return self.read().name

    def files_read(self) -> list[str]:
        paths = [self.data[name] for name in _FILES if self.data.get(name)]
        if folder := self.data.get("retrieval_dir"):
            paths += retrieval_files(folder, self.data.get("retrieval_part", "test"))
        return paths

    def prepare(self, config: FinetuningConfig) -> "PreparedEmbedding":
        return PreparedEmbedding(self, config)


class PreparedEmbedding(Prepared):
    """A text embedder that is ready to train."""

    def __init__(self, task: EmbeddingTask, config: FinetuningConfig) -> None:
        self._task, self._config = task, config
        self._data = data = task.read()
        self._train = data.train
        if task.train_fraction < 1:
            order = np.random.default_rng(task.seed).permutation(len(data.train))
            self._train = data.train.select(
                order[: max(1, round(task.train_fraction * len(order)))]
            )
        self.model = build_embedder(task, config)
        self._columns = [self._tokenized(column) for column in self._train.columns]
        self._texts, self._dev_tokens = {}, {}
        for part, one in data.dev.items():
            # Each text once, however many rows have it.
            self._texts[part] = list(dict.fromkeys(_texts(one)))
            self._dev_tokens[part] = self._tokenized(self._texts[part])
        self.name, self.metric = data.name, task.metric or data.metrics[0]
        self.report = {"train": _description(self._train, _joined(self._columns))}
        for part, one in data.dev.items():
            self.report[part] = _description(one, self._dev_tokens[part])
        self.summary = data_lines(data.name, self.report)
        self._before: Scores = {}

    def training(self) -> tuple[tf.data.Dataset, int, int]:
        # The baseline is what the encoder scores before it is fine-tuned.
        if self._task.save_preset:
            self._before = self.measure()
        batches, steps = pair_batches(
            self._columns,
            self._train.scores,
            self._config.trainer.batch_size,
            self._task.seed,
            self._config.data.length_buckets,
        )
        return batches, steps, len(self._train)

    def measure(self) -> Scores:
        scores: dict[str, dict[str, float]] = {}
        for part, one in self._data.dev.items():
            whole = self._vectors(part)
            for width in self.model.dimensions:
                of_text = dict(zip(self._texts[part], _cut(whole, width), strict=True))
                is_whole = width == self.model.dimensions[0]
                scores[part if is_whole else f"{part} at {width} dimensions"] = (
                    evaluate(STS_METRICS, one.scores, _cosines(one, of_text))
                    if isinstance(one, TextPairs)
                    else _found(one, of_text)
                )
        return scores

    def artifacts(self, folder: str) -> dict[str, Any]:
        for part, one in self._data.dev.items():
            if isinstance(one, TextPairs):
                of_text = dict(zip(self._texts[part], self._vectors(part), strict=True))
                path = os.path.join(folder, PREDICTIONS_DIRECTORY, f"{part}.tsv")
                _write_cosines(path, one, _cosines(one, of_text))
        return {"baseline": self._before}

    def facts(self, results: Mapping[str, Any]) -> Facts:
        task, rows = self._task, results["data"]
        evaluated = (f"{part}: {rows[part]['rows']:,} of {rows[part]['source']}" for part in rows)
        before = (
            f"{metric} {value:.4f} ({part})"
            for part, metrics in self._before.items()
            for metric, value in metrics.items()
        )
        return Facts(
            name=f"COCO-LM vectors of {self.name}",
            description=f"A COCO-LM text encoder, fine-tuned on {self.name} from {task.start}, to "
            "turn texts into vectors whose inner products say how similar they are. Vectors have "
            f"{' or '.join(map(str, self.model.dimensions))} dimensions.",
            pipeline_tag=_HUB_TASK,
            base_model=base_model(task),
            direct_use="Comparing, searching and grouping texts like those it learned from.",
            usage="from cocolm_tf import CocoLMTextEmbedder\n\n"
            'embedder = CocoLMTextEmbedder.from_preset("path/of/this/folder")\n'
            'embedder.encode_text(["A text."])',
            training_data=f"{rows['train']['rows']:,} rows of {rows['train']['source']}.",
            settings=settings_of(task)
            | {key: getattr(task, key) for key in ("pooling", "dimensions", "temperature")},
            speed=f"{results['examples_per_second']:.1f} pairs a second; "
            + best_epoch_line(results),
            evaluation_data=f"{'; '.join(evaluated)}. Before fine-tuning the encoder scored "
            f"{', '.join(before)}.",
            results=card_results(_HUB_TASK, self.name, results["dev"]),
            **shared_facts(results, self.model.backbone, f"{task.pooling} pooling"),
        )

    def _tokenized(self, texts: Sequence[str]) -> Tokens:
        return tokenized(self.model.preprocessor, Examples(texts))

    def _vectors(self, part: str) -> np.ndarray:
        """The vectors [N, D] of a part's different texts."""
        vectors = predict_rows(self.model, self._dev_tokens[part])
        if not np.isfinite(vectors).all():
            raise FloatingPointError
        return vectors


def build_embedder(task: EmbeddingTask, config: FinetuningConfig) -> CocoLMTextEmbedder:
    """Builds an embedder on the encoder of a task's preset."""
    with files.local_copy(task.preset) as preset:
        backbone = encoder_of(dataclasses.replace(task, preset=preset), config)
        length = row_length(config.data.sequence_length, backbone)
        preprocessor = CocoLMTextEmbedderPreprocessor.from_preset(preset, sequence_length=length)
    return CocoLMTextEmbedder(
        backbone, preprocessor, task.pooling, task.dimensions, task.temperature
    )


def _texts(part: TextPairs | Retrieval) -> Iterable[str]:
    if isinstance(part, TextPairs):
        return [*part.columns[0], *part.columns[1]]
    return [*part.queries.values(), *part.documents.values()]


def _cut(vectors: np.ndarray, width: int) -> np.ndarray:
    cut = vectors[:, :width]
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)


def _cosines(pairs: TextPairs, of_text: Mapping[str, np.ndarray]) -> np.ndarray:
    first, second = (np.stack([of_text[text] for text in one]) for one in pairs.columns[:2])
    return (first * second).sum(axis=1)


def _found(search: Retrieval, of_text: Mapping[str, np.ndarray]) -> dict[str, float]:
    queries, documents = (
        np.stack([of_text[text] for text in texts.values()])
        for texts in (search.queries, search.documents)
    )
    return search_scores(
        [*search.queries], queries, [*search.documents], documents, search.relevance
    )


def _joined(columns: Sequence[Tokens]) -> Tokens:
    return Tokens(
        np.concatenate([tokens.token_ids for tokens in columns]),
        np.concatenate([tokens.lengths for tokens in columns]),
        columns[0].limit,
        sum(tokens.truncated for tokens in columns),
    )


def _description(part: TextPairs | Retrieval, tokens: Tokens) -> dict[str, Any]:
    """Summarizes a part, for JSON: its rows are pairs, or queries."""
    is_pairs = isinstance(part, TextPairs)
    scores = part.scores if is_pairs else None
    labels = None
    if scores is not None:
        labels = {name: float(getattr(scores, name)()) for name in ("mean", "min", "max")}
    return {
        "rows": len(part) if is_pairs else len(part.queries),
        "source": part.source if is_pairs else f"{part.source}, {len(part.documents):,} documents",
        "left_out": [*part.left_out] if is_pairs else [],
        "labels": labels,
        "tokens": describe_lengths(tokens),
    }


def _write_cosines(path: str, pairs: TextPairs, cosines: np.ndarray) -> None:
    files.make_dirs(os.path.dirname(path))
    rows = (
        f"{row}\t{score:.4f}\t{cosine:.4f}\n"
        for row, (score, cosine) in enumerate(zip(pairs.scores, cosines, strict=True))
    )
    files.write_text(path, "index\tscore\tcosine\n" + "".join(rows))
