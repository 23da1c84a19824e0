"""One fine-tuning run of a text classifier, and the process that does it."""

import math
import os
import random
import time
from typing import Any

import numpy as np

from cocolm_tf.data.examples import TaskData, stratified
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.batches import Tokens, prediction_batches, tokenized, training_batches
from cocolm_tf.finetuning.best_epoch import BestEpoch, Scores
from cocolm_tf.finetuning.cards import classifier_facts, versions
from cocolm_tf.finetuning.classification_run import ClassificationRun, read_task
from cocolm_tf.finetuning.config import FinetuningConfig, from_dict
from cocolm_tf.finetuning.data_report import data_lines, describe_data
from cocolm_tf.finetuning.jobs import Reporter, serve
from cocolm_tf.finetuning.metrics import evaluate, metrics_of, predicted
from cocolm_tf.finetuning.optimization import build_optimizer
from cocolm_tf.finetuning.predictions import write_predictions
from cocolm_tf.finetuning.text_classifier import CocoLMTextClassifier
from cocolm_tf.finetuning.text_classifier_preprocessor import CocoLMTextClassifierPreprocessor
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.output_folder import new_folder
from cocolm_tf.training.benchmark import describe_device
from cocolm_tf.training.model_card import write_model_card

MODULE = "cocolm_tf.finetuning.classification"

PREDICTIONS_DIRECTORY = "predictions"
PRESET_DIRECTORY = "preset"

_PREDICTION_BATCH = 64


def run_classification(spec: dict[str, Any], folder: str, reporter: Reporter) -> dict[str, Any]:
    """Fine-tunes a classifier, measures it on the dev sets and predicts the test sets.

    Args:
        spec: a `ClassificationRun` as a dict.
        folder: gets `preset/`, with the best epoch's weights, and `predictions/`.
        reporter: is told.

    Returns:
        What JSON can hold: `score`, that of the best epoch on the first dev set; `dev`, all its
        metrics; `best_epoch` and `epochs`; `examples_per_second`; `data`, see `describe_data`.
        Of a run whose outputs never were finite only `diverged`, true.

    Raises:
        UserError: if the data or the preset is not what it should be.

    Example:
    ```python
    run_classification(dataclasses.asdict(run), "runs/rte/seed_0", Reporter())["score"]
    ```
    """
    started = time.monotonic()
    run = ClassificationRun(**spec)
    config = from_dict(run.config, "the run's configuration")
    data = read_task(run.data)
    train = data.train
    if run.train_fraction < 1:
        train = train.select(stratified(train, run.train_fraction, run.seed))
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
        max(1, config.data.length_buckets),
        equal_shapes=config.data.length_buckets == 0,
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
        return {"diverged": True, "headline": "diverged"}
    best.restore()
    for name in data.test:
        path = os.path.join(folder, PREDICTIONS_DIRECTORY, f"{name}.tsv")
        write_predictions(path, _outputs(classifier, tokens[name]), data)
    metric = metrics_of(data.name, data.num_classes)[0]
    results = {
        "headline": f"{metric} {best.best['score']:.4f} in epoch {best.best['epoch']}",
        "task": data.name,
        "metric": metric,
        "score": best.best["score"],
        "dev": best.best["dev"],
        "best_epoch": best.best["epoch"],
        "epochs": best.history,
        "steps_per_epoch": steps,
        "examples_per_second": best.examples_per_second,
        "seconds": time.monotonic() - started,
        "parameters": sum(math.prod(v.shape) for v in classifier.backbone.variables),
        "data": report,
        "device": describe_device(),
        "versions": versions(),
    }
    if run.save_preset:
        with new_folder(os.path.join(folder, PRESET_DIRECTORY)) as preset:
            classifier.save_to_preset(preset)
            facts = classifier_facts(run, data, results, classifier.backbone)
            write_model_card(preset, facts)
    return results


def build_classifier(
    run: ClassificationRun, config: FinetuningConfig, data: TaskData
) -> CocoLMTextClassifier:
    """Puts a new head on the encoder of a preset.

    Args:
        run: whose preset and seed it takes.
        config: whose sizes it takes.
        data: whose classes it takes.

    Returns:
        The classifier.

    Raises:
        UserError: if `data.sequence_length` is more than the encoder can read.

    Example:
    ```python
    build_classifier(run, config, data).predict(["A cat sat."])
    ```
    """
    # Keras draws the seeds of initializers and of dropout from here.
    random.seed(run.seed)
    backbone = CocoLMBackbone.from_preset(
        run.preset,
        load_weights=not run.from_scratch,
        dropout=config.model.dropout,
        dtype=config.runtime.precision,
    )
    positions = backbone.max_sequence_length
    length = config.data.sequence_length or positions
    if length > positions:
        raise UserError(
            f"data.sequence_length={length} is more than the {positions} positions of {run.preset}."
        )
    if config.model.lora_rank:
        backbone.enable_lora(config.model.lora_rank)
    return CocoLMTextClassifier(
        backbone,
        data.num_classes,
        CocoLMTextClassifierPreprocessor.from_preset(run.preset, sequence_length=length),
        data.label_names,
    )


def dev_scores(
    classifier: CocoLMTextClassifier, data: TaskData, tokens: dict[str, Tokens]
) -> tuple[Scores, float]:
    """Measures a classifier on the dev sets of a task.

    Args:
        classifier: as it is.
        data: the task.
        tokens: of its dev sets, by their names.

    Returns:
        The metrics of each dev set, and the first metric of the first of them.

    Raises:
        FloatingPointError: if the outputs are not finite.

    Example:
    ```python
    scores, score = dev_scores(classifier, data, tokens)
    ```
    """
    names = metrics_of(data.name, data.num_classes)
    scores = {}
    for part, examples in data.dev.items():
        outputs = _outputs(classifier, tokens[part])
        if not np.isfinite(outputs).all():
            raise FloatingPointError
        scores[part] = evaluate(names, examples.labels, predicted(outputs, data.bounds))
    return scores, next(iter(scores.values()))[names[0]]


def _outputs(classifier: CocoLMTextClassifier, tokens: Tokens) -> np.ndarray:
    batches, order = prediction_batches(tokens, _PREDICTION_BATCH)
    outputs = np.empty([len(tokens), classifier.num_classes], np.float32)
    outputs[order] = classifier.predict(batches, verbose=0)
    return outputs


if __name__ == "__main__":
    serve(run_classification)
