"""Classification and regression by prompts, from a few examples (paper, section 5.3)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.data.examples import Examples, TaskData, classes_of, few_shot_split
from cocolm_tf.data.glue import GLUE_TASKS
from cocolm_tf.errors import UserError
from cocolm_tf.finetuning.batches import PREDICTION_BATCH, trimmed
from cocolm_tf.finetuning.config import FinetuningConfig
from cocolm_tf.finetuning.metrics import evaluate, guesses, predicted
from cocolm_tf.finetuning.models.prompt_classifier import CocoLMPromptClassifier
from cocolm_tf.finetuning.models.prompts import Template
from cocolm_tf.finetuning.predictions import probabilities, save_predictions
from cocolm_tf.finetuning.tasks.classification import (
    TextTask,
    card_of_texts,
    classes_line,
    describe_data,
    smoothed_loss,
)
from cocolm_tf.finetuning.tasks.task import Prepared, Scores, finite, load_encoder
from cocolm_tf.training import config_file

# The classes of a regression: its lowest and its highest number.
REGRESSION_LABELS = ("low", "high")

# The name of the part by which the best measurement is chosen.
_FEW = "few"


Prompt = dict[str, Any]
"""The `template` of a task, as for `CocoLMPromptClassifierPreprocessor`; and its `words`, for each
class those that its label word is taken from."""


def load_prompt(path: str, task: str, classes: Sequence[str], num_texts: int) -> Prompt:
    """Reads the prompt of a task from `prompts` in a YAML file; `UserError` if it does not fit."""
    values = config_file.parse_file(path)
    prompts = values.get("prompts") if isinstance(values, dict) else None
    if not isinstance(prompts, dict) or task not in prompts:
        raise UserError(f"{path}: prompts has no {task}, so there is no prompt for it.")
    prompt, name = prompts[task], f"{path}: prompts.{task}"
    if not isinstance(prompt, dict) or set(prompt) != {"template", "words"}:
        raise UserError(f"{name} has a `template` and `words`.")
    words = prompt["words"]
    if not isinstance(words, dict) or set(map(str, words)) != set(classes):
        raise UserError(f"{name}.words has the words of {', '.join(classes)}.")
    words = {str(label): choices for label, choices in words.items()}
    listed = [
        [words[label]] if isinstance(words[label], str) else words[label] for label in classes
    ]
    for label, choices in zip(classes, listed, strict=True):
        if not isinstance(choices, list) or not all(isinstance(word, str) for word in choices):
            raise UserError(
                f"{name}.words.{label} is a word or a list of words, not {choices!r}: quote "
                "what YAML takes for something else, as yes and no."
            )
    return checked_prompt(str(prompt["template"]), listed, num_texts, f"{name}.template")


def prompt_of_glue(path: str, task: str) -> Prompt:
    """Reads the prompt of a task of GLUE from a YAML file."""
    known = GLUE_TASKS[task]
    return load_prompt(path, task, known.label_names or REGRESSION_LABELS, len(known.texts))


def prompt_of_table(template: str, words: Sequence[str], data: TaskData) -> Prompt:
    """The prompt of a table that flags define: `words` are `CLASS=WORD|WORD`, one of each class."""
    classes = data.label_names or REGRESSION_LABELS
    given = {}
    for flag in words:
        name, _, choices = flag.rpartition("=")
        if name not in classes or not choices:
            raise UserError(
                f"--label_word={flag}: give CLASS=WORD or CLASS=WORD|WORD, where the class is one "
                f"of {', '.join(classes[:20])}."
            )
        given[name] = choices.split("|")
    if missing := [name for name in classes if name not in given]:
        raise UserError(f"--label_word={missing[0]}=... is missing: every class has a word.")
    listed = [given[name] for name in classes]
    return checked_prompt(template, listed, 1 + (data.train.second is not None), "--template")


def checked_prompt(
    template: str, words: Sequence[Sequence[str]], num_texts: int, name: str
) -> Prompt:
    """The prompt, after checking that its template has as many texts as the task."""
    found = Template(template)
    if found.num_texts != num_texts:
        raise UserError(f"{name} has {found.num_texts} text(s), the task {num_texts}.")
    return {"template": found.source, "words": words}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptingTask(TextTask):
    """A run of a prompt classifier, on a few examples.

    The examples to learn from and those to choose the best measurement by are drawn from the
    training set; the run's `test` scores are those of the whole dev sets.

    Args:
        data: As for `ClassificationTask`.
        template: As for `CocoLMPromptClassifierPreprocessor`.
        words: For each class the words that its label word is taken from, the first that is one
            token; of a regression for the lowest and the highest number.
        shots: How many examples of each class to learn from, and as many to choose by; the seed
            decides which.
        **kwargs: As for `Task`.

    Example:
    ```python
    PromptingTask(
        preset="runs/first/preset",
        config=config.as_dict(),
        data={"glue": {"task": "sst2"}},
        template="{first} It was {mask} .",
        words=[["terrible"], ["great"]],
    )
    ```
    """

    family: ClassVar[str] = "prompting"
    shared_results: ClassVar[tuple[str, ...]] = ("label_words",)

    template: str
    words: Sequence[Sequence[str]]
    shots: int = 16

    @property
    def has_leaderboard(self) -> bool:
        # A leaderboard's entries learn from all examples.
        return False

    def read(self) -> TaskData:
        # A regression's bounds are those of its training labels.
        data = super().read()
        if data.label_names is not None or data.bounds:
            return data
        labels = data.train.labels
        return dataclasses.replace(data, bounds=(float(labels.min()), float(labels.max())))

    def check(self) -> str:
        data = self.read()
        self.metrics_of(data)
        classes, texts = data.label_names or REGRESSION_LABELS, 1 + (data.train.second is not None)
        checked_prompt(self.template, self.words, texts, "the template")
        if len(self.words) != len(classes):
            raise UserError(f"label words are those of {', '.join(classes)}.")
        few_shot_split(data, self.shots, self.seed)
        return data.name

    def facts_of_experiment(self) -> dict[str, Any]:
        return {"shots": self.shots, "template": self.template}

    def prepare(self, config: FinetuningConfig) -> "PreparedPrompting":
        return PreparedPrompting(self, config)


class PreparedPrompting(Prepared):
    """A prompt classifier that is ready to train."""

    task: PromptingTask

    def __init__(self, task: PromptingTask, config: FinetuningConfig) -> None:
        super().__init__(task, config)
        self._data = data = task.read()
        self._metrics = task.metrics_of(data)
        self._train, self._few = few_shot_split(data, task.shots, task.seed)
        self.model = build_prompt_classifier(task, config, data, self._train)
        tokenizer = self.model.preprocessor.tokenizer
        self._words = [tokenizer.id_to_token(id) for id in self.model.label_word_ids]
        self.name, self.metric = data.name, self._metrics[0]
        drawn = dataclasses.replace(data, dev={_FEW: self._few, **data.dev}, test={})
        self.report = describe_data(drawn, self._train, {})
        self.summary = (
            f"{data.name}: {task.template} with {', '.join(self._words)}; {len(self._train)} "
            "examples to learn from"
        )

    def training(self) -> tuple[tf.data.Dataset, int, int]:
        size = self.config.trainer.batch_size
        batches = prompt_batches(self.model, self._train, size, self.task.seed)
        return batches, -(-len(self._train) // size), len(self._train)

    def compile_arguments(self) -> dict[str, Any]:
        return smoothed_loss(self.config.trainer.label_smoothing, self._data)

    def measure(self) -> Scores:
        outputs = self._outputs(self._few)
        return {_FEW: evaluate(self._metrics, self._few.labels, predicted(outputs))}

    def artifacts(self, folder: str) -> dict[str, Any]:
        # The whole dev sets are measured here alone: nothing was chosen by them.
        data, test, baseline = dataclasses.replace(self._data, test={}), {}, {}
        outputs = {part: self._outputs(examples) for part, examples in data.dev.items()}
        for part, examples in data.dev.items():
            guessed = guesses(data.train.labels, len(examples))
            test[part] = evaluate(self._metrics, examples.labels, predicted(outputs[part]))
            baseline[part] = evaluate(self._metrics, examples.labels, guessed)
        shares = {part: probabilities(of_part) for part, of_part in outputs.items()}
        first = next(iter(test.values()))[self.metric]
        return {
            "headline": f"{self.metric} {first:.4f} on the dev set",
            "test": test,
            "assessment": save_predictions(folder, shares, data),
            "baseline": baseline,
            "label_words": self._words,
        }

    def card(self, results: Mapping[str, Any]) -> dict[str, Any]:
        task, data = self.task, self._data
        return card_of_texts(task, data, results["baseline"]) | {
            "name": f"COCO-LM prompted for {data.name}",
            "description": "A COCO-LM language model, fine-tuned by prompts on a few examples of "
            f"{data.name} from {task.preset}. {classes_line(data)}",
            "head": "the language modeling head at the mask",
            "training_data": f"{task.shots} examples of each class of {data.train.source}, in the "
            f"prompt `{task.template}` with the words {', '.join(results['label_words'])}.",
            "speed": f"{results['examples_per_second']:.1f} examples a second; the best step on "
            f"{task.shots} further examples of each class is {results['best_step']}.",
            "results": self.card_results(results["test"]),
        }

    def _outputs(self, examples: Examples) -> np.ndarray:
        """The model's outputs for texts, averaged over demonstrations as `predict()` does."""
        texts = tuple(filter(None, (examples.first, examples.second)))
        return finite(self.model.predict(texts, batch_size=PREDICTION_BATCH, verbose=0))


