"""One fine-tuning run of a text classifier, and the process that does it."""

import dataclasses
import os
import time
from typing import Any

import numpy as np

from cocolm_tf import files
from cocolm_tf.data.examples import TaskData, stratified
from cocolm_tf.finetuning.batches import (
    PREDICTION_BATCH,
    Tokens,
    prediction_batches,
    tokenized,
    training_batches,
)
from cocolm_tf.finetuning.best_epoch import BestEpoch
from cocolm_tf.finetuning.cards import classifier_facts
from cocolm_tf.finetuning.classification_run import ClassificationRun
from cocolm_tf.finetuning.config import FinetuningConfig, from_dict
from cocolm_tf.finetuning.data_report import data_lines, describe_data
from cocolm_tf.finetuning.encoder import encoder_of, row_length
from cocolm_tf.finetuning.jobs import Reporter, serve
from cocolm_tf.finetuning.metrics import evaluate, guesses, metrics_of, predicted
from cocolm_tf.finetuning.models.text_classifier import (
    CocoLMTextClassifier,
    CocoLMTextClassifierPreprocessor,
)
from cocolm_tf.finetuning.optimization import build_optimizer
from cocolm_tf.finetuning.outcomes import DIVERGED, describe_run, save_model
from cocolm_tf.finetuning.predictions import write_predictions
from cocolm_tf.finetuning.results import Scores

PREDICTIONS_DIRECTORY = "predictions"


def run_classification(spec: dict[str, Any], folder: str, reporter: Reporter) -> dict[str, Any]:
    """Fine-tunes a classifier, measures it on the dev sets and predicts the test sets.

    Args:
        spec: A `ClassificationRun` as a dict.
        folder: Gets `preset/`, with the best epoch's weights, and `predictions/`.
        reporter: Is told.

    Returns:
        What JSON can hold: `score`, that of the best epoch on the first dev set; `dev`, all its
        metrics; `baseline`, those of guesses, see `guesses`; `best_epoch` and `epochs`; `data`,
        see `describe_data`; and what `describe_run` says. Of a run whose outputs never were
        finite only `diverged`, true.

    Raises:
        UserError: If the data or the preset is not what it should be.

    Example:
    ```python
    run_classification(dataclasses.asdict(run), "runs/rte/seed_0", Reporter())["score"]
    ```
    """
    started = time.monotonic()
    run = ClassificationRun(**spec)
    config = from_dict(run.config, "the run's configuration")
    data = run.read()
    train = data.train
    if run.train_fraction < 1:
        train = train.select(stratified(train.labels, run.train_fraction, run.seed))
    classifier = build_classifier(run, config, data)
    parts = {"train": train, **data.dev, **data.test}
    tokens = {name: tokenized(classifier.preprocessor, part) for name, part in parts.items()}
    report = describe_data(data, train, tokens)
    reporter.say(data_lines(data.name, report))

    batches, steps = training_batches(
        tokens["train"],
        train.labels,
        config.trainer.batch_size,
        run.seed,
        config.data.length_buckets,
    )
    epochs = config.trainer.epochs
    classifier.compile(
        build_optimizer(config.optimizer, epochs * steps, classifier, classifier.backbone),
        metrics=[],
    )

    def measure() -> tuple[Scores, float]:
        return dev_scores(classifier, data, tokens)

    best = BestEpoch(measure, epochs, steps, len(train), reporter)
    classifier.fit(
        batches, steps_per_epoch=steps, epochs=epochs, callbacks=[best], shuffle=False, verbose=0
    )
    if best.best is None:
        return DIVERGED
    best.restore()
    for name in data.test:
        path = os.path.join(folder, PREDICTIONS_DIRECTORY, f"{name}.tsv")
        write_predictions(path, _outputs(classifier, tokens[name]), data)
    names = metrics_of(data)
    results = {
        "headline": f"{names[0]} {best.best['score']:.4f} in epoch {best.best['epoch']}",
        "task": data.name,
        "metric": names[0],
        "score": best.best["score"],
        "dev": best.best["dev"],
        "baseline": {
            part: evaluate(names, examples.labels, guesses(train.labels, len(examples)))
            for part, examples in data.dev.items()
        },
        "best_epoch": best.best["epoch"],
        "epochs": best.history,
        "steps_per_epoch": steps,
        "data": report,
        **describe_run(classifier, best, started),
    }
    if run.save_preset:
        save_model(classifier, classifier_facts(run, data, results, classifier.backbone), folder)
    return results


def build_classifier(
    run: ClassificationRun, config: FinetuningConfig, data: TaskData
) -> CocoLMTextClassifier:
    """Puts a new head on the encoder of a preset.

    Args:
        run: Whose preset and seed it takes.
        config: Whose sizes it takes.
        data: Whose classes it takes.

    Returns:
        The classifier.

    Raises:
        UserError: If `data.sequence_length` is more than the encoder can read.

    Example:
    ```python
    build_classifier(run, config, data).predict(["A cat sat."])
    ```
    """
    with files.local_copy(run.preset) as preset:
        backbone = encoder_of(dataclasses.replace(run, preset=preset), config)
        length = row_length(config.data.sequence_length, backbone)
        preprocessor = CocoLMTextClassifierPreprocessor.from_preset(preset, sequence_length=length)
    return CocoLMTextClassifier(backbone, data.num_classes, preprocessor, data.label_names)


def dev_scores(
    classifier: CocoLMTextClassifier, data: TaskData, tokens: dict[str, Tokens]
) -> tuple[Scores, float]:
    """Measures a classifier on the dev sets of a task.

    Args:
        classifier: As it is.
        data: The task.
        tokens: Of its dev sets, by their names.

    Returns:
        The metrics of each dev set, and the first metric of the first of them.

    Raises:
        FloatingPointError: If the outputs are not finite.

    Example:
    ```python
    scores, score = dev_scores(classifier, data, tokens)
    ```
    """
    names = metrics_of(data)
    scores = {}
    for part, examples in data.dev.items():
        outputs = _outputs(classifier, tokens[part])
        if not np.isfinite(outputs).all():
            raise FloatingPointError
        scores[part] = evaluate(names, examples.labels, predicted(outputs, data.bounds))
    return scores, next(iter(scores.values()))[names[0]]


def _outputs(classifier: CocoLMTextClassifier, tokens: Tokens) -> np.ndarray:
    batches, order = prediction_batches(tokens, PREDICTION_BATCH)
    outputs = np.empty([len(tokens), classifier.num_classes], np.float32)
    outputs[order] = classifier.predict(batches, verbose=0)
    return outputs


if __name__ == "__main__":
    serve(run_classification)
