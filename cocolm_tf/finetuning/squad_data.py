"""Questions as a run learns from them, and what there is to say of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cocolm_tf.data.squad import Question
from cocolm_tf.finetuning.batches import describe_lengths
from cocolm_tf.finetuning.models.question_answerer import (
    CocoLMQuestionAnswererPreprocessor,
)
from cocolm_tf.finetuning.models.window_rows import WindowRows, window_rows


def question_rows(
    preprocessor: CocoLMQuestionAnswererPreprocessor, questions: Sequence[Question]
) -> tuple[WindowRows, dict[str, Any]]:
    """Makes windows of questions, and says what there is to say of them.

    Args:
        preprocessor: Of the model.
        questions: One at least is not misplaced.

    Returns:
        The windows, and a report for JSON: `questions`; `unanswerable` of them; `misplaced` ones,
        left out because no answer is where it is said to be; `windows`; `split`, questions with
        several windows; `without_window`, answerable ones whose answer no window holds whole;
        `inexact`, those whose answer does not begin and end where tokens do; and `tokens`, see
        `describe_lengths`, where `truncated` counts questions that were cut off.

    Example:
    ```python
    rows, report = question_rows(answerer.preprocessor, read_squad("train-v2.0.json"))
    ```
    """
    good = [question for question in questions if not question.is_misplaced]
    spans = [question.span for question in good]
    rows = window_rows(
        preprocessor,
        [question.question for question in good],
        [question.context for question in good],
        [span or (0, 0) for span in spans],
    )
    learned = rows.learned_spans()
    answerable = {number: span for number, span in enumerate(spans) if span}
    return rows, {
        "questions": len(questions),
        "unanswerable": sum(not question.is_answerable for question in questions),
        "misplaced": len(questions) - len(good),
        "windows": len(rows),
        "split": int((np.bincount(rows.questions) > 1).sum()),
        "without_window": len(answerable) - len(learned),
        "inexact": sum(span != answerable[number] for number, span in learned.items()),
        "tokens": describe_lengths(rows.tokens),
    }


def question_lines(reports: dict[str, dict[str, Any]], sources: dict[str, str]) -> str:
    """Lays reports out for people.

    Args:
        reports: Those of `question_rows`, by the names of their parts.
        sources: Where each part comes from.

    Returns:
        Some lines.

    Example:
    ```python
    print(question_lines({"train": report}, {"train": "train-v2.0.json"}))
    ```
    """
    lines = []
    for name, report in reports.items():
        count, lengths = report["questions"], report["tokens"]
        lines.append(
            f"  {name}: {count:,} questions of {sources[name]}, "
            f"{report['unanswerable'] / count:.1%} unanswerable"
        )
        lines.append(
            f"    {report['windows']:,} windows, {report['split']:,} questions in several; tokens: "
            f"median {lengths['median']}, 95% up to {lengths['percentile_95']}, longest "
            f"{lengths['longest']}; {lengths['truncated']:,} questions truncated"
        )
        for key, what in _CURIOSITIES.items():
            if report[key]:
                lines.append(f"    {report[key]:,} {what}")
    return "\n".join(lines)


_CURIOSITIES = {
    "misplaced": "whose answer is not where the file says: not learned from",
    "without_window": "whose answer no window holds whole, so that none is learned",
    "inexact": "whose answer does not begin and end where tokens do",
}
