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
from cocolm_tf.finetuning.metrics import (
    RETRIEVAL_METRICS,
    STS_METRICS,
    chosen_first,
    evaluate,
    search_scores,
)
from cocolm_tf.finetuning.models.pair_batches import pair_batches
from cocolm_tf.finetuning.models.text_embedder import (
    CocoLMTextEmbedder,
    CocoLMTextEmbedderPreprocessor,
)
from cocolm_tf.finetuning.predictions import PREDICTIONS_DIRECTORY
from cocolm_tf.finetuning.presets import backbone_config
from cocolm_tf.finetuning.tasks.classification import data_lines, spread_of
from cocolm_tf.finetuning.tasks.task import (
    Prepared,
    Scores,
    Task,
    finite,
    load_encoder,
    score_text,
    table_files,
)


@dataclasses.dataclass(frozen=True)
class EmbeddingData:
    """Pairs to learn from, and parts to measure on, each pairs or a collection to search."""

    name: str
    train: TextPairs
    dev: Mapping[str, TextPairs | Retrieval]


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

    def read(self) -> EmbeddingData:
        return read_embedding_data(**self.data)

    def metrics_of(self, data: EmbeddingData) -> tuple[str, ...]:
        # Of the first part.
        is_pairs = isinstance(next(iter(data.dev.values())), TextPairs)
        return chosen_first(self.metric, STS_METRICS if is_pairs else RETRIEVAL_METRICS, data.name)

    def check(self) -> str:
        width = backbone_config(self.preset)["hidden_dim"]
        if odd := [one for one in self.dimensions if not 0 < one <= width]:
            raise UserError(f"--dimensions={odd[0]}: vectors have 1 to {width} of them.")
        return super().check()

    def files_read(self) -> list[str]:
        paths = table_files(**self.data)
        if folder := self.data.get("retrieval_dir"):
            paths += retrieval_files(folder, self.data.get("retrieval_part", "test"))
        return paths

    def prepare(self, config: FinetuningConfig) -> "PreparedEmbedding":
        return PreparedEmbedding(self, config)


class PreparedEmbedding(Prepared):
    """A text embedder that is ready to train."""

    hub_task = "sentence-similarity"
    unit = "pairs"
    task: EmbeddingTask

    def __init__(self, task: EmbeddingTask, config: FinetuningConfig) -> None:
        super().__init__(task, config)
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
        self.name, self.metric = data.name, task.metrics_of(data)[0]
        self.report = {"train": _description(self._train, _joined(self._columns))}
        for part, one in data.dev.items():
            self.report[part] = _description(one, self._dev_tokens[part])
        self.summary = data_lines(data.name, self.report)
        self._before: Scores = {}

    def training(self) -> tuple[tf.data.Dataset, int, int]:
        # The baseline is what the encoder scores before it is fine-tuned.
        if self.task.save_preset:
            self._before = self.measure()
        batches, steps = pair_batches(self._columns, self._train.scores, *self.batching)
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

    def card(self, results: Mapping[str, Any]) -> dict[str, Any]:
        task, parts = self.task, results["data"]
        measured = (f"{part}: {of['rows']:,} of {of['source']}" for part, of in parts.items())
        return {
            "name": f"COCO-LM vectors of {self.name}",
            "description": f"A COCO-LM text encoder, {self.origin}, to turn texts into vectors "
            "whose inner products say how similar they are. Vectors have "
            f"{' or '.join(map(str, self.model.dimensions))} dimensions.",
            "head": f"{task.pooling} pooling",
            "direct_use": "Comparing, searching and grouping texts like those it learned from.",
            "call": 'encode_text(["A text."])',
            "training_data": f"{parts['train']['rows']:,} rows of {parts['train']['source']}.",
            "settings": {
                key: getattr(task, key) for key in ("pooling", "dimensions", "temperature")
            },
            "evaluation_data": f"{'; '.join(measured)}. Before fine-tuning the encoder scored "
            f"{score_text(self._before)}.",
        }

    def _tokenized(self, texts: Sequence[str]) -> Tokens:
        return tokenized(self.model.preprocessor, Examples(texts))

    def _vectors(self, part: str) -> np.ndarray:
        """The vectors [N, D] of a part's different texts."""
        return finite(predict_rows(self.model, self._dev_tokens[part]))


def build_embedder(task: EmbeddingTask, config: FinetuningConfig) -> CocoLMTextEmbedder:
    """Builds an embedder on the encoder of a task's preset."""
    with files.local_copy(task.preset) as preset:
        backbone, length = load_encoder(task, config, preset)
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
    if not isinstance(part, TextPairs):
        source = f"{part.source}, {len(part.documents):,} documents"
        facts = {"rows": len(part.queries), "source": source, "left_out": [], "labels": None}
    else:
        facts = {
            "rows": len(part),
            "source": part.source,
            "left_out": [*part.left_out],
            "labels": None if part.scores is None else spread_of(part.scores),
        }
    return facts | {"tokens": describe_lengths(tokens)}


def _write_cosines(path: str, pairs: TextPairs, cosines: np.ndarray) -> None:
    files.make_dirs(os.path.dirname(path))
    rows = (
        f"{row}\t{score:.4f}\t{cosine:.4f}\n"
        for row, (score, cosine) in enumerate(zip(pairs.scores, cosines, strict=True))
    )
    files.write_text(path, "index\tscore\tcosine\n" + "".join(rows))
