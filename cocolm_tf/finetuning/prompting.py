"""One run of prompt-based fine-tuning, and the process that does it (paper, section 5.3)."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.data.examples import Examples, TaskData
from cocolm_tf.data.few_shot import classes_of, few_shot_split
from cocolm_tf.data.glue import read_glue
from cocolm_tf.finetuning.batches import (
    PREDICTION_BATCH,
    Tokens,
    parts_of,
    prediction_batches,
    without_padding,
)
from cocolm_tf.finetuning.best_epoch import BestEpoch
from cocolm_tf.finetuning.cards import prompt_facts
from cocolm_tf.finetuning.config import OptimizerConfig
from cocolm_tf.finetuning.encoder import load_encoder, row_length
from cocolm_tf.finetuning.jobs import Reporter, serve
from cocolm_tf.finetuning.metrics import evaluate, guesses, metrics_of, predicted
from cocolm_tf.finetuning.models.prompt_classifier import CocoLMPromptClassifier
from cocolm_tf.finetuning.optimization import build_optimizer
from cocolm_tf.finetuning.outcomes import DIVERGED, describe_run, save_model
from cocolm_tf.finetuning.prompt_config import PromptConfig
from cocolm_tf.finetuning.prompt_run import PromptRun
from cocolm_tf.finetuning.results import Scores
from cocolm_tf.training import config_file


def run_prompting(spec: dict[str, Any], folder: str, reporter: Reporter) -> dict[str, Any]:
    """Fine-tunes on a few examples, chooses the best step by as many, and measures on the dev set.

    Args:
        spec: A `PromptRun` as a dict.
        folder: Gets `preset/`, with the weights of the best step.
        reporter: Is told.

    Returns:
        What JSON can hold: `score`, on the few dev examples; `test`, the metrics on the task's
        whole dev sets, which were not looked at before; `baseline`, those of guesses, see
        `guesses`; `best_step`; `label_words`; and what `describe_run` says. Of a run whose outputs
        never were finite only `diverged`, true.

    Raises:
        UserError: If the data or the preset is not what it should be.

    Example:
    ```python
    run_prompting(dataclasses.asdict(run), "runs/sst2/split_0", Reporter())["test"]
    ```
    """
    started = time.monotonic()
    run = PromptRun(**spec)
    config = PromptConfig()
    config_file.override(config, run.config, "the run's configuration")
    data = read_glue(run.task, run.data_dir)
    train, dev = few_shot_split(data, run.shots, run.seed)
    classifier = build_prompt_classifier(run, config, data, train)
    words = [classifier.preprocessor.tokenizer.id_to_token(id) for id in classifier.label_word_ids]
    draws = config.draws if config.demonstrations else 1
    reporter.say(
        f"{data.name}: {run.template} with {', '.join(words)}; {len(train)} examples to learn from"
    )

    def tokens_of(examples: Examples) -> list[Tokens]:
        return [prompt_tokens(classifier, examples, draw) for draw in range(draws)]

    names = metrics_of(data)
    dev_tokens = tokens_of(dev)

    def scores_of(examples: Examples, tokens: Sequence[Tokens]) -> dict[str, float]:
        outputs = mean_outputs(classifier, tokens)
        if not np.isfinite(outputs).all():
            raise FloatingPointError
        return evaluate(names, examples.labels, predicted(outputs, data.bounds))

    def measure() -> tuple[Scores, float]:
        scores = scores_of(dev, dev_tokens)
        return {"few": scores}, scores[names[0]]

    optimizer = OptimizerConfig(
        learning_rate=run.learning_rate, warmup_fraction=0.0, weight_decay=config.weight_decay
    )
    classifier.compile(
        build_optimizer(optimizer, config.steps, classifier, classifier.backbone), metrics=[]
    )
    interval, looks = config.validation_interval, config.steps // config.validation_interval
    best = BestEpoch(measure, looks, interval, interval * config.batch_size, reporter)
    classifier.fit(
        prompt_batches(classifier, train, config.batch_size, run.seed),
        steps_per_epoch=interval,
        epochs=looks,
        callbacks=[best],
        shuffle=False,
        verbose=0,
    )
    if best.best is None:
        return DIVERGED
    best.restore()
    test = {part: scores_of(examples, tokens_of(examples)) for part, examples in data.dev.items()}
    first = next(iter(test.values()))
    results = {
        "headline": f"{names[0]} {best.best['score']:.4f} on the few dev examples, "
        f"{first[names[0]]:.4f} on the dev set",
        "task": data.name,
        "metric": names[0],
        "score": best.best["score"],
        "test": test,
        "baseline": {
            part: evaluate(names, examples.labels, guesses(data.train.labels, len(examples)))
            for part, examples in data.dev.items()
        },
        "best_step": best.best["epoch"] * interval,
        "looks": best.history,
        "label_words": words,
        "rows": {part: len(examples) for part, examples in data.dev.items()},
        **describe_run(classifier, best, started),
    }
    save_model(classifier, prompt_facts(run, data, results, classifier.backbone), folder)
    return results


def build_prompt_classifier(
    run: PromptRun, config: PromptConfig, data: TaskData, train: Examples
) -> CocoLMPromptClassifier:
    """Makes a prompt classifier of a pretrained model.

    Args:
        run: Whose preset, template and words it takes.
        config: Whose sizes it takes.
        data: The task.
        train: The examples that demonstrations are drawn from.

    Returns:
        The classifier.

    Raises:
        UserError: If the model has no language modeling head, or too few positions.

    Example:
    ```python
    build_prompt_classifier(run, config, data, train).predict(["It was fun."])
    ```
    """
    demonstrations = None
    if config.demonstrations:
        classes = classes_of(train, data)
        demonstrations = [
            _texts(train.select(np.flatnonzero(classes == number)))
            for number in range(len(run.words))
        ]
    with files.local_copy(run.preset) as preset:
        backbone = load_encoder(
            preset, seed=run.seed, dropout=config.dropout, precision=config.precision
        )
        return CocoLMPromptClassifier.from_preset(
            preset,
            template=run.template,
            label_words=run.words,
            demonstrations=demonstrations,
            sequence_length=row_length(config.sequence_length, backbone),
            seed=run.seed,
            backbone=backbone,
            label_names=data.label_names,
            bounds=data.bounds,
        )


def prompt_batches(
    classifier: CocoLMPromptClassifier, train: Examples, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Makes endless batches of prompts, with other demonstrations in every epoch.

    Args:
        classifier: Whose preprocessor fills the templates.
        train: The examples.
        batch_size: int.
        seed: int. Decides the order.

    Returns:
        Batches of what the classifier's `fit()` takes.

    Example:
    ```python
    classifier.fit(prompt_batches(classifier, train, 8, seed=0), steps_per_epoch=100)
    ```
    """
    texts = [tf.constant(column) for column in zip(*_texts(train), strict=True)]
    labels = tf.constant(train.labels)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        place = tf.stack([tf.constant(seed, tf.int64), number])
        order = tf.random.experimental.stateless_shuffle(tf.range(len(train)), place)

        def fill(rows: tf.Tensor) -> Any:
            x = tuple(tf.gather(column, rows) for column in texts)
            return classifier.preprocessor(x=x, y=tf.gather(labels, rows), draw=number)

        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size).map(fill)

    return tf.data.Dataset.counter().flat_map(epoch).prefetch(2)


