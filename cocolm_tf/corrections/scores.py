"""Metrics of corrections: pure functions of words, edits and texts.

Of W words, `probabilities` [W] are that each does not belong, and `is_wrong` [W] bool is whether it
does not. `beta` is how many times as much as precision recall counts.
"""

import collections
import math
from collections.abc import Iterable, Sequence

import numpy as np
from sklearn import metrics

from cocolm_tf.corrections.texts import Edit, words_of

# Of grammatical error correction: a wrong correction costs twice what a missing one does.
BETA = 0.5
_ORDER = 4


def precision_recall_f(
    true_positives: int, false_positives: int, false_negatives: int, beta: float = BETA
) -> dict[str, float]:
    """`precision`, `recall` and `f` as ERRANT counts them: without positives, precision is 1."""
    found, there = true_positives + false_positives, true_positives + false_negatives
    precision = true_positives / found if found else 1.0
    recall = true_positives / there if there else 1.0
    weighted = beta**2 * precision + recall
    f = (1 + beta**2) * precision * recall / weighted if weighted else 0.0
    return {"precision": precision, "recall": recall, "f": f}


def detection(
    probabilities: np.ndarray, is_wrong: np.ndarray, threshold: float, beta: float = BETA
) -> dict[str, float]:
    """`precision`, `recall` and `f` of the words at least as suspicious as a threshold."""
    flagged = probabilities >= threshold
    counts = (flagged & is_wrong, flagged & ~is_wrong, ~flagged & is_wrong)
    return precision_recall_f(*(int(one.sum()) for one in counts), beta)


def best_threshold(probabilities: np.ndarray, is_wrong: np.ndarray, beta: float = BETA) -> float:
    """The threshold with the highest F, one of the probabilities; one word at least is wrong."""
    precision, recall, thresholds = metrics.precision_recall_curve(is_wrong, probabilities)
    weighted = beta**2 * precision + recall
    f = (1 + beta**2) * precision * recall / np.where(weighted > 0, weighted, 1.0)
    return float(thresholds[np.argmax(f[:-1])])


def precision_at_recall(probabilities: np.ndarray, is_wrong: np.ndarray, recall: float) -> float:
    """The highest precision of any threshold with at least this recall."""
    precisions, recalls, _ = metrics.precision_recall_curve(is_wrong, probabilities)
    return float(precisions[recalls >= recall].max())


def edit_counts(
    texts: Iterable[tuple[str, Sequence[Edit], Sequence[Sequence[Edit]]]], beta: float = BETA
) -> tuple[collections.Counter[str], dict[str, tuple[int, int]]]:
    """Counts edits against annotators', as ERRANT does: the same place and correction."""
    # Of each text, its edits and those of each annotator. Of several annotators the one counts with
    # whom the F of all texts so far is highest. Returns the numbers of `true_positives`,
    # `false_positives` and `false_negatives`; and of each kind of an annotator's edit, how many
    # were made, and how many there are.
    totals = collections.Counter(true_positives=0, false_positives=0, false_negatives=0)
    found, there = collections.Counter(), collections.Counter()
    for text, made, references in texts:
        keys = {edit.of(text) for edit in made}
        best = None
        for edits in references:
            wanted = {edit.of(text): edit.kind for edit in edits}
            hits = keys & wanted.keys()
            counts = collections.Counter(
                true_positives=len(hits),
                false_positives=len(keys) - len(hits),
                false_negatives=len(wanted) - len(hits),
            )
            score = precision_recall_f(**_sum(totals, counts), beta=beta)["f"]
            rank = score, len(hits), -counts["false_positives"], -counts["false_negatives"]
            if best is None or rank > best[0]:
                best = rank, counts, hits, wanted
        _, counts, hits, wanted = best
        totals = _sum(totals, counts)
        found.update(wanted[key] for key in hits)
        there.update(wanted.values())
    return totals, {kind: (found[kind], there[kind]) for kind in sorted(there)}


def _sum(one: collections.Counter, other: collections.Counter) -> collections.Counter:
    return collections.Counter({name: one[name] + other[name] for name in one})


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
    return float(
        np.mean(
            [
                _gleu(np.sum([row[draw.integers(len(row))] for row in counts], axis=0))
                for _ in range(draws)
            ]
        )
    )


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
