"""One fine-tuning run of a question answerer, and the process that does it."""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from cocolm_tf import files
from cocolm_tf.data.examples import stratified
from cocolm_tf.data.squad import Question
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.batches import PREDICTION_BATCH
from cocolm_tf.finetuning.best_epoch import BestEpoch
from cocolm_tf.finetuning.cards import answerer_facts
from cocolm_tf.finetuning.config import FinetuningConfig, from_dict
from cocolm_tf.finetuning.encoder import encoder_of, row_length
from cocolm_tf.finetuning.jobs import Reporter, serve
from cocolm_tf.finetuning.models.answers import Prediction
from cocolm_tf.finetuning.models.question_answerer import (
    SEQUENCE_LENGTH,
    CocoLMQuestionAnswerer,
    CocoLMQuestionAnswererPreprocessor,
)
from cocolm_tf.finetuning.models.window_rows import learning_batches
from cocolm_tf.finetuning.optimization import build_optimizer
from cocolm_tf.finetuning.outcomes import DIVERGED, describe_run, save_model
from cocolm_tf.finetuning.results import Scores
from cocolm_tf.finetuning.squad_data import question_lines, question_rows
from cocolm_tf.finetuning.squad_files import write_squad_files
from cocolm_tf.finetuning.squad_run import SquadRun
from cocolm_tf.finetuning.squad_scores import choose_null_threshold, score_answers


def run_squad(spec: dict[str, Any], folder: str, reporter: Reporter) -> dict[str, Any]:
    """Fine-tunes a question answerer, chooses its threshold and scores it on the dev set.

    Args:
        spec: A `SquadRun` as a dict.
        folder: Gets `preset/`, with the best epoch's weights, and the dev set's predictions in
            the official formats, see `write_squad_files`.
        reporter: Is told.

    Returns:
        What JSON can hold: `score`, the F1 of the best epoch, and `dev`, it and the exact matches,
        as shares; `baseline`, the same of never answering; `official`, what `score_answers` gives;
        `null_threshold`; `best_epoch` and `epochs`; `data`; and what `describe_run` says. Of a
        run whose outputs never were finite only `diverged`, true.

    Raises:
        UserError: If the data, the preset or a length is not what it should be.

    Example:
    ```python
    run_squad(dataclasses.asdict(run), "runs/squad/seed_0", Reporter())["official"]["f1"]
    ```
    """
    started = time.monotonic()
    run = SquadRun(**spec)
    config = from_dict(run.config, "the run's configuration")
    train, dev = run.read("train"), run.read("dev")
    if run.train_fraction < 1:
        answerable = np.int32([question.is_answerable for question in train])
        train = [train[n] for n in stratified(answerable, run.train_fraction, run.seed)]
    answerer = build_answerer(run, config)
    rows, train_report = question_rows(answerer.preprocessor, train)
    _, dev_report = question_rows(answerer.preprocessor, dev)
    report = {"train": train_report, "dev": dev_report}
    sources = {name: run.source(name) for name in report}
    task = task_name(dev)
    reporter.say(f"{task}:\n{question_lines(report, sources)}")

    epochs = config.trainer.epochs
    batches, steps = learning_batches(
        rows, config.trainer.batch_size, run.seed, config.data.length_buckets
    )
    answerer.compile(
        build_optimizer(config.optimizer, epochs * steps, answerer, answerer.backbone), metrics=[]
    )

    def measure() -> tuple[Scores, float]:
        scores = _shares(_scored(answerer, dev)[1])
        return {"dev": scores}, scores["f1"]

    best = BestEpoch(measure, epochs, steps, len(rows), reporter)
    answerer.fit(batches, steps_per_epoch=steps, epochs=epochs, callbacks=[best], verbose=0)
    if best.best is None:
        return DIVERGED
    best.restore()
    predictions, official = _scored(answerer, dev)
    write_squad_files(folder, dev, predictions)
    scores = _shares(official)
    results = {
        "headline": f"exact {official['exact']:.2f}, F1 {official['f1']:.2f} in epoch "
        f"{best.best['epoch']}",
        "task": task,
        "metric": "f1",
        "score": scores["f1"],
        "dev": {"dev": scores},
        "baseline": {"dev": _shares(score_answers(dev, {question.id: "" for question in dev}))},
        "official": official,
        "null_threshold": answerer.null_threshold,
        "best_epoch": best.best["epoch"],
        "epochs": best.history,
        "steps_per_epoch": steps,
        "data": {
            name: {"rows": part["questions"], "source": sources[name], **part}
            for name, part in report.items()
        },
        **describe_run(answerer, best, started),
    }
    if run.save_preset:
        save_model(answerer, answerer_facts(run, answerer, results), folder)
    return results


def build_answerer(run: SquadRun, config: FinetuningConfig) -> CocoLMQuestionAnswerer:
    """Puts a head on the encoder of a preset: its own, if it answers questions, or a new one.

    Args:
        run: Whose preset, lengths and seed it takes.
        config: Whose sizes it takes.

    Returns:
        The answerer.

    Raises:
        UserError: If the lengths do not fit the encoder or each other.

    Example:
    ```python
    build_answerer(run, config).predict((["Who sat?"], ["The cat sat."]))
    ```
    """
    with files.local_copy(run.preset) as preset:
        backbone = encoder_of(dataclasses.replace(run, preset=preset), config)
        length = row_length(config.data.sequence_length, backbone, SEQUENCE_LENGTH)
        lengths = {"stride": run.stride, "max_question_length": run.max_question_length}
        try:
            answerer = CocoLMQuestionAnswerer(
                backbone,
                CocoLMQuestionAnswererPreprocessor.from_preset(
                    preset, sequence_length=length, **lengths
                ),
                run.max_answer_length,
                run.n_best,
            )
        except ValueError as error:  # which lengths do not fit
            raise UserError(str(error)) from error
        if not run.from_scratch and _is_answerer(preset):
            answerer.load_task_weights(os.path.join(preset, "task.weights.h5"))
    return answerer


def task_name(dev: Sequence[Question]) -> str:
    """Says which SQuAD questions are like: only 2.0 has unanswerable ones.

    Example:
    ```python
    task_name(read_squad("dev-v2.0.json"))  # "SQuAD 2.0"
    ```
    """
    return "SQuAD 1.1" if all(question.is_answerable for question in dev) else "SQuAD 2.0"


def _scored(
    answerer: CocoLMQuestionAnswerer, dev: Sequence[Question]
) -> tuple[list[Prediction], dict[str, float]]:
    """Answers the dev set, with the threshold that is best for it, and scores the answers."""
    texts = [question.question for question in dev], [question.context for question in dev]
    predictions = answerer.predict(texts, batch_size=PREDICTION_BATCH, verbose=0)
    if not np.isfinite([prediction.null_odds for prediction in predictions]).all():
        raise FloatingPointError
    answerer.null_threshold = choose_null_threshold(dev, predictions)
    predictions = [prediction.with_threshold(answerer.null_threshold) for prediction in predictions]
    answers = {q.id: p.answer for q, p in zip(dev, predictions, strict=True)}
    return predictions, score_answers(dev, answers)


def _shares(official: dict[str, float]) -> dict[str, float]:
    return {name: official[name] / 100 for name in ("exact", "f1")}


def _is_answerer(preset: str) -> bool:
    path = os.path.join(preset, "task.json")
    if not files.is_file(path):
        return False
    registered = json.loads(files.read_text(path)).get("registered_name")
    return registered == "cocolm_tf>CocoLMQuestionAnswerer"


if __name__ == "__main__":
    serve(run_squad)
