"""How well a preset finds replaced tokens and restores them, over many held-out sequences."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from sklearn import metrics
from tqdm import tqdm

from cocolm_tf.data.manifest import Manifest
from cocolm_tf.data.pipeline import PretrainingData
from cocolm_tf.data.special_tokens import SpecialTokens
from cocolm_tf.errors import UserError
from cocolm_tf.modeling.corruption import place, random_tokens, sample_tokens
from cocolm_tf.modeling.masked_language_model import gather_positions
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

# What replaces masked tokens: the preset's auxiliary model, or chance.
CORRUPTIONS = ("auxiliary", "random")

# A token is flagged where it is likelier replaced than not.
_FLAGGED = 0.5
_CALIBRATION_BINS = 10
# Tokens by how often they come: the most frequent hundred, the next 900, all others.
BANDS = (100, 1000)


@dataclasses.dataclass(frozen=True)
class Detections:
    """What the heads say of tokens, of which some were replaced.

    Args:
        probabilities: [T] float32, that each token was replaced, by the copy head.
        is_replaced: [T] bool, whether it was.
        ranks: [R] int, of each replaced token, how many tokens the LM head found likelier than
            the original one; empty without LM head.
        frequency_ranks: [R] int, of each replaced token's original, how many tokens come more
            often.

    Example:
    ```python
    Detections(np.array([0.9, 0.1]), np.array([True, False]), np.array([0]), np.array([3]))
    ```
    """

    probabilities: np.ndarray
    is_replaced: np.ndarray
    ranks: np.ndarray
    frequency_ranks: np.ndarray

    def measures(self) -> dict[str, float]:
        """Numbers by their names.

        Returns:
            `precision`, `recall` and `f1` of the flagged tokens; `average_precision`, over all
            thresholds; `replaced_share`, what chance would have for it; `calibration_error`, the
            mean gap between what the copy head says and how often it is right, over ten equal
            ranges of probabilities; `corrected_at_1` and `corrected_at_5`, the share of replaced
            tokens whose originals are among the LM head's best, and the same by bands of the
            originals' frequency: `corrected_at_1_frequent`, `_common`, `_rare`.
        """
        flagged = self.probabilities > _FLAGGED
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            self.is_replaced, flagged, average="binary", zero_division=0
        )
        found = {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "replaced_share": float(self.is_replaced.mean()),
            "calibration_error": self.calibration_error(),
        }
        if self.is_replaced.any():
            found["average_precision"] = float(
                metrics.average_precision_score(self.is_replaced, self.probabilities)
            )
        if len(self.ranks):
            found["corrected_at_1"] = float((self.ranks < 1).mean())
            found["corrected_at_5"] = float((self.ranks < 5).mean())
            bands = np.searchsorted(BANDS, self.frequency_ranks, side="right")
            for band, name in enumerate(("frequent", "common", "rare")):
                if (bands == band).any():
                    share = (self.ranks[bands == band] < 1).mean()
                    found[f"corrected_at_1_{name}"] = float(share)
        return found

    def calibration(self) -> list[tuple[float, float, int]]:
        """Of each range of probabilities that occurs: what is said, what is so, of how many."""
        bins = np.minimum(
            (self.probabilities * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1
        )
        return [
            (
                float(self.probabilities[bins == number].mean()),
                float(self.is_replaced[bins == number].mean()),
                int((bins == number).sum()),
            )
            for number in np.unique(bins)
        ]

    def calibration_error(self) -> float:
        """The expected calibration error: the gaps of `calibration`, weighted by their numbers."""
        gaps = [abs(said - so) * count for said, so, count in self.calibration()]
        return sum(gaps) / len(self.probabilities)


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
        corruption: one of `CORRUPTIONS`: what replaces 15% of the tokens.
        batches: int. Fewer if there are not as many.
        batch_size: int. Sequences of each.
        name: what to show beside the progress.

    Returns:
        What was found, of all real tokens.

    Raises:
        UserError: if the shards are of another vocabulary, or a model or head is missing.

    Example:
    ```python
    detect(*load_pretrained("runs/first/preset"), "data/validation").measures()["f1"]
    ```
    """
    if pretrainer.copy_head is None:
        raise UserError("the preset has no copy head: it tells no replaced tokens.")
    if corruption == "auxiliary" and pretrainer.auxiliary is None:
        raise UserError("the preset has no auxiliary model: give --corruption=random.")
    manifest = Manifest.load(data)
    if manifest.vocabulary_fingerprint != tokenizer.fingerprint():
        raise UserError(f"--data={data} was built with another vocabulary than the preset's.")
    special = SpecialTokens(mask=tokenizer.mask_token_id)
    opened = PretrainingData.open(data, manifest.sequence_length, special)
    held_out = opened.validation_batches(min(batch_size, manifest.counts["sequences"]), batches)

    @tf.function(autograph=False)
    def read(batch: dict[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        corrupted = _corrupt(pretrainer, batch, corruption, seed)
        inputs = {"token_ids": corrupted, "padding_mask": batch["padding_mask"]}
        hidden = pretrainer.backbone(inputs, training=False)
        found = {"probabilities": tf.sigmoid(-pretrainer.copy_head(hidden)), "ids": corrupted}
        if pretrainer.lm_head:
            logits = pretrainer.lm_head(gather_positions(hidden, batch["masked_positions"]))
            originals = gather_positions(batch["token_ids"], batch["masked_positions"])
            own = tf.gather(logits, originals[:, tf.newaxis], batch_dims=1)
            found["ranks"] = tf.reduce_sum(tf.cast(logits > own, tf.int32), axis=-1)
        return found

    counts = np.zeros(tokenizer.vocabulary_size(), np.int64)
    probabilities, is_replaced, ranks, originals = [], [], [], []
    progress = tqdm(held_out, desc=f"{name} {corruption}".strip(), unit="batch")
    for number, batch in enumerate(progress):
        found = {key: x.numpy() for key, x in read(batch, tf.constant([0, number])).items()}
        ids, real = batch["token_ids"].numpy(), batch["padding_mask"].numpy()
        counts += np.bincount(ids[real], minlength=len(counts))
        probabilities.append(found["probabilities"][real])
        is_replaced.append((found["ids"] != ids)[real])
        if "ranks" in found:
            places = batch["masked_positions"].numpy()
            rows = np.arange(len(ids))[:, np.newaxis]
            changed = (found["ids"] != ids)[rows, places]
            ranks.append(found["ranks"].reshape(places.shape)[changed])
            originals.append(ids[rows, places][changed])
    # How many tokens come more often than each.
    frequency_ranks = np.searchsorted(np.sort(-counts), -counts)
    return Detections(
        np.concatenate(probabilities),
        np.concatenate(is_replaced),
        _joined(ranks),
        frequency_ranks[_joined(originals)],
    )


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros([0], np.int64), *parts])


def _corrupt(
    pretrainer: CocoLMPretrainer, batch: dict[str, tf.Tensor], corruption: str, seed: tf.Tensor
) -> tf.Tensor:
    original, positions = batch["token_ids"], batch["masked_positions"]
    labels = gather_positions(original, positions)
    if corruption == "random":
        size, vocabulary_size = tf.shape(labels), pretrainer.backbone.vocabulary_size
        sampled = random_tokens(size, vocabulary_size, seed)
    else:
        masked = place(original, positions, pretrainer.mask_token_id)
        inputs = {"token_ids": masked, "padding_mask": batch["padding_mask"]}
        sampled = sample_tokens(pretrainer.auxiliary(inputs, positions=positions), seed)
    is_used = tf.reshape(batch["masked_weights"], [-1]) > 0
    return place(original, positions, tf.where(is_used, sampled, labels))
