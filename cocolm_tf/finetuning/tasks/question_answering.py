"""Questions on paragraphs: SQuAD 2.0 and 1.1, and other data in their format."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

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
from cocolm_tf.finetuning.encoder import encoder_of, row_length
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
from cocolm_tf.finetuning.tasks.task import (
    Prepared,
    Scores,
    Task,
    base_model,
    best_epoch_line,
    settings_of,
    shared_facts,
)
from cocolm_tf.jobs import write_json
from cocolm_tf.training.model_card import Facts, Result

PREDICTIONS_DIRECTORY = "predictions"
PREDICTIONS_FILENAME = "predictions.json"
NULL_ODDS_FILENAME = "null_odds.json"
N_BEST_FILENAME = "nbest_predictions.json"

_TFDS_SPLITS = {"train": "train", "dev": "validation"}
_HUB_TASK = "question-answering"
_SCORES = ("exact", "f1", "total")
_CURIOSITIES = {
    "misplaced": "whose answer is not where the file says: not learned from",
    "without_window": "whose answer no window holds whole, so that none is learned",
    "inexact": "whose answer does not begin and end where tokens do",
}


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
        metric: What chooses the best measurement: `f1`, also where it is empty, or `exact`.
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
    metric: str = ""

    def read(self, part: str) -> list[Question]:
        """Reads the questions of a part, `train` or `dev`."""
        if not self.files:
            return load_squad_from_tfds(_TFDS_SPLITS[part])
        questions = read_squad(self.files[part])
        if all(question.span is None for question in questions):
            raise UserError(
                f"{self.files[part]}: no answer is where its answer_start says, in characters of "
                "the context."
            )
        return questions

    def source(self, part: str) -> str:
        """Where a part comes from, for people."""
        return self.files[part] if self.files else f"{TFDS_NAME} ({_TFDS_SPLITS[part]})"

    def files_read(self) -> list[str]:
        return list(self.files.values())

    def check(self) -> str:
        if self.metric not in ("", "f1", "exact"):
            raise UserError(f"--metric={self.metric}: that of questions is f1 or exact.")
        for part in _TFDS_SPLITS:
            self.read(part)
        return "SQuAD"

    def prepare(self, config: FinetuningConfig) -> "PreparedQuestionAnswering":
        return PreparedQuestionAnswering(self, config)


class PreparedQuestionAnswering(Prepared):
    """A question answerer that is ready to train."""

    def __init__(self, task: QuestionAnsweringTask, config: FinetuningConfig) -> None:
        self._task, self._config = task, config
        if config.trainer.label_smoothing:
            raise UserError("trainer.label_smoothing is for classes, and questions have none.")
        train, self._dev = task.read("train"), task.read("dev")
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
        self.name = task_name(self._dev)
        self.metric = task.metric or "f1"
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
        batches, steps = learning_batches(
            self._rows,
            self._config.trainer.batch_size,
            self._task.seed,
            self._config.data.length_buckets,
        )
        return batches, steps, len(self._rows)

    def measure(self) -> Scores:
        # With the threshold that is best for the dev set.
        return {"dev": _shares(self._answered()[1])}

    def artifacts(self, folder: str) -> dict[str, Any]:
        predictions, official = self._answered()
        write_squad_files(os.path.join(folder, PREDICTIONS_DIRECTORY), self._dev, predictions)
        nothing = {question.id: "" for question in self._dev}
        return {
            "headline": f"exact {official['exact']:.2f}, F1 {official['f1']:.2f}",
            "baseline": {"dev": _shares(score_answers(self._dev, nothing))},
            "official": official,
            "null_threshold": self.model.null_threshold,
        }

    def facts(self, results: Mapping[str, Any]) -> Facts:
        task, answerer, name = self._task, self.model, self.name
        preprocessor = answerer.preprocessor
        train, dev = results["data"]["train"], results["data"]["dev"]
        silent = results["baseline"]["dev"]
        return Facts(
            name=f"COCO-LM on {name}",
            description=f"A COCO-LM text encoder, fine-tuned on {name} from {task.start}. It "
            "answers a question with a part of a text"
            + (", or says that the text has no answer." if name == "SQuAD 2.0" else "."),
            pipeline_tag=_HUB_TASK,
            base_model=base_model(task),
            direct_use="Finding the part of a text that answers a question on it.",
            limitations="It knows nothing but the text that it is given, and it was measured on "
            f"{name}'s kind of texts only. Answers of more than {answerer.max_answer_length} "
            "tokens are not found. The threshold above which a question counts as unanswerable "
            "was chosen on the data that it was measured on.",
            usage="from cocolm_tf import CocoLMQuestionAnswerer\n\n"
            'answerer = CocoLMQuestionAnswerer.from_preset("path/of/this/folder")\n'
            '(prediction,) = answerer.predict((["A question?"], ["A text that answers it."]))\n'
            "prediction.answer",
            training_data=f"{train['questions']:,} questions of {train['source']}, "
            f"{train['unanswerable']:,} of them unanswerable, in {train['windows']:,} windows.",
            settings=settings_of(task)
            | {
                "data.sequence_length": preprocessor.sequence_length,
                "stride": preprocessor.stride,
                "max_question_length": preprocessor.max_question_length,
                "max_answer_length": answerer.max_answer_length,
                "n_best": answerer.n_best,
                "null_threshold": answerer.null_threshold,
            },
            speed=f"{results['examples_per_second']:.1f} windows a second; "
            + best_epoch_line(results),
            evaluation_data=f"{dev['questions']:,} questions of {dev['source']}, "
            f"{dev['unanswerable']:,} of them unanswerable. Always to answer nothing scores "
            f"{100 * silent['exact']:.2f} exact and {100 * silent['f1']:.2f} F1.",
            results=[
                Result(_HUB_TASK, f"{name} (dev)", metric, value)
                for metric, value in results["official"].items()
                if not metric.endswith("total")
            ],
            **shared_facts(results, answerer.backbone, "a question answering head"),
        )

    def _answered(self) -> tuple[list[Prediction], dict[str, float]]:
        """Answers the dev set with the threshold that is best for it, and scores the answers."""
        spans = self.model.spans_of(self._reading, len(self._questions), verbose=0)
        contexts = [question.context for question in self._dev]
        predictions = collect_answers(contexts, self._questions, spans, None, self.model.n_best)
        if not np.isfinite([prediction.null_odds for prediction in predictions]).all():
            raise FloatingPointError
        threshold = choose_null_threshold(self._dev, predictions)
        self.model.null_threshold = threshold
        predictions = [prediction.with_threshold(threshold) for prediction in predictions]
        answers = {q.id: p.answer for q, p in zip(self._dev, predictions, strict=True)}
        return predictions, score_answers(self._dev, answers)


def build_answerer(task: QuestionAnsweringTask, config: FinetuningConfig) -> CocoLMQuestionAnswerer:
    """Builds an answerer on a preset's encoder, with the preset's head if it has one."""
    with files.local_copy(task.preset) as preset:
        backbone = encoder_of(dataclasses.replace(task, preset=preset), config)
        length = row_length(config.data.sequence_length, backbone, SEQUENCE_LENGTH)
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
        if not task.from_scratch and _is_answerer(preset):
            answerer.load_task_weights(os.path.join(preset, "task.weights.h5"))
    return answerer


def task_name(dev: Sequence[Question]) -> str:
    """The SQuAD that questions are like: only 2.0 has unanswerable ones."""
    return "SQuAD 1.1" if all(question.is_answerable for question in dev) else "SQuAD 2.0"


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
        count, lengths = part["questions"], part["tokens"]
        lines.append(
            f"  {name}: {count:,} questions of {part['source']}, "
            f"{part['unanswerable'] / count:.1%} unanswerable"
        )
        lines.append(
            f"    {part['windows']:,} windows, {part['split']:,} questions in several; tokens: "
            f"median {lengths['median']}, 95% up to {lengths['percentile_95']}, longest "
            f"{lengths['longest']}; {lengths['truncated']:,} questions truncated"
        )
        for key, what in _CURIOSITIES.items():
            if part[key]:
                lines.append(f"    {part[key]:,} {what}")
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


def _shares(official: Mapping[str, float]) -> dict[str, float]:
    return {name: official[name] / 100 for name in ("exact", "f1")}


def _is_answerer(preset: str) -> bool:
    path = os.path.join(preset, "task.json")
    if not files.is_file(path):
        return False
    registered = json.loads(files.read_text(path)).get("registered_name")
    return registered == "cocolm_tf>CocoLMQuestionAnswerer"
