"""A preset's corrections of texts with known mistakes, and their scores."""

import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf
from sklearn import metrics
from tqdm import tqdm

from cocolm_tf.corrections.texts import Edit, MarkedText, apply_edits, single_words, words_of
from cocolm_tf.serving.correction import Corrector
from cocolm_tf.serving.encoder import Encoder, InferenceEncoder
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.serving.signature import Settings

# Of F, in grammatical error correction: a wrong correction costs twice what a missing one does.
BETA = 0.5
# The recall at which precision is reported, whatever the threshold.
RECALL = 0.5
_BEST = (1, 5)
_ORDER = 4  # of GLEU's longest n-grams


@dataclasses.dataclass(frozen=True)
class WordPredictions:
    """A model's predictions for the W words of a text; see `Corrector.correct`."""

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


def predict_corrections(
    preset: str, texts: Sequence[str], batch_size: int = 16
) -> list[WordPredictions]:
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
    predict_corrections("runs/corrector/preset", ["He go home."])[0].probabilities
    ```
    """
    parts = ServedPreset(preset)
    encoder = Encoder(InferenceEncoder(parts.backbone))
    correct = Corrector(parts, encoder, Settings(num_corrections=max(_BEST))).graph("correct")
    found: list[WordPredictions | None] = [None] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for first in tqdm(range(0, len(order), batch_size), desc="correcting", unit="batch"):
        chosen = order[first : first + batch_size]
        outputs = correct(tf.constant([texts[i] for i in chosen]))
        outputs = {name: value.numpy() for name, value in outputs.items()}
        for row, index in enumerate(chosen):
            found[index] = _predictions({name: value[row] for name, value in outputs.items()})
    return found


def _predictions(row: dict[str, np.ndarray]) -> WordPredictions:
    names = ("starts", "ends", "probabilities", "corrections", "correction_probabilities")
    starts, ends, probabilities, *found = (row[name][: row["num_words"]] for name in names)
    corrections = [
        [one.decode("utf-8", "replace") for one, share in zip(*of_word, strict=True) if share]
        for of_word in zip(*found, strict=True)
    ]
    return WordPredictions(starts, ends, probabilities, corrections)


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
    kinds: np.ndarray  # of each wrong word, what kind of mistake it is


def _words(texts: Sequence[MarkedText], predictions: Sequence[WordPredictions]) -> _Words:
    is_wrong, ranks, kinds = [], [], []
    for marked, words in zip(texts, predictions, strict=True):
        right = [
            (start, end, word, edit.kind)
            for edit in marked.edits
            for start, end, word in single_words(marked.text, edit)
        ]
        for start, end, found in zip(words.starts, words.ends, words.corrections, strict=True):
            over = [one for one in right if one[0] < end and start < one[1]]
            is_wrong.append(bool(over))
            if not over:
                continue
            first, last, word, kind = over[0]
            rank = -1
            if (first, last) == (start, end) and word is not None:
                found = [_capitalized(one, marked.text[start:end]) for one in found]
                rank = found.index(word) if word in found else -1
            kinds.append(kind)
            ranks.append(rank)
    probabilities = np.concatenate([words.probabilities for words in predictions])
    return _Words(probabilities, np.array(is_wrong, bool), np.array(ranks, int), np.array(kinds))


def evaluate(
    texts: Sequence[MarkedText],
    predictions: Sequence[WordPredictions],
    threshold: float | None = None,
    seed: int = 0,
) -> dict[str, object]:
    """Scores a model's predictions for texts with known mistakes.

    Words and GLEU's sources are the model's and the texts' own; of several annotators the first
    says which words are wrong, and all count for the edits and GLEU.

    Args:
        texts: The texts with their edits.
        predictions: What `predict_corrections` returns for them.
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
    predictions = predict_corrections("runs/corrector/preset", [marked.text for marked in texts])
    evaluate(texts, predictions)["detection"]["f0.5"]
    ```
    """
    scored = list(range(len(texts)))
    if threshold is None:
        if len(texts) < 2:
            raise ValueError("one text cannot choose a threshold and be scored: give --threshold")
        order = np.random.default_rng(seed).permutation(len(texts))
        chosen, scored = order[: len(order) // 2], order[len(order) // 2 :]
        words = _words([texts[i] for i in chosen], [predictions[i] for i in chosen])
        if not words.is_wrong.any():
            raise ValueError("half of the texts have no wrong word to choose a threshold by")
        threshold = best_threshold(words.probabilities, words.is_wrong)
    texts, predictions = [texts[i] for i in scored], [predictions[i] for i in scored]
    words = _words(texts, predictions)
    if not words.is_wrong.any():
        raise ValueError("the texts have no wrong word to score")
    sources = [marked.text for marked in texts]
    made = [one.edits(text, threshold) for text, one in zip(sources, predictions, strict=True)]
    corrected = [apply_edits(text, edits) for text, edits in zip(sources, made, strict=True)]
    references = [[marked.corrected(n) for n in range(len(marked.references))] for marked in texts]
    totals, kinds = edit_counts(zip(sources, made, [x.references for x in texts], strict=True))
    flagged = words.probabilities[words.is_wrong] >= threshold
    average_precision = metrics.average_precision_score(words.is_wrong, words.probabilities)
    return {
        "texts": len(texts),
        "words": len(words.is_wrong),
        "wrong_words": int(words.is_wrong.sum()),
        "threshold": threshold,
        "detection": detection(words.probabilities, words.is_wrong, threshold)
        | {
            "average_precision": float(average_precision),
            f"precision_at_recall_{RECALL}": precision_at_recall(
                words.probabilities, words.is_wrong, RECALL
            ),
        },
        "correction": {
            f"accuracy_at_{k}": float(((words.ranks >= 0) & (words.ranks < k)).mean())
            for k in _BEST
        },
        "edits": precision_recall_f(**totals),
        "by_kind": {
            kind: {
                "count": count,
                # A missing word is no word of the text that could be flagged.
                "flagged": _mean(flagged[words.kinds == kind]),
                "accuracy_at_1": _mean(words.ranks[words.kinds == kind] == 0),
                "corrected": hits / count,
            }
            for kind, (hits, count) in kinds.items()
        },
        "gleu": gleu(sources, corrected, references),
        "gleu_of_uncorrected": gleu(sources, sources, references),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


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


# --- Metrics: pure functions of words, edits and texts ---
# Of N words, `probabilities` [N] are that each does not belong, and `is_wrong` [N] bool is whether
# it does not.


def precision_recall_f(
    true_positives: int, false_positives: int, false_negatives: int
) -> dict[str, float]:
    """`precision`, `recall` and `f0.5` as ERRANT counts them: without positives, precision is 1."""
    found, there = true_positives + false_positives, true_positives + false_negatives
    precision = true_positives / found if found else 1.0
    recall = true_positives / there if there else 1.0
    return {"precision": precision, "recall": recall, f"f{BETA}": float(_f(precision, recall))}


def _f(precision: np.ndarray | float, recall: np.ndarray | float) -> np.ndarray:
    weighted = BETA**2 * precision + recall
    return (1 + BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1.0)


def detection(
    probabilities: np.ndarray, is_wrong: np.ndarray, threshold: float
) -> dict[str, float]:
    """`precision`, `recall` and `f0.5` of the words at least as suspicious as a threshold."""
    flagged = probabilities >= threshold
    counts = (flagged & is_wrong, flagged & ~is_wrong, ~flagged & is_wrong)
    return precision_recall_f(*(int(one.sum()) for one in counts))


def best_threshold(probabilities: np.ndarray, is_wrong: np.ndarray) -> float:
    """The threshold with the highest F, one of the probabilities; one word at least is wrong."""
    precision, recall, thresholds = metrics.precision_recall_curve(is_wrong, probabilities)
    return float(thresholds[np.argmax(_f(precision, recall)[:-1])])


def precision_at_recall(probabilities: np.ndarray, is_wrong: np.ndarray, recall: float) -> float:
    """The highest precision of any threshold with at least this recall."""
    precisions, recalls, _ = metrics.precision_recall_curve(is_wrong, probabilities)
    return float(precisions[recalls >= recall].max())


def edit_counts(
    texts: Iterable[tuple[str, Sequence[Edit], Sequence[Sequence[Edit]]]],
) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    """Counts edits against annotators', as ERRANT does: the same place and correction."""
    # Of each text, its edits and those of each annotator. Of several annotators the one counts with
    # whom the F of all texts so far is highest. Returns the numbers of `true_positives`,
    # `false_positives` and `false_negatives`; and of each kind of an annotator's edit, how many
    # were made, and how many there are.
    totals = np.zeros(3, int)
    found, there = collections.Counter(), collections.Counter()
    for text, made, references in texts:
        keys = {edit.of(text) for edit in made}
        best = None
        for edits in references:
            wanted = {edit.of(text): edit.kind for edit in edits}
            hits = keys & wanted.keys()
            counts = np.array([len(hits), len(keys) - len(hits), len(wanted) - len(hits)])
            rank = precision_recall_f(*(totals + counts))[f"f{BETA}"], counts[0], *-counts[1:]
            if best is None or rank > best[0]:
                best = rank, counts, hits, wanted
        _, counts, hits, wanted = best
        totals += counts
        found.update(wanted[key] for key in hits)
        there.update(wanted.values())
    names = ("true_positives", "false_positives", "false_negatives")
    by_kind = {kind: (found[kind], there[kind]) for kind in sorted(there)}
    return dict(zip(names, totals.tolist(), strict=True)), by_kind


