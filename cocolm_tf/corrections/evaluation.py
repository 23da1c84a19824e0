"""A preset's corrections of texts with known mistakes, and their scores."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from sklearn import metrics
from tqdm import tqdm

from cocolm_tf.corrections import scores
from cocolm_tf.corrections.texts import Edit, MarkedText, apply_edits, single_words
from cocolm_tf.serving.correction import Corrector
from cocolm_tf.serving.encoder import Encoder, InferenceEncoder
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.serving.signature import Settings

# The recall at which precision is reported, whatever the threshold.
RECALL = 0.5
_BEST = (1, 5)


@dataclasses.dataclass(frozen=True)
class Judgment:
    """A model's verdicts on the W words of a text; see `Corrector.correct`."""

    starts: np.ndarray  # [W] int
    ends: np.ndarray  # [W] int
    probabilities: np.ndarray  # [W] float, that each word does not belong
    corrections: list[list[str]]  # of each word, the most probable first; "" to remove it

    def edits(self, text: str, threshold: float) -> list[Edit]:
        """The best corrections of the words whose probability is at least the threshold."""
        edits = []
        words = zip(self.starts, self.ends, self.probabilities, self.corrections, strict=True)
        for start, end, probability, found in words:
            if probability < threshold or not found:
                continue
            correction = _capitalized(found[0], text[start:end])
            if not correction and start and text[start - 1] == " ":
                start -= 1
            edits.append(Edit(int(start), int(end), correction))
        return edits


def judge(preset: str, texts: Sequence[str], batch_size: int = 16) -> list[Judgment]:
    """The answers of a preset's `correct` for texts.

    Args:
        preset: A local folder, with a copy head and an LM head.
        texts: Any number.
        batch_size: Texts at a time.

    Returns:
        For each text, the places, probabilities and corrections of its words.

    Raises:
        UserError: If the preset lacks a head.

    Example:
    ```python
    judge("runs/corrector/preset", ["He go home."])[0].probabilities
    ```
    """
    parts = ServedPreset(preset)
    encoder = Encoder(InferenceEncoder(parts.backbone))
    correct = Corrector(parts, encoder, Settings(num_corrections=max(_BEST))).graphs()["correct"]
    judged: list[Judgment | None] = [None] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for first in tqdm(range(0, len(order), batch_size), desc="correcting", unit="batch"):
        chosen = order[first : first + batch_size]
        outputs = correct(tf.constant([texts[i] for i in chosen]))
        outputs = {name: value.numpy() for name, value in outputs.items()}
        for row, index in enumerate(chosen):
            judged[index] = _judgment({name: value[row] for name, value in outputs.items()})
    return judged


def _judgment(row: dict[str, np.ndarray]) -> Judgment:
    count = row["num_words"]
    corrections = [
        [one.decode("utf-8", "replace") for one, share in zip(found, shares, strict=True) if share]
        for found, shares in zip(
            row["corrections"][:count], row["correction_probabilities"][:count], strict=True
        )
    ]
    return Judgment(
        row["starts"][:count], row["ends"][:count], row["probabilities"][:count], corrections
    )


def _capitalized(correction: str, word: str) -> str:
    """A correction with a capital where the word has one, for uncased vocabularies."""
    if correction.islower() and word[:1].isupper():
        return correction.upper() if len(word) > 1 and word.isupper() else correction.capitalize()
    return correction


@dataclasses.dataclass(frozen=True)
class _Words:
    """The words of texts, one after the other."""

    probabilities: np.ndarray  # [N], that each does not belong
    is_wrong: np.ndarray  # [N] bool
    # Of each wrong word, how many corrections are likelier than the right one; -1 for none of them.
    ranks: np.ndarray
    kinds: list[str]  # of each wrong word, what kind of mistake it is


def _words(texts: Sequence[MarkedText], judged: Sequence[Judgment]) -> _Words:
    probabilities, is_wrong, ranks, kinds = [], [], [], []
    for marked, judgment in zip(texts, judged, strict=True):
        right = [
            (start, end, word, edit.kind)
            for edit in marked.edits
            for start, end, word in single_words(marked.text, edit)
        ]
        probabilities.append(judgment.probabilities)
        for start, end, found in zip(
            judgment.starts, judgment.ends, judgment.corrections, strict=True
        ):
            over = [one for one in right if one[0] < end and start < one[1]]
            is_wrong.append(bool(over))
            if not over:
                continue
            first, last, word, kind = over[0]
            kinds.append(kind)
            rank = -1
            if (first, last) == (start, end) and word is not None:
                found = [_capitalized(one, marked.text[start:end]) for one in found]
                rank = found.index(word) if word in found else -1
            ranks.append(rank)
    return _Words(
        np.concatenate(probabilities), np.array(is_wrong, bool), np.array(ranks, int), kinds
    )


