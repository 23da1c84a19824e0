"""Questions on paragraphs: SQuAD 2.0 and 1.1, and other data in their format."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
from official.nlp.tools import squad_evaluate_v2_0

from cocolm_tf import files
from cocolm_tf.data.examples import stratified
from cocolm_tf.data.squad import (
    TFDS_NAME,
    Question,
    load_squad_from_tfds,
    read_squad,
    to_official,
)
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.batches import PREDICTION_BATCH, describe_lengths
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.metrics import chosen_first
from cocolm_tf.finetuning.models.answers import Prediction, collect_answers, probabilities
from cocolm_tf.finetuning.models.question_answerer import (
    SEQUENCE_LENGTH,
    CocoLMQuestionAnswerer,
    CocoLMQuestionAnswererPreprocessor,
)
from cocolm_tf.finetuning.models.question_windows import (
    WindowRows,
    learning_batches,
    reading_batches,
    window_rows,
)
from cocolm_tf.finetuning.predictions import PREDICTIONS_DIRECTORY
from cocolm_tf.finetuning.presets import task_name
from cocolm_tf.finetuning.tasks.task import (
    Prepared,
    Scores,
    Task,
    finite,
    load_encoder,
    part_lines,
)
from cocolm_tf.jobs import write_json

PREDICTIONS_FILENAME = "predictions.json"
NULL_ODDS_FILENAME = "null_odds.json"
N_BEST_FILENAME = "nbest_predictions.json"

_TFDS_SPLITS = {"train": "train", "dev": "validation"}
_SCORES = ("exact", "f1", "total")
_WARNINGS = {
    "misplaced": "whose answer is not where the file says: not learned from",
    "without_window": "whose answer no window holds whole, so that none is learned",
    "inexact": "whose answer does not begin and end where tokens do",
}


class SquadData(NamedTuple):
    """Questions to learn from, and questions to measure on."""

    train: Sequence[Question]
    dev: Sequence[Question]

    @property
    def name(self) -> str:
        """The SQuAD that the questions are like: only 2.0 has unanswerable ones."""
        is_1 = all(question.is_answerable for question in self.dev)
        return "SQuAD 1.1" if is_1 else "SQuAD 2.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnsweringTask(Task):
    """A run of a question answerer, on SQuAD or on files in its format.

    Args:
        files: The JSON files by their parts, `train` and `dev`; empty for SQuAD 2.0 of TensorFlow
            Datasets.
        stride: As for `CocoLMQuestionAnswererPreprocessor`.
        max_question_length: As for `CocoLMQuestionAnswererPreprocessor`.
        max_answer_length: As for `CocoLMQuestionAnswerer`.
        n_best: As for `CocoLMQuestionAnswerer`.
        **kwargs: As for `Task`.

    Example:
    ```python
    files = {"train": "train-v2.0.json", "dev": "dev-v2.0.json"}
    QuestionAnsweringTask(preset="runs/first/preset", config=config.as_dict(), files=files)
    ```
    """

    family: ClassVar[str] = "question_answering"

    files: dict[str, str] = dataclasses.field(default_factory=dict)
    stride: int | None = None
    max_question_length: int | None = None
    max_answer_length: int | None = None
    n_best: int = 20

    def read(self) -> SquadData:
        return SquadData(*(self._read(part) for part in _TFDS_SPLITS))

    def metrics_of(self, data: SquadData) -> tuple[str, ...]:
        return chosen_first(self.metric, ("f1", "exact"), "questions")

    def source(self, part: str) -> str:
        """Where a part, `train` or `dev`, comes from, for people."""
        return self.files[part] if self.files else f"{TFDS_NAME} ({_TFDS_SPLITS[part]})"

    def files_read(self) -> list[str]:
        return list(self.files.values())

    def _read(self, part: str) -> list[Question]:
        if not self.files:
            return load_squad_from_tfds(_TFDS_SPLITS[part])
        questions = read_squad(self.files[part])
        if all(question.span is None for question in questions):
            raise UserError(
                f"{self.files[part]}: no answer is where its answer_start says, in characters of "
                "the context."
            )
        return questions

    def prepare(self, config: FinetuningConfig) -> "PreparedQuestionAnswering":
        return PreparedQuestionAnswering(self, config)


class PreparedQuestionAnswering(Prepared):
    """A question answerer that is ready to train."""

    hub_task = "question-answering"
    unit = "windows"
    task: QuestionAnsweringTask

    def __init__(self, task: QuestionAnsweringTask, config: FinetuningConfig) -> None:
        super().__init__(task, config)
        if config.trainer.label_smoothing:
            raise UserError("trainer.label_smoothing is for classes, and questions have none.")
        data = task.read()
        train, self._dev = data
        if task.train_fraction < 1:
            answerable = np.int32([question.is_answerable for question in train])
            drawn = stratified(answerable, task.train_fraction, task.seed)
            train = [train[number] for number in drawn]
        self.model = build_answerer(task, config)
        # Misplaced questions are not learned from, but those of the dev set are asked.
        good = [question for question in train if not question.is_misplaced]
        self._rows = _windows(self.model.preprocessor, good)
        # The dev set's windows are made once, and read at every measurement.
        dev_rows = _windows(self.model.preprocessor, self._dev)
        self._reading, order = reading_batches(dev_rows, PREDICTION_BATCH)
        self._questions = dev_rows.questions[order]
        self.name, self._metrics = data.name, task.metrics_of(data)
        self.metric = self._metrics[0]
        self.report = {
            part: {
                "rows": len(questions),
                "source": task.source(part),
                **describe_questions(questions, rows),
            }
            for part, questions, rows in (
                ("train", train, self._rows),
                ("dev", self._dev, dev_rows),
            )
        }
        self.summary = f"{self.name}:\n{question_lines(self.report)}"

    def training(self) -> tuple[tf.data.Dataset, int, int]:
        # An example is a window.
        batches, steps = learning_batches(self._rows, *self.batching)
        return batches, steps, len(self._rows)

    def measure(self) -> Scores:
        # With the threshold that is best for the dev set.
        return {"dev": self._shares(self._answered()[1])}

    def artifacts(self, folder: str) -> dict[str, Any]:
        predictions, official = self._answered()
        write_squad_files(os.path.join(folder, PREDICTIONS_DIRECTORY), self._dev, predictions)
        nothing = {question.id: "" for question in self._dev}
        return {
            "headline": f"exact {official['exact']:.2f}, F1 {official['f1']:.2f}",
            "baseline": {"dev": self._shares(score_answers(self._dev, nothing))},
            "official": official,
            "null_threshold": self.model.null_threshold,
        }

    def card(self, results: Mapping[str, Any]) -> dict[str, Any]:
        answerer, name = self.model, self.name
        preprocessor = answerer.preprocessor
        train, dev = results["data"]["train"], results["data"]["dev"]
        silent = results["baseline"]["dev"]
        official = {key: x for key, x in results["official"].items() if not key.endswith("total")}
        return {
            "description": f"A COCO-LM text encoder, {self.origin}. It answers a question with a "
            + "part of a text"
            + (", or says that the text has no answer." if name == "SQuAD 2.0" else "."),
            "head": "a question answering head",
            "direct_use": "Finding the part of a text that answers a question on it.",
            "limitations": "It knows nothing but the text that it is given, and it was measured on "
            f"{name}'s kind of texts only. Answers of more than {answerer.max_answer_length} "
            "tokens are not found. The threshold above which a question counts as unanswerable "
            "was chosen on the data that it was measured on.",
            "call": 'predict((["A question?"], ["A text that answers it."]))[0].answer',
            "training_data": f"{train['questions']:,} questions of {train['source']}, "
            f"{train['unanswerable']:,} of them unanswerable, in {train['windows']:,} windows.",
            "settings": {
                "data.sequence_length": preprocessor.sequence_length,
                "stride": preprocessor.stride,
                "max_question_length": preprocessor.max_question_length,
                "max_answer_length": answerer.max_answer_length,
                "n_best": answerer.n_best,
                "null_threshold": answerer.null_threshold,
            },
            "evaluation_data": f"{dev['questions']:,} questions of {dev['source']}, "
            f"{dev['unanswerable']:,} of them unanswerable. Always to answer nothing scores "
            f"{100 * silent['exact']:.2f} exact and {100 * silent['f1']:.2f} F1.",
            "results": self.card_results({"dev": official}),
        }

    def _shares(self, official: Mapping[str, float]) -> dict[str, float]:
        return {name: official[name] / 100 for name in self._metrics}

    def _answered(self) -> tuple[list[Prediction], dict[str, float]]:
        """Answers the dev set with the threshold that is best for it, and scores the answers."""
        spans = self.model.spans_of(self._reading, len(self._questions), verbose=0)
        contexts = [question.context for question in self._dev]
        predictions = collect_answers(contexts, self._questions, spans, None, self.model.n_best)
        finite(np.array([prediction.null_odds for prediction in predictions]))
        threshold = choose_null_threshold(self._dev, predictions)
        self.model.null_threshold = threshold
        predictions = [prediction.with_threshold(threshold) for prediction in predictions]
        answers = {q.id: p.answer for q, p in zip(self._dev, predictions, strict=True)}
        return predictions, score_answers(self._dev, answers)


def build_answerer(task: QuestionAnsweringTask, config: FinetuningConfig) -> CocoLMQuestionAnswerer:
    """Builds an answerer on a preset's encoder, with the preset's head if it has one."""
    with files.local_copy(task.preset) as preset:
        backbone, length = load_encoder(task, config, preset, SEQUENCE_LENGTH)
        lengths = {"stride": task.stride, "max_question_length": task.max_question_length}
        try:
            answerer = CocoLMQuestionAnswerer(
                backbone,
                CocoLMQuestionAnswererPreprocessor.from_preset(
                    preset, sequence_length=length, **lengths
                ),
                task.max_answer_length,
                task.n_best,
            )
        except ValueError as error:  # where the lengths do not fit each other
            raise UserError(str(error)) from error
        if not task.from_scratch and task_name(preset) == "cocolm_tf>CocoLMQuestionAnswerer":
            answerer.load_task_weights(os.path.join(preset, "task.weights.h5"))
    return answerer


def describe_questions(questions: Sequence[Question], rows: WindowRows) -> dict[str, Any]:
    """Summarizes a part's questions and their windows, for JSON."""
    # `rows` are the windows of all questions, or of those that are not misplaced. The result has
    # `questions`; `unanswerable` of them; `misplaced` ones, with no answer where the file says;
    # `windows`; `split`, questions with several windows; `without_window`, answerable ones whose
    # answer no window holds whole; `inexact`, those whose answer does not begin and end where
    # tokens do; and `tokens`, see `describe_lengths`, where `truncated` counts questions that were
    # cut off.
    good = [question for question in questions if not question.is_misplaced]
    asked = questions if rows.questions[-1] + 1 == len(questions) else good
    answerable = {n: question.span for n, question in enumerate(asked) if question.span}
    learned = rows.learned_spans()
    return {
        "questions": len(questions),
        "unanswerable": sum(not question.is_answerable for question in questions),
        "misplaced": len(questions) - len(good),
        "windows": len(rows),
        "split": int((np.bincount(rows.questions) > 1).sum()),
        "without_window": len(answerable) - len(learned),
        "inexact": sum(span != answerable[number] for number, span in learned.items()),
        "tokens": describe_lengths(rows.tokens),
    }


