"""Minimal pairs: whether a preset without fine-tuning prefers the good one of two sentences."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from cocolm_tf.analysis.inputs import ALL, MinimalPair
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.corruption import gather_positions, replace_tokens
from cocolm_tf.modeling.masked_lm import MaskedLMPretrainer
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.training.build import Pretrainer

_MASKED = "masked"
_ROWS, _NUMBERS = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)


def scoring_methods(pretrainer: Pretrainer) -> dict[str, Callable]:
    """The ways to score a sentence that a preset's heads allow, by name."""
    methods = {}
    if pretrainer.lm_head or isinstance(pretrainer, MaskedLMPretrainer):
        methods[_MASKED] = _masked_scores
    if pretrainer.lm_head and pretrainer.copy_head:
        methods["corrective"] = _corrective_scores
    if pretrainer.copy_head:
        methods["detection"] = _detection_scores
    return methods


def score_sentences(
    pretrainer: Pretrainer,
    tokenizer: CocoLMTokenizer,
    sentences: Sequence[str],
    method: str,
    name: str = "",
    tokens_at_once: int = 4096,
) -> np.ndarray:
    """Scores sentences without fine-tuning: the more acceptable, the higher.

    Args:
        pretrainer: the models of a preset.
        tokenizer: their tokenizer.
        sentences: what to score.
        method: one of `scoring_methods`: `masked`, `corrective` or `detection`.
        name: what to show beside the progress.
        tokens_at_once: About how many tokens the model reads at a time.

    Returns:
        [N] float64. Longer sentences score lower, as likelihoods do.

    Raises:
        UserError: if a sentence is empty, or longer than the model reads.

    Example:
    ```python
    preset = load_pretrained("runs/first/preset")
    score_sentences(*preset, ["It sleeps.", "It sleep."], "corrective")
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
    score = tf.function(
        functools.partial(scoring_methods(pretrainer)[method], pretrainer),
        input_signature=[_ROWS, _NUMBERS, _NUMBERS],
        autograph=False,
    )
    lengths = np.array([len(row) for row in ids])
    # Sorted by length, for little padding.
    sentence_of = np.argsort(lengths, kind="stable")
    places = np.zeros_like(lengths)
    if method == _MASKED:
        sentence_of = np.repeat(sentence_of, lengths[sentence_of])
        places = np.concatenate([1 + np.arange(n) for n in np.sort(lengths)])
    scores = np.zeros(len(ids))
    with tqdm(total=len(sentence_of), desc=f"{name} {method}".strip(), unit="row") as progress:
        start = 0
        while start < len(sentence_of):
            at_most = tokens_at_once // (lengths[sentence_of[start]] + 2)
            chosen = sentence_of[start : start + max(1, at_most)]
            packed = tokenizer.pack(
                [ids[i] for i in chosen], sequence_length=int(lengths[chosen[-1]]) + 2
            )
            rows = slice(start, start + len(chosen))
            found = score(packed["token_ids"], lengths[chosen], places[rows])
            np.add.at(scores, chosen, found.numpy())
            start = rows.stop
            progress.update(len(chosen))
    return scores


def accuracies(
    pairs: Sequence[MinimalPair], scores: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, dict[str, float]]:
    """The share of the pairs whose good sentence scores higher; a tie counts half."""
    frame = pd.DataFrame(
        {method: (good > bad) + 0.5 * (good == bad) for method, (good, bad) in scores.items()}
    )
    categories = pd.Series([pair.category for pair in pairs])
    by_category = frame[categories != ALL].groupby(categories).mean()
    return {ALL: frame.mean().to_dict(), **by_category.to_dict("index")}


def _masked_scores(
    pretrainer: Pretrainer, token_ids: tf.Tensor, lengths: tf.Tensor, places: tf.Tensor
) -> tf.Tensor:
    positions = places[:, tf.newaxis]
    labels = gather_positions(token_ids, positions)
    inputs = _inputs(replace_tokens(token_ids, positions, pretrainer.mask_token_id), lengths)
    if isinstance(pretrainer, MaskedLMPretrainer):
        logits = pretrainer.model(inputs, positions=positions)
    else:
        logits = pretrainer.lm_head(pretrainer.backbone.states_at(inputs, positions)[:, 0])
    return _log_likelihoods(logits, labels)


def _corrective_scores(
    pretrainer: Pretrainer, token_ids: tf.Tensor, lengths: tf.Tensor, _: tf.Tensor
) -> tf.Tensor:
    hidden = pretrainer.backbone(_inputs(token_ids, lengths), training=False)
    is_ordinary = _is_ordinary(token_ids, lengths)
    states = tf.boolean_mask(hidden, is_ordinary)
    log_p = _log_likelihoods(pretrainer.lm_head(states), tf.boolean_mask(token_ids, is_ordinary))
    copy_logits = tf.cast(pretrainer.copy_head(states), tf.float32)
    # Section 3.3: copied, or not copied but drawn from the vocabulary all the same.
    either = [tf.math.log_sigmoid(copy_logits), tf.math.log_sigmoid(-copy_logits) + log_p]
    return tf.math.segment_sum(
        tf.reduce_logsumexp(tf.stack(either), axis=0), tf.where(is_ordinary)[:, 0]
    )


def _detection_scores(
    pretrainer: Pretrainer, token_ids: tf.Tensor, lengths: tf.Tensor, _: tf.Tensor
) -> tf.Tensor:
    hidden = pretrainer.backbone(_inputs(token_ids, lengths), training=False)
    log_p = tf.math.log_sigmoid(tf.cast(pretrainer.copy_head(hidden), tf.float32))
    return tf.reduce_sum(tf.where(_is_ordinary(token_ids, lengths), log_p, 0.0), axis=1)


def _inputs(token_ids: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
    real = tf.sequence_mask(lengths + 2, tf.shape(token_ids)[1])
    return {"token_ids": token_ids, "padding_mask": tf.cast(real, tf.int32)}


def _is_ordinary(token_ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Which tokens are between <s> and </s>."""
    column = tf.range(tf.shape(token_ids)[1])
    return (column > 0) & (column <= lengths[:, tf.newaxis])


def _log_likelihoods(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return -tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32))
