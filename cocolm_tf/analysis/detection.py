"""How well a preset detects replaced tokens and restores the original ones, over many texts."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn import metrics
from tqdm import tqdm

from cocolm_tf.analysis.inputs import CorruptedText
from cocolm_tf.analysis.runs import held_out_batches
from cocolm_tf.data.augmentation import SpecialTokens
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.corruption import random_tokens, replace_tokens, sample_tokens
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

# A token is flagged where it is likelier replaced than not.
_FLAGGED = 0.5
_CALIBRATION_BINS = 10
# The most frequent hundred tokens, the next 900, and all others.
FREQUENCIES = ("frequent", "common", "rare")
_FREQUENCY_BOUNDS = (100, 1000)
# The rank of a token that the LM head was not asked about.
_NOT_ASKED = -1
# Stands for the original of a token that has none of its own.
UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class Detections:
    """The predictions of the heads for tokens, some of which were replaced."""

    # A row for each token:
    # - `probability`: that it was replaced, by the copy head;
    # - `is_replaced`: whether it was;
    # - `rank`: how many tokens the LM head found likelier than the original one; -1 where the token
    #   is the original one, or that is not known, or there is no LM head;
    # - `frequency_rank`: how many tokens come more often than the original one, or than the token
    #   itself where that is not known.
    tokens: pd.DataFrame

    def measures(self) -> dict[str, float]:
        """The `DETECTION_METRICS` by name, most by `FREQUENCIES` too, as `recall_rare`."""
        found = _measures(self.tokens) | {"calibration_error": self.calibration_error()}
        if self.tokens["is_replaced"].any():
            found["average_precision"] = float(
                metrics.average_precision_score(
                    self.tokens["is_replaced"], self.tokens["probability"]
                )
            )
        for frequency, measures in self.by_frequency().items():
            found |= {f"{name}_{frequency}": value for name, value in measures.items()}
        return found

    def by_frequency(self) -> dict[str, dict[str, float]]:
        """The metrics of the tokens of each of `FREQUENCIES` that occurs."""
        numbers = np.searchsorted(_FREQUENCY_BOUNDS, self.tokens["frequency_rank"], side="right")
        return {
            FREQUENCIES[number]: _measures(tokens)
            for number, tokens in self.tokens.groupby(numbers)
        }

    def calibration(self) -> pd.DataFrame:
        """The mean probability, share of replaced tokens and number of tokens of each bin."""
        bins = (self.tokens["probability"] * _CALIBRATION_BINS).astype(int)
        return (
            self.tokens.groupby(bins.clip(upper=_CALIBRATION_BINS - 1))
            .agg(
                said=("probability", "mean"),
                replaced=("is_replaced", "mean"),
                tokens=("is_replaced", "size"),
            )
            .reset_index(drop=True)
        )

    def calibration_error(self) -> float:
        """The expected calibration error: the gaps of `calibration`, weighted by their numbers."""
        bins = self.calibration()
        return float(np.average((bins["said"] - bins["replaced"]).abs(), weights=bins["tokens"]))


def _measures(tokens: pd.DataFrame) -> dict[str, float]:
    """The metrics that make sense of few tokens as well."""
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        tokens["is_replaced"], tokens["probability"] > _FLAGGED, average="binary", zero_division=0
    )
    found = {
        "replaced_share": float(tokens["is_replaced"].mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }
    ranks = tokens["rank"][tokens["rank"] != _NOT_ASKED]
    if len(ranks):
        found["corrected_at_1"] = float((ranks < 1).mean())
        found["corrected_at_5"] = float((ranks < 5).mean())
    return found


def detect(
    pretrainer: CocoLMPretrainer,
    tokenizer: CocoLMTokenizer,
    data: str,
    corruption: str = "auxiliary",
    batches: int = 20,
    batch_size: int = 32,
    name: str = "",
) -> Detections:
    """Corrupts held-out sequences and asks the heads about every token.

    Args:
        pretrainer: the models of a preset, with a copy head.
        tokenizer: their tokenizer.
        data: folder or glob of shards, built with this vocabulary.
        corruption: what fills in the 15% of the tokens that are masked, where it may put the
            original ones back: the preset's `auxiliary` model, or `random` tokens.
        batches: Fewer if there are not as many.
        batch_size: Sequences of each.
        name: what to show beside the progress.

    Returns:
        What was found, of all tokens that can be masked: all but `<s>`, `</s>` and padding.

    Raises:
        UserError: if the shards are of another vocabulary, or a model or head is missing.

    Example:
    ```python
    detect(*load_pretrained("runs/first/preset"), "data/validation").measures()["f1"]
    ```
    """
    if corruption == "auxiliary" and pretrainer.auxiliary is None:
        raise UserError("the preset has no auxiliary model: give --corruption=random.")
    held_out = held_out_batches(data, name or "the preset", tokenizer, batches, batch_size)
    corrupt = tf.function(
        lambda batch, seed: _corrupt(pretrainer, batch, corruption, seed), autograph=False
    )

    def corrupted() -> Iterator[_Batch]:
        progress = tqdm(held_out, desc=f"{name} {corruption}".strip(), unit="batch")
        for number, batch in enumerate(progress):
            read = corrupt(batch, tf.constant([0, number])).numpy()
            original, mask = batch["token_ids"].numpy(), batch["padding_mask"].numpy()
            yield _Batch(read, original, read != original, mask)

    return _detect(pretrainer, tokenizer, corrupted())


def detect_in_texts(
    pretrainer: CocoLMPretrainer,
    tokenizer: CocoLMTokenizer,
    texts: Sequence[CorruptedText],
    batch_size: int = 32,
    name: str = "",
) -> Detections:
    """Asks the heads about every token of texts with known mistakes.

    Args:
        pretrainer: the models of a preset, with a copy head.
        tokenizer: their tokenizer.
        texts: at least one; what of them is longer than the model reads is cut off.
        batch_size: Texts at a time.
        name: what to show beside the progress.

    Returns:
        What was found, of all tokens but `<s>` and `</s>`. Frequencies are those of the original
        texts.

    Raises:
        UserError: if the preset has no copy head.

    Example:
    ```python
    texts = [CorruptedText("The cats sleep.", "The cats sleeps.")]
    detect_in_texts(*load_pretrained("runs/first/preset"), texts).measures()["recall"]
    ```
    """
    limit = pretrainer.backbone.max_sequence_length - 2
    originals = [list(row) for row in tokenizer([text.original for text in texts])]
    corrupted = [list(row) for row in tokenizer([text.corrupted for text in texts])]

    def packed_batches() -> Iterator[_Batch]:
        starts = range(0, len(texts), batch_size)
        for start in tqdm(starts, desc=f"{name} texts".strip(), unit="batch"):
            chosen = slice(start, start + batch_size)
            rows = [row[:limit] for row in corrupted[chosen]]
            packed = tokenizer.pack(rows, sequence_length=max(map(len, rows)) + 2)
            read = packed["token_ids"].numpy()
            original, is_replaced = read.copy(), np.zeros(read.shape, bool)
            pairs = zip(originals[chosen], corrupted[chosen], strict=True)
            for number, (replaced, stood) in enumerate(align(*pair) for pair in pairs):
                places = slice(1, 1 + len(rows[number]))
                is_replaced[number, places] = replaced[:limit]
                original[number, places] = stood[:limit]
            yield _Batch(read, original, is_replaced, packed["padding_mask"].numpy().astype(bool))

    return _detect(pretrainer, tokenizer, packed_batches())


class _Batch(NamedTuple):
    """Sequences as read, [B, S]: tokens, original ones, which were replaced, padding mask."""

    read: np.ndarray
    original: np.ndarray
    is_replaced: np.ndarray
    padding_mask: np.ndarray


def _detect(
    pretrainer: CocoLMPretrainer, tokenizer: CocoLMTokenizer, batches: Iterable[_Batch]
) -> Detections:
    if pretrainer.copy_head is None:
        raise UserError("the preset has no copy head: it tells no replaced tokens.")

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None, 2], tf.int32),
            tf.TensorSpec([None], tf.int32),
        ],
    )
    def ask(
        ids: tf.Tensor, mask: tf.Tensor, asked: tf.Tensor, originals: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        hidden = pretrainer.backbone({"token_ids": ids, "padding_mask": mask}, training=False)
        probabilities = tf.sigmoid(-pretrainer.copy_head(hidden))
        if pretrainer.lm_head is None:
            return probabilities, tf.fill(tf.shape(originals), _NOT_ASKED)
        logits = pretrainer.lm_head(tf.gather_nd(hidden, asked))
        own = tf.gather(logits, originals[:, tf.newaxis], batch_dims=1)
        return probabilities, tf.reduce_sum(tf.cast(logits > own, tf.int32), axis=-1)

    special = SpecialTokens(mask=tokenizer.mask_token_id)
    unmasked = [special.start, special.pad, special.end, special.mask]
    counts = np.zeros(tokenizer.vocabulary_size(), np.int64)
    found = []
    for batch in batches:
        maskable = batch.padding_mask & ~np.isin(batch.original, unmasked)
        known = maskable & (batch.original != UNKNOWN)
        counts += np.bincount(batch.original[known], minlength=len(counts))
        asked = np.argwhere(known & batch.is_replaced)
        probabilities, asked_ranks = ask(
            batch.read.astype(np.int32),
            batch.padding_mask.astype(np.int32),
            asked.astype(np.int32),
            batch.original[tuple(asked.T)].astype(np.int32),
        )
        ranks = np.full(batch.read.shape, _NOT_ASKED)
        ranks[tuple(asked.T)] = asked_ranks
        columns = {
            "probability": probabilities.numpy().astype(np.float64),
            "is_replaced": batch.is_replaced,
            "rank": ranks,
            "token": np.where(known, batch.original, batch.read),
        }
        found.append(pd.DataFrame({name: values[maskable] for name, values in columns.items()}))
    tokens = pd.concat(found, ignore_index=True)
    # How many tokens come more often than each.
    frequency_ranks = np.searchsorted(np.sort(-counts), -counts)
    tokens["frequency_rank"] = frequency_ranks[tokens.pop("token")]
    return Detections(tokens)


def _corrupt(
    pretrainer: CocoLMPretrainer, batch: dict[str, tf.Tensor], corruption: str, seed: tf.Tensor
) -> tf.Tensor:
    original, positions = batch["token_ids"], batch["masked_positions"]
    used = batch["masked_weights"]
    if corruption == "random":
        size, vocabulary_size = tf.size(positions)[tf.newaxis], pretrainer.backbone.vocabulary_size
        sampled = random_tokens(size, vocabulary_size, seed)
    else:
        masked = replace_tokens(original, positions, pretrainer.mask_token_id, used)
        inputs = {"token_ids": masked, "padding_mask": batch["padding_mask"]}
        sampled = sample_tokens(pretrainer.auxiliary(inputs, positions=positions), seed)
    return replace_tokens(original, positions, sampled, used)


def align(original: Sequence[int], corrupted: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Finds the tokens of a corrupted text that are not in the original one, by a diff."""
    # By the longest common stretches (`difflib.SequenceMatcher`). Where as many tokens were put in
    # as were taken out, each stands for its counterpart; where not, it is not known what each
    # stands for. What was only left out leaves no token to find.
    is_replaced = np.ones(len(corrupted), bool)
    originals = np.full(len(corrupted), UNKNOWN)
    matcher = difflib.SequenceMatcher(a=original, b=corrupted, autojunk=False)
    for kind, start, end, begin, stop in matcher.get_opcodes():
        if kind == "equal":
            is_replaced[begin:stop] = False
        if end - start == stop - begin:
            originals[begin:stop] = original[start:end]
    return is_replaced, originals