def evaluate(
    texts: Sequence[MarkedText],
    judged: Sequence[Judgment],
    threshold: float | None = None,
    seed: int = 0,
) -> dict[str, object]:
    """Scores a model's verdicts on texts with known mistakes.

    Words and GLEU's sources are the model's and the texts' own; of several annotators the first
    says which words are wrong, and all count for the edits and GLEU.

    Args:
        texts: The texts with their edits.
        judged: What `judge` returns for them.
        threshold: The probability from which on a word is flagged and corrected. None chooses it
            on a random half of the texts, by the F0.5 of detection, and scores on the other half.
        seed: Decides the halves.

    Returns:
        `texts`, `words` and `wrong_words` that were scored; `threshold`; `detection` with
        `precision`, `recall`, `f0.5`, `average_precision` and `precision_at_recall_0.5`;
        `correction` with `accuracy_at_1` and `accuracy_at_5`, shares of the wrong words; `edits`
        with `precision`, `recall` and `f0.5` of place and correction together; `by_kind`, from
        each kind of mistake to its `count`, the `flagged` share of its wrong words and their
        `accuracy_at_1`, and the `corrected` share of its edits; `gleu` and `gleu_of_uncorrected`.

    Raises:
        ValueError: If there is no mistake to choose a threshold by, or to score.

    Example:
    ```python
    texts = [maker(text, seed) for seed, text in enumerate(passages)]
    judged = judge("runs/corrector/preset", [marked.text for marked in texts])
    evaluate(texts, judged)["detection"]["f0.5"]
    ```
    """
    scored = list(range(len(texts)))
    if threshold is None:
        if len(texts) < 2:
            raise ValueError("one text cannot choose a threshold and be scored: give --threshold")
        order = np.random.default_rng(seed).permutation(len(texts))
        chosen, scored = order[: len(order) // 2], order[len(order) // 2 :]
        words = _words([texts[i] for i in chosen], [judged[i] for i in chosen])
        if not words.is_wrong.any():
            raise ValueError("half of the texts have no wrong word to choose a threshold by")
        threshold = scores.best_threshold(words.probabilities, words.is_wrong)
    texts, judged = [texts[i] for i in scored], [judged[i] for i in scored]
    words = _words(texts, judged)
    if not words.is_wrong.any():
        raise ValueError("the texts have no wrong word to score")
    made = [one.edits(marked.text, threshold) for marked, one in zip(texts, judged, strict=True)]
    totals, by_kind = scores.edit_counts(
        (marked.text, edits, marked.references) for marked, edits in zip(texts, made, strict=True)
    )
    found = scores.detection(words.probabilities, words.is_wrong, threshold)
    sources = [marked.text for marked in texts]
    references = [
        [marked.corrected(annotator) for annotator in range(len(marked.references))]
        for marked in texts
    ]
    corrected = [apply_edits(text, edits) for text, edits in zip(sources, made, strict=True)]
    flagged = words.probabilities[words.is_wrong] >= threshold
    of_kind = {kind: np.array([one == kind for one in words.kinds]) for kind in by_kind}
    return {
        "texts": len(texts),
        "words": len(words.is_wrong),
        "wrong_words": int(words.is_wrong.sum()),
        "threshold": threshold,
        "detection": _named(found)
        | {
            "average_precision": float(
                metrics.average_precision_score(words.is_wrong, words.probabilities)
            ),
            f"precision_at_recall_{RECALL}": scores.precision_at_recall(
                words.probabilities, words.is_wrong, RECALL
            ),
        },
        "correction": {
            f"accuracy_at_{k}": float(((words.ranks >= 0) & (words.ranks < k)).mean())
            for k in _BEST
        },
        "edits": _named(scores.precision_recall_f(**totals)),
        "by_kind": {
            kind: {
                "count": count,
                # A missing word is no word of the text that could be flagged.
                "flagged": _mean(flagged[of_kind[kind]]),
                "accuracy_at_1": _mean(words.ranks[of_kind[kind]] == 0),
                "corrected": hits / count,
            }
            for kind, (hits, count) in by_kind.items()
        },
        "gleu": scores.gleu(sources, corrected, references),
        "gleu_of_uncorrected": scores.gleu(sources, sources, references),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _named(found: dict[str, float]) -> dict[str, float]:
    return {f"f{scores.BETA}" if name == "f" else name: value for name, value in found.items()}


def report(found: dict[str, object]) -> str:
    """Formats the scores as a table."""
    detected, corrected, edits = (found[name] for name in ("detection", "correction", "edits"))
    lines = [
        f"{found['texts']} texts, {found['words']} words, {found['wrong_words']} of them wrong; "
        f"flagged from a probability of {found['threshold']:.3f}",
        "",
        f"{'':22}precision  recall    F0.5",
        *(
            f"{name:22}{x['precision']:9.3f}{x['recall']:8.3f}{x['f0.5']:8.3f}"
            for name, x in (("words flagged", detected), ("edits made", edits))
        ),
        "",
        f"{'average precision':34}{detected['average_precision']:.3f}",
        f"{f'precision at recall {RECALL}':34}{detected[f'precision_at_recall_{RECALL}']:.3f}",
        *(f"{f'right word within {k}':34}{corrected[f'accuracy_at_{k}']:.3f}" for k in _BEST),
        f"{'GLEU (of the texts as they are)':34}{found['gleu']:.4f} "
        f"({found['gleu_of_uncorrected']:.4f})",
        "",
        f"{'kind of mistake':22}    count flagged  right 1st corrected",
    ]
    for kind, x in sorted(found["by_kind"].items(), key=lambda item: -item[1]["count"]):
        of_words = [x["flagged"], x["accuracy_at_1"]]
        flagged, first = ("-" if value is None else f"{value:.3f}" for value in of_words)
        lines.append(f"{kind:22}{x['count']:9}{flagged:>8}{first:>11}{x['corrected']:10.3f}")
    return "\n".join(lines)


def as_json(found: dict[str, object]) -> str:
    """Formats the scores as one line of JSON, rounded to significant digits."""
    return json.dumps(_rounded(found))


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return round(value, 5) if isinstance(value, float) else value