def prompt_tokens(classifier: CocoLMPromptClassifier, examples: Examples, draw: int) -> Tokens:
    """Fills templates for prediction.

    Args:
        classifier: Whose preprocessor fills them.
        examples: The texts.
        draw: int. Which demonstrations.

    Returns:
        The prompts, without padding.

    Example:
    ```python
    prompt_tokens(classifier, Examples(["It was fun."]), draw=0)
    ```
    """
    preprocessor = classifier.preprocessor
    features = [
        preprocessor(x=tuple(list(column) for column in zip(*_texts(part), strict=True)), draw=draw)
        for part in parts_of(examples)
    ]
    return without_padding(features, preprocessor.sequence_length)


def mean_outputs(classifier: CocoLMPromptClassifier, tokens: Sequence[Tokens]) -> np.ndarray:
    """Predicts with several sets of demonstrations.

    Args:
        classifier: As it is.
        tokens: The same examples, with other demonstrations each.

    Returns:
        [N, classes], the mean of the outputs.

    Example:
    ```python
    mean_outputs(classifier, [prompt_tokens(classifier, examples, draw) for draw in range(16)])
    ```
    """
    total = np.zeros([len(tokens[0]), classifier.output_shape[-1]], np.float64)
    for one in tokens:
        batches, order = prediction_batches(one, PREDICTION_BATCH)
        total[order] += classifier.predict(batches, verbose=0)
    return total / len(tokens)


def _texts(examples: Examples) -> list[list[str]]:
    if examples.second is None:
        return [[text] for text in examples.first]
    return [[*pair] for pair in zip(examples.first, examples.second, strict=True)]


if __name__ == "__main__":
    serve(run_prompting)