def gleu(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    draws: int = 100,
    seed: int = 0,
) -> float:
    """GLEU of corrected texts (Napoles et al., 2015, in the form without tuning of 2016).

    BLEU's precision of n-grams, n up to 4, and brevity penalty, where an n-gram of the source that
    no reference keeps counts against the text that keeps it. Not Wu et al.'s score of translations
    of the same name, which knows no source.

    Args:
        sources: The texts with their mistakes.
        hypotheses: Their corrections.
        references: Of each text, the corrections of annotators, one at least.
        draws: Where a text has several references, how many times one of them is drawn; the score
            is the mean.
        seed: Decides what is drawn.

    Returns:
        From 0 to 1; 1 where every hypothesis is its reference.

    Example:
    ```python
    gleu(["He go to the school ."], ["He goes to the school ."], [["He goes to the school ."]])
    ```
    """
    counts = [
        [_gleu_counts(words_of(source), words_of(made), words_of(one)) for one in wanted]
        for source, made, wanted in zip(sources, hypotheses, references, strict=True)
    ]
    if all(len(of_text) == 1 for of_text in counts):
        return _gleu(np.sum([of_text[0] for of_text in counts], axis=0))
    draw = np.random.default_rng(seed)
    drawn = ([row[draw.integers(len(row))] for row in counts] for _ in range(draws))
    return float(np.mean([_gleu(np.sum(rows, axis=0)) for rows in drawn]))


def _gleu_counts(source: list[str], made: list[str], wanted: list[str]) -> np.ndarray:
    """Lengths of hypothesis and reference; hits and n-grams of each order."""
    counts = [len(made), len(wanted)]
    for order in range(1, _ORDER + 1):
        of_source, of_made, of_wanted = (_ngrams(x, order) for x in (source, made, wanted))
        lost = collections.Counter({n: k for n, k in of_source.items() if n not in of_wanted})
        hits = (of_made & of_wanted).total() - (of_made & lost).total()
        counts += [max(hits, 0), max(len(made) + 1 - order, 0)]
    return np.array(counts)


def _ngrams(words: list[str], order: int) -> collections.Counter:
    return collections.Counter(zip(*(words[i:] for i in range(order)), strict=False))


def _gleu(counts: np.ndarray) -> float:
    made, wanted, *rest = counts.tolist()
    hits, totals = rest[::2], rest[1::2]
    if not all(counts):
        return 0.0
    precision = sum(math.log(x / y) for x, y in zip(hits, totals, strict=True)) / _ORDER
    return math.exp(min(0.0, 1 - wanted / made) + precision)