def question_lines(report: Mapping[str, Mapping[str, Any]]) -> str:
    """Lays out what `describe_questions` returned, and the `source`, in lines for people."""
    lines = []
    for name, part in report.items():
        notes = [
            f"{part['unanswerable'] / part['questions']:.1%} unanswerable; {part['windows']:,} "
            f"windows, {part['split']:,} questions in several",
            *(f"{part[key]:,} {what}" for key, what in _WARNINGS.items() if part[key]),
        ]
        lines.append(part_lines(name, part, f"{part['questions']:,} questions", notes))
    return "\n".join(lines)


def score_answers(questions: Sequence[Question], answers: Mapping[str, str]) -> dict[str, float]:
    """Scores answers, by question ids, with the official evaluation of SQuAD 2.0, in percent."""
    # It does for 1.1 as well. `exact` and `f1` are means over all questions, `HasAns_...` over
    # those with an answer, `NoAns_...` over those without, where there are such; `total`,
    # `HasAns_total` and `NoAns_total` are how many there are.
    scores = squad_evaluate_v2_0.evaluate(to_official(questions), answers)
    # The other scores are of thresholds, which `choose_null_threshold` finds.
    parts = [f"{part}{name}" for part in ("", "HasAns_", "NoAns_") for name in _SCORES]
    return {name: scores[name] for name in parts if name in scores}