def build_prompt_classifier(
    task: PromptingTask, config: FinetuningConfig, data: TaskData, train: Examples
) -> CocoLMPromptClassifier:
    """Builds a prompt classifier on a task's preset, with demonstrations among the examples."""
    demonstrations = None
    if config.prompt.demonstrations != "none":
        classes = classes_of(train, data)
        demonstrations = [
            _texts(train.select(np.flatnonzero(classes == number)))
            for number in range(len(task.words))
        ]
    with files.local_copy(task.preset) as preset:
        backbone, length = load_encoder(task, config, preset)
        return CocoLMPromptClassifier.from_preset(
            preset,
            template=task.template,
            label_words=task.words,
            demonstrations=demonstrations,
            sequence_length=length,
            seed=task.seed,
            backbone=backbone,
            label_names=data.label_names,
            bounds=data.bounds,
            draws=config.prompt.draws,
            similar=config.prompt.demonstrations == "similar",
        )


def prompt_batches(
    classifier: CocoLMPromptClassifier, train: Examples, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Endless batches of prompts, with other demonstrations in every epoch."""
    # Which demonstrations are similar to a text is decided by the encoder before it is fine-tuned.
    texts = [tf.constant(column) for column in zip(*_texts(train), strict=True)]
    labels = tf.constant(train.labels)
    candidates = classifier.candidates(tuple(zip(*_texts(train), strict=True)))
    candidates = candidates and list(map(tf.constant, candidates))
    count, steps = len(train), -(-len(train) // batch_size)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        place = tf.stack([tf.constant(seed, tf.int64), number])
        order = tf.random.experimental.stateless_shuffle(tf.range(count), place)
        # Rows of weight 0 fill the last batch.
        order = tf.concat([order, tf.fill([steps * batch_size - count], order[-1])], axis=0)
        weights = tf.cast(tf.range(steps * batch_size) < count, tf.float32)

        def fill(rows: tf.Tensor, weights: tf.Tensor) -> Any:
            x = tuple(tf.gather(column, rows) for column in texts)
            own = candidates and [tf.gather(one, rows) for one in candidates]
            features, y = classifier.preprocessor(
                x=x, y=tf.gather(labels, rows), draw=number, candidates=own
            )
            features = trimmed(
                {name: tf.ensure_shape(x, [batch_size, None]) for name, x in features.items()}
            )
            # Keras adds up the batches of several replicas, and booleans have no sum.
            features["padding_mask"] = tf.cast(features["padding_mask"], tf.int32)
            return features, y, weights

        rows = tf.data.Dataset.from_tensor_slices((order, weights))
        return rows.batch(batch_size, drop_remainder=True).map(fill)

    return tf.data.Dataset.counter().flat_map(epoch).prefetch(2)


def _texts(examples: Examples) -> list[list[str]]:
    if examples.second is None:
        return [[text] for text in examples.first]
    return [[*pair] for pair in zip(examples.first, examples.second, strict=True)]
