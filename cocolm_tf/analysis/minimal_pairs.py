"""Minimal pairs: does an untuned preset prefer the good one of two sentences much alike?"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from cocolm_tf.errors import UserError
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

_GOOD, _BAD = "sentence_good", "sentence_bad"
# Where a pair's category stands; BLiMP's files have the second.
_CATEGORIES = ("category", "linguistics_term", "UID")
ALL = "all"

# Rows are padded to a multiple of this, so that few lengths are traced.
_LENGTH_STEP = 16


@dataclasses.dataclass(frozen=True)
class MinimalPair:
    """A good sentence and a bad one.

    Example:
    ```python
    MinimalPair("The cats sleep.", "The cats sleeps.", "agreement")
    ```
    """

    good: str
    bad: str
    category: str


def read_minimal_pairs(path: str) -> list[MinimalPair]:
    """Reads JSON lines with `sentence_good`, `sentence_bad` and, if any, a category.

    Args:
        path: the file, in BLiMP's format.

    Returns:
        The pairs, in their order.

    Raises:
        UserError: naming the line that is no pair.

    Example:
    ```python
    read_minimal_pairs("blimp/anaphor_gender_agreement.jsonl")
    ```
    """
    if not os.path.isfile(path):
        raise UserError(f"--minimal_pairs={path} does not exist.")
    pairs = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    pairs.append(_pair(line, f"{path}:{number}"))
    except UnicodeDecodeError as error:
        raise UserError(f"--minimal_pairs={path} is not UTF-8 text.") from error
    if not pairs:
        raise UserError(f"--minimal_pairs={path} has no pairs.")
    return pairs


def _pair(line: str, place: str) -> MinimalPair:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON: {error}.") from error
    texts = [row.get(name) if isinstance(row, dict) else None for name in (_GOOD, _BAD)]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{place} must be an object with {_GOOD} and {_BAD}, both text.")
    category = next((str(row[name]) for name in _CATEGORIES if row.get(name)), ALL)
    return MinimalPair(*texts, category)


def judgements(pretrainer: CocoLMPretrainer) -> dict[str, Callable]:
    """The ways in which a preset can judge a sentence: those that its heads allow.

    Args:
        pretrainer: the models of a preset.

    Returns:
        From the name of each way, a function of `pretrainer`, token ids [B, S] and lengths [B]
        that gives the score of each row, [B]; the higher, the better:

        - `masked`: the pseudo log likelihood, the sum over tokens of log p(token | the others) by
          the LM head, with each token masked in turn (Salazar et al., ACL 2020);
        - `corrective`: the same sum where nothing is masked, by copy mechanism and LM head
          together, as the model reads in pretraining: one pass instead of one a token;
        - `detection`: the sum of the log probabilities that each token is the original.

    Example:
    ```python
    list(judgements(load_pretrained("runs/first/preset")[0]))
    ```
    """
    ways = {}
    if pretrainer.lm_head:
        ways["masked"] = _masked_scores
    if pretrainer.lm_head and pretrainer.copy_head:
        ways["corrective"] = _corrective_scores
    if pretrainer.copy_head:
        ways["detection"] = _detection_scores
    return ways


def judge(
    pretrainer: CocoLMPretrainer,
    tokenizer: CocoLMTokenizer,
    sentences: Sequence[str],
    way: str,
    batch_size: int = 64,
    name: str = "",
) -> np.ndarray:
    """Scores sentences.

    Args:
        pretrainer: the models of a preset.
        tokenizer: their tokenizer.
        sentences: what to score.
        way: one of `judgements`.
        batch_size: int. Rows that the model reads at a time.
        name: what to show beside the progress.

    Returns:
        [N] float64. Longer sentences score lower, as likelihoods do.

    Raises:
        UserError: if a sentence is empty, or longer than the model reads.

    Example:
    ```python
    judge(*load_pretrained("runs/first/preset"), ["It sleeps.", "It sleep."], "corrective")
    ```
    """
    ids = [list(row) for row in tokenizer(list(sentences))]
    limit = pretrainer.backbone.max_sequence_length - 2
    for sentence, row in zip(sentences, ids, strict=True):
        if not 0 < len(row) <= limit:
            raise UserError(
                f"the sentence {sentence[:40]!r} has {len(row)} tokens: the model reads 1 to "
                f"{limit}."
            )
    score = judgements(pretrainer)[way]
    # Alike in length, so that little is padding.
    order = np.argsort([len(row) for row in ids], kind="stable")
    scores = np.zeros(len(ids))
    # A sentence takes as many rows as it has tokens where they are masked in turn.
    rows_each = max(map(len, ids)) if way == "masked" else 1
    at_once = max(1, batch_size // rows_each)
    progress = tqdm(range(0, len(ids), at_once), desc=f"{name} {way}".strip(), unit="batch")
    for start in progress:
        chosen = order[start : start + at_once]
        rows = [ids[i] for i in chosen]
        longest = max(map(len, rows)) + 2
        length = min(limit + 2, -(-longest // _LENGTH_STEP) * _LENGTH_STEP)
        packed = tokenizer.pack(rows, sequence_length=length)["token_ids"]
        lengths = tf.constant([len(row) for row in rows])
        scores[chosen] = score(pretrainer, packed, lengths).numpy()
    return scores


def accuracies(
    pairs: Sequence[MinimalPair], scores: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, dict[str, float]]:
    """The share of the pairs whose good sentence scores higher; a tie counts half.

    Args:
        pairs: N of them.
        scores: from each way, those of the good sentences, [N], and of the bad ones, [N].

    Returns:
        From each category, `all` first, from each way, the share.

    Example:
    ```python
    accuracies([MinimalPair("a", "b", "x")], {"masked": (np.ones(1), np.zeros(1))})
    ```
    """
    categories = np.array([pair.category for pair in pairs])
    results = {}
    for category in [ALL, *sorted(set(categories) - {ALL})]:
        chosen = np.ones(len(pairs), bool) if category == ALL else categories == category
        results[category] = {
            way: float(np.mean((good > bad)[chosen] + 0.5 * (good == bad)[chosen]))
            for way, (good, bad) in scores.items()
        }
    return results


def _masked_scores(
    pretrainer: CocoLMPretrainer, token_ids: tf.Tensor, lengths: tf.Tensor
) -> tf.Tensor:
    # One row for each ordinary token, in which it is masked.
    places, sentences = _ordinary_places(token_ids, lengths)
    columns = tf.cast(places[:, 1], tf.int32)
    is_masked = tf.one_hot(columns, tf.shape(token_ids)[1], on_value=True, off_value=False)
    rows = tf.where(is_masked, pretrainer.mask_token_id, tf.gather(token_ids, sentences))
    hidden = _read(pretrainer, rows, tf.gather(lengths, sentences))
    log_p = _log_likelihoods(
        pretrainer,
        tf.gather(hidden, columns, batch_dims=1),
        tf.gather_nd(token_ids, places),
    )
    return tf.math.segment_sum(log_p, sentences)


def _corrective_scores(
    pretrainer: CocoLMPretrainer, token_ids: tf.Tensor, lengths: tf.Tensor
) -> tf.Tensor:
    places, sentences = _ordinary_places(token_ids, lengths)
    hidden = tf.gather_nd(_read(pretrainer, token_ids, lengths), places)
    log_p = _log_likelihoods(pretrainer, hidden, tf.gather_nd(token_ids, places))
    copy_logits = pretrainer.copy_head(hidden)
    # Section 3.3: copied, or not copied but drawn from the vocabulary all the same.
    either = [tf.math.log_sigmoid(copy_logits), tf.math.log_sigmoid(-copy_logits) + log_p]
    return tf.math.segment_sum(tf.reduce_logsumexp(tf.stack(either), axis=0), sentences)


def _detection_scores(
    pretrainer: CocoLMPretrainer, token_ids: tf.Tensor, lengths: tf.Tensor
) -> tf.Tensor:
    places, sentences = _ordinary_places(token_ids, lengths)
    hidden = tf.gather_nd(_read(pretrainer, token_ids, lengths), places)
    return tf.math.segment_sum(tf.math.log_sigmoid(pretrainer.copy_head(hidden)), sentences)


def _read(pretrainer: CocoLMPretrainer, token_ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    real = tf.sequence_mask(lengths + 2, tf.shape(token_ids)[1])
    inputs = {"token_ids": token_ids, "padding_mask": tf.cast(real, tf.int32)}
    return pretrainer.backbone(inputs, training=False)


def _log_likelihoods(
    pretrainer: CocoLMPretrainer, hidden: tf.Tensor, labels: tf.Tensor
) -> tf.Tensor:
    log_p = tf.nn.log_softmax(pretrainer.lm_head(hidden))
    return tf.gather(log_p, labels, batch_dims=1)


def _ordinary_places(token_ids: tf.Tensor, lengths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where tokens stand between <s> and </s>: row and column, [N, 2], and the row alone."""
    column = tf.range(tf.shape(token_ids)[1])[tf.newaxis]
    places = tf.where((column > 0) & (column <= lengths[:, tf.newaxis]))
    return places, tf.cast(places[:, 0], tf.int32)