def choose_null_threshold(
    questions: Sequence[Question], predictions: Sequence[Prediction]
) -> float | None:
    """The threshold on null odds with the best F1; None if all questions have answers."""
    if all(question.is_answerable for question in questions):
        return None
    # The evaluation takes probabilities, so the ranks of the odds stand for them. Its threshold of
    # 0 means that no question is answered.
    levels = sorted({prediction.null_odds for prediction in predictions})
    ranks = {odds: number / len(levels) for number, odds in enumerate(levels, start=1)}
    pairs = list(zip(questions, predictions, strict=True))
    scores = squad_evaluate_v2_0.evaluate(
        to_official(questions),
        {question.id: p.with_threshold(None).answer for question, p in pairs},
        {question.id: ranks[prediction.null_odds] for question, prediction in pairs},
    )
    number = round(scores["final_f1_thresh"] * len(levels))
    return levels[number - 1] if number else levels[0] - 1.0


def write_squad_files(
    folder: str, questions: Sequence[Question], predictions: Sequence[Prediction]
) -> None:
    """Writes predictions in the formats of the official evaluation, by question ids."""
    # `predictions.json` has the answers, empty for none; `null_odds.json` how likely each question
    # is unanswerable; `nbest_predictions.json` the candidates with their probabilities, no answer
    # among them.
    files.make_dirs(folder)
    ids = [question.id for question in questions]
    contents = {
        PREDICTIONS_FILENAME: [prediction.answer for prediction in predictions],
        NULL_ODDS_FILENAME: [prediction.null_odds for prediction in predictions],
        N_BEST_FILENAME: [_n_best(prediction) for prediction in predictions],
    }
    for name, values in contents.items():
        write_json(dict(zip(ids, values, strict=True)), os.path.join(folder, name))


def _n_best(prediction: Prediction) -> list[dict[str, str | float]]:
    ranked = sorted(
        [*prediction.candidates, prediction.no_answer], key=lambda candidate: -candidate.score
    )
    return [
        {
            "text": candidate.text,
            "probability": probability,
            "start_logit": candidate.start_logit,
            "end_logit": candidate.end_logit,
        }
        for candidate, probability in zip(ranked, probabilities(ranked), strict=True)
    ]


def _windows(
    preprocessor: CocoLMQuestionAnswererPreprocessor, questions: Sequence[Question]
) -> WindowRows:
    return window_rows(
        preprocessor,
        [question.question for question in questions],
        [question.context for question in questions],
        [question.span or (0, 0) for question in questions],
    )
