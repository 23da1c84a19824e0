"""What models whose `fit()` takes raw text, and their preprocessors, have in common."""

import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, Self

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from keras_hub.src.utils.tensor_utils import preprocessing_function

from cocolm_tf.finetuning.batches import (
    TOKENIZED_AT_ONCE,
    Column,
    Tokens,
    predict_rows,
    prediction_batches,
    training_batches,
    trimmed,
    without_padding,
)
from cocolm_tf.finetuning.models.raw_inputs import (
    Columns,
    Labels,
    as_model_input,
    check_dataset,
    check_weights,
    explain_label_errors,
    text_columns,
)
from cocolm_tf.finetuning.models.steps import task_with_steps
from cocolm_tf.finetuning.presets import local_preset
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.normalization import as_string_tensor
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer
from cocolm_tf.training.optimization import AdamW

# Rows of a batch where `batch_size` is None.
BATCH_SIZE = 32


class TextPreprocessor:
    """A mixin of KerasHub's preprocessors: texts to rows of `sequence_length` tokens."""

    backbone_cls = CocoLMBackbone
    tokenizer_cls = CocoLMTokenizer
    # The most tokens of a row where a preset does not say it; None for all the model's positions.
    usual_length: int | None = None
    # Attributes that are arguments, and saved.
    saved: tuple[str, ...] = ()

    def build(self, input_shape: Any) -> None:
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """The arguments that rebuild this layer."""
        return {**super().get_config(), **{name: getattr(self, name) for name in self.saved}}

    @classmethod
    def _add_missing_kwargs(cls, loader: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        # KerasHub calls this where the preset, as one that was only pretrained, has a tokenizer
        # but no preprocessor.
        lengths = (loader.config["config"].get("max_sequence_length"), cls.usual_length)
        if any(lengths):
            kwargs.setdefault("sequence_length", min(filter(None, lengths)))
        return super()._add_missing_kwargs(loader, kwargs)


class PackingPreprocessor(TextPreprocessor):
    """A mixin that lays out each text, or pair of texts, as one row."""

    max_columns = 2

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        return self._pack(string_tensors(x), y, sample_weight)

    @preprocessing_function
    def _pack(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        texts = columns_of(x)
        if len(texts) > self.max_columns:
            row = "a text" if self.max_columns == 1 else "a text or a pair of texts"
            raise ValueError(f"a row is {row}, not {len(texts)} texts.")
        features = self.tokenizer.pack(
            *map(self.tokenizer, texts), sequence_length=self.sequence_length
        )
        return keras.utils.pack_x_y_sample_weight(features, y, sample_weight)


def string_tensors(x: Any) -> Any:
    """Texts, or a tuple of columns of texts, as string tensors."""
    return tuple(map(as_string_tensor, x)) if isinstance(x, tuple) else as_string_tensor(x)


def columns_of(x: Any) -> tuple[tf.Tensor, ...]:
    """The columns of `string_tensors`: first and, of pairs, second texts."""
    if isinstance(x, tf.Tensor) and x.shape.rank == 2:
        return tuple(tf.unstack(x, axis=1))
    return x if isinstance(x, tuple) else (x,)


def check_row_length(
    preprocessor: keras_hub.models.Preprocessor | None, backbone: keras_hub.models.Backbone
) -> None:
    """Raises `ValueError` if a preprocessor's rows are longer than a model can read."""
    length = getattr(preprocessor, "sequence_length", 0)
    if length > backbone.max_sequence_length:
        raise ValueError(
            f"The preprocessor's sequence_length={length} is more than the backbone's "
            f"max_sequence_length={backbone.max_sequence_length}."
        )


def initializer(backbone: CocoLMBackbone) -> keras.initializers.Initializer:
    """How the weights of a head begin: as the encoder's did."""
    return keras.initializers.RandomNormal(stddev=backbone.initializer_range)


def output_layer(
    backbone: CocoLMBackbone, units: int, name: str, activation: Any = None
) -> keras.layers.Dense:
    """The last layer of a head."""
    # In float32: half precision would round the scores that decide.
    return keras.layers.Dense(
        units,
        activation=activation,
        kernel_initializer=initializer(backbone),
        dtype="float32",
        name=name,
    )


def raw_text_task(base: type[keras_hub.models.Task]) -> type[keras_hub.models.Task]:
    """Derives a KerasHub task that preprocesses, traces and saves no more than it needs."""
    # Texts that are given as a whole are tokenized once, and make batches of few widths; what comes
    # as a dataset or as tokens goes KerasHub's way.
    # A class that derives from it says what is its own: the head, the defaults of `compile`, its
    # `labels`, and, where a text is not one row, `texts_of`, `checked_labels` and `labeled_tokens`.

    class RawTextTask(task_with_steps(base)):
        """The base of the exported Keras classes, which have its public methods."""

        backbone_cls = CocoLMBackbone
        # Whether padding that all rows of a batch have in common is cut off; otherwise all batches
        # are as wide as the preprocessor's rows.
        trim_padding = True
        label_names: Sequence[str] | None = None
        # Attributes that are arguments, and saved.
        saved: tuple[str, ...] = ()
        labels: Labels | None = None
        needs_labels = True
        # What columns of texts are called, and how many there may be.
        column_names: Sequence[str] = ("first texts", "second texts")
        max_columns = 2
        # Whether a text is one row, so that Keras can make the batches.
        keras_can_batch = True

        @classmethod
        def from_preset(
            cls, preset: str | os.PathLike[str], load_weights: bool = True, **kwargs: Any
        ) -> Self:
            """Loads a fine-tuned model, or puts a new head on a pretrained encoder.

            Args:
                preset: A folder, or a handle as KerasHub takes them (`kaggle://`, `hf://`,
                    `gs://`).
                load_weights: Whether to load the preset's weights; otherwise they are random.
                **kwargs: Arguments of the class, which replace the preset's. What decides the
                    shape of the head (`num_classes`, a token classifier's `label_names`) makes a
                    new head, also where the preset has one.

            Returns:
                The model, compiled with the defaults of `compile`.

            Example:
            ```python
            CocoLMTextClassifier.from_preset("runs/first/preset", num_classes=3)
            CocoLMTokenClassifier.from_preset("runs/first/preset", label_names=["LOC", "PER"])
            CocoLMQuestionAnswerer.from_preset("runs/answers", max_answer_length=15)
            ```
            """
            with local_preset(preset) as local:
                return cls._load(local, load_weights, **kwargs)

        @classmethod
        def _load(cls, preset: str, load_weights: bool, **kwargs: Any) -> Self:
            return super().from_preset(preset, load_weights, **kwargs)

        def get_config(self) -> dict[str, Any]:
            """The arguments that rebuild this model."""
            return {**super().get_config(), **{name: getattr(self, name) for name in self.saved}}

        def compile(
            self,
            optimizer: Any = "auto",
            loss: Any = "auto",
            *,
            metrics: Any = "auto",
            jit_compile: bool | None = None,
            micro_batches: int = 1,
            **kwargs: Any,
        ) -> None:
            """Configures the model for `fit()`.

            Args:
                optimizer: `"auto"` for AdamW with the released models' settings and a learning
                    rate of 2e-5, or what Keras takes.
                loss: `"auto"` for the loss that the class names, or what Keras takes.
                metrics: `"auto"` for the accuracy where labels are classes, or what Keras takes.
                jit_compile: Whether XLA compiles the whole step; None to decide by the devices: on
                    GPUs it does, on CPUs it compiles only the parts that gain by it.
                micro_batches: Into how many parts each batch is cut, whose gradients are added: the
                    memory of a small batch, the gradients of a large one.
                **kwargs: As for `keras.Model.compile`; `weighted_metrics` and `loss_weights` may be
                    `"auto"`, too.

            Raises:
                ValueError: If `micro_batches` is less than 1.

            Example:
            ```python
            classifier.compile(keras.optimizers.Adam(1e-5), micro_batches=4)
            ```
            """
            if optimizer == "auto":
                optimizer = self.default_optimizer()
            given = {"loss": loss, "metrics": metrics, **kwargs}
            names = ("loss", "metrics", "weighted_metrics", "loss_weights")
            missing = [name for name in names if _is_auto(given.get(name, "auto"))]
            defaults = self.default_losses() if missing else {}
            super().compile(
                optimizer=optimizer,
                jit_compile=jit_compile,
                micro_batches=micro_batches,
                **given | {name: defaults.get(name) for name in missing},
            )

        def default_losses(self) -> dict[str, Any]:
            """What `compile` takes for its losses and metrics that are `"auto"`; else None."""
            return {}

        def default_optimizer(self) -> AdamW:
            """AdamW with the released models' settings, and a learning rate of 2e-5."""
            optimizer = AdamW(2e-5, beta_2=0.98, epsilon=1e-6, weight_decay=0.01)
            optimizer.exclude_from_weight_decay(
                var_list=[v for v in self.trainable_variables if len(v.shape) < 2]
            )
            return optimizer

        def fit(
            self,
            x: Any = None,
            y: Any = None,
            batch_size: int | None = None,
            *,
            sample_weight: Any = None,
            class_weight: Mapping[int, float] | None = None,
            validation_split: float = 0.0,
            validation_data: Any = None,
            shuffle: bool = True,
            **kwargs: Any,
        ) -> Any:
            """Fine-tunes the model.

            Texts are tokenized once and shuffled in every epoch, and those of like lengths share a
            batch. Where `shuffle` is off or there is a `validation_split`, Keras makes the batches;
            those of a `tf.data.Dataset` are left as they are. Where a text may be
            several rows, as a long context, neither is taken.

            Args:
                x: All texts, in the forms of the preprocessor: lists, arrays or columns of strings,
                    a tuple of two of these or a [N, 2] array for pairs; or a `tf.data.Dataset` of
                    batches of `(x, y)`. The class says what else it takes.
                y: The labels, as the class has them: [N], the numbers of the classes, or their
                    names where there are `label_names`; the numbers of a regression.
                batch_size: Rows of a batch, or windows where texts are read in several; None for
                    32.
                sample_weight: [N], weights of the labels; a row of weight 0 is ignored.
                class_weight: The weight of each class, by its number.
                validation_split: As for `keras.Model.fit`.
                validation_data: `(x, y)` or `(x, y, sample_weight)`, or a dataset.
                shuffle: Whether every epoch has another order.
                **kwargs: As for `keras.Model.fit`.

            Returns:
                Keras's `History`.

            Raises:
                ValueError: Naming the first text or label that is wrong.

            Example:
            ```python
            classifier.fit(["It was great.", "It was not."], [1, 0], batch_size=2, epochs=3)
            ```
            """
            if isinstance(validation_data, tuple | list):
                parts = keras.utils.unpack_x_y_sample_weight(tuple(validation_data))
                if (texts := self.texts_of(parts[0])) is not None:
                    validation_data = self._evaluation_batches(texts, *parts[1:], batch_size)
            else:
                self._check_dataset(validation_data, self.needs_labels)
            self._check_dataset(x, self.needs_labels)
            kwargs["validation_split"] = validation_split
            texts = self.texts_of(x)
            if texts is not None:
                labels, weights = self.checked_labels(texts, y, sample_weight)
            if texts is not None and not self.keras_can_batch and (validation_split or not shuffle):
                raise ValueError(
                    f"{type(self).__name__} takes neither shuffle=False nor a validation_split: "
                    "give a tf.data.Dataset in an order of your own, or validation_data."
                )
            if texts is None or validation_split or not shuffle:
                if texts is not None:
                    x, y = as_model_input(texts), labels
                kwargs |= {"sample_weight": sample_weight, "class_weight": class_weight}
                kwargs["shuffle"] = shuffle
            else:
                if class_weight:
                    if labels is None or self.labels is None or self.labels.several:
                        raise ValueError("class_weight is for texts that have one class each.")
                    factors = [class_weight.get(int(label), 1.0) for label in labels]
                    weights = np.float32(factors) * (1 if weights is None else weights)
                # Python's generator also seeds the weights.
                size, seed = self._batch_size(batch_size), random.randrange(2**31)
                x, steps = self.text_batches(texts, labels, weights, size, seed)
                y = batch_size = None
                kwargs = {"steps_per_epoch": steps, **kwargs, "shuffle": False}
            with explain_label_errors():
                return super().fit(x, y, batch_size, validation_data=validation_data, **kwargs)

        def evaluate(
            self,
            x: Any = None,
            y: Any = None,
            batch_size: int | None = None,
            sample_weight: Any = None,
            **kwargs: Any,
        ) -> Any:
            """Computes the loss and the metrics.

            Args:
                x: As for `fit`.
                y: As for `fit`.
                batch_size: Rows of a batch; None for 32.
                sample_weight: As for `fit`.
                **kwargs: As for `keras.Model.evaluate`.

            Returns:
                What `keras.Model.evaluate` returns.

            Raises:
                ValueError: Naming the first text or label that is wrong.

            Example:
            ```python
            classifier.evaluate(["It was great."], [1], return_dict=True)
            ```
            """
            self._check_dataset(x, self.needs_labels)
            if (texts := self.texts_of(x)) is not None:
                x = self._evaluation_batches(texts, y, sample_weight, batch_size)
                y = sample_weight = batch_size = None
            with explain_label_errors():
                return super().evaluate(x, y, batch_size, sample_weight=sample_weight, **kwargs)

        def predict(self, x: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
            """Computes the model's outputs.

            Args:
                x: As for `fit`.
                batch_size: Rows of a batch; None for 32.
                **kwargs: As for `keras.Model.predict`.

            Returns:
                What `keras.Model.predict` returns, in the order of `x`.

            Raises:
                ValueError: Naming the first text that is wrong.

            Example:
            ```python
            classifier.predict(["It was great."])
            ```
            """
            # Texts are read in the order of their lengths.
            self._check_dataset(x, has_labels=False)
            texts = self.texts_of(x)
            if texts is None:
                return super().predict(x, batch_size, **kwargs)
            if not texts[0]:
                raise ValueError("there are no texts.")
            size, verbose = batch_size or BATCH_SIZE, kwargs.pop("verbose", "auto")
            tokens = self.tokens_of(texts)
            return predict_rows(self, tokens, size, self._buckets, verbose=verbose, **kwargs)

        # What classes replace whose texts are not single rows, or not labeled by `labels`.

        def texts_of(self, x: Any) -> Any:
            """The checked texts of `x`; None where it is tokens or a dataset."""
            if self.preprocessor is None or x is None or isinstance(x, tf.data.Dataset):
                return None
            return text_columns(x, self.column_names, self.max_columns)

        def checked_labels(self, texts: Columns, y: Any, weights: Any) -> tuple[Any, Any]:
            """The labels of texts as the loss takes them, and their weights or None."""
            rows = len(texts[0])
            check_weights(weights, rows)
            weights = None if weights is None else np.asarray(weights, np.float32)
            return self.labels.checked(y, rows, self._has_class_loss), weights

        def labeled_tokens(
            self, texts: Columns, labels: Any, weights: Any
        ) -> tuple[Tokens, np.ndarray, np.ndarray]:
            """Texts as rows of tokens, with the labels and weights of rows or of tokens."""
            if weights is None:
                weights = np.ones(len(labels), np.float32)
            return self.tokens_of(texts), np.asarray(labels), weights

        def text_batches(
            self, texts: Any, labels: Any, weights: Any, batch_size: int, seed: int | None
        ) -> tuple[tf.data.Dataset, int]:
            """Batches of texts with labels and weights, and how many of them an epoch has."""
            # Endless and shuffled by the seed; without one the shortest first, once.
            tokens, labels, weights = self.labeled_tokens(texts, labels, weights)
            if seed is not None:
                return training_batches(tokens, labels, batch_size, seed, self._buckets, weights)
            batches, _ = prediction_batches(
                tokens,
                batch_size,
                self._buckets,
                {"labels": Column(labels), "weights": Column(weights)},
            )

            def labeled(x: Any, row: dict[str, tf.Tensor]) -> tuple[Any, tf.Tensor, tf.Tensor]:
                real = row["real"] if weights.shape == (len(tokens),) else row["real"][:, None]
                return x, row["labels"], row["weights"] * real

            return batches.map(labeled), len(batches)

        def _evaluation_batches(
            self, texts: Any, y: Any, weights: Any, batch_size: int | None
        ) -> tf.data.Dataset:
            labels, weights = self.checked_labels(texts, y, weights)
            return self.text_batches(texts, labels, weights, batch_size or BATCH_SIZE, None)[0]

        # How texts become batches.

        def tokens_of(self, texts: Columns, **options: Any) -> Tokens:
            """Columns of texts as rows of tokens, without padding; `options` for `_tokenized`."""
            rows, at_once = len(texts[0]), TOKENIZED_AT_ONCE
            features = [
                self._tokenized(texts, slice(start, start + at_once), **options)
                for start in range(0, rows, at_once)
            ]
            return without_padding(features, self.preprocessor.sequence_length)

        def _tokenized(self, texts: Columns, rows: slice) -> dict[str, tf.Tensor]:
            return self.preprocessor(x=tuple(column[rows] for column in texts))

        @property
        def _buckets(self) -> int:
            return 8 if self.trim_padding else 0

        @property
        def _has_class_loss(self) -> bool:
            return self.loss == "sparse_categorical_crossentropy" or isinstance(
                self.loss, keras.losses.SparseCategoricalCrossentropy
            )

        def _check_dataset(self, x: Any, has_labels: bool) -> None:
            if isinstance(x, tf.data.Dataset):
                check_dataset(x, self.label_names, has_labels)

        def _batch_size(self, wanted: int | None) -> int:
            """The size of a batch, after checking that replicas and micro-batches divide it."""
            size, replicas = wanted or BATCH_SIZE, self.distribute_strategy.num_replicas_in_sync
            if size % (replicas * self._micro_batches):
                raise ValueError(
                    f"batch_size={size} does not divide into {replicas} replicas of "
                    f"{self._micro_batches} micro-batches: make it a multiple of "
                    f"{replicas * self._micro_batches}."
                )
            return size

        def preprocess_samples(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
            """Tokenizes a batch of raw texts; tokens are left as they are."""
            if self.preprocessor is None or isinstance(x, dict):
                return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
            if y is not None and self.labels is not None:
                if isinstance(y, tf.Tensor):
                    y = self.labels.in_graph(y, self._has_class_loss)
                else:
                    y = self.labels.checked(y, len(y), self._has_class_loss)
            samples = super().preprocess_samples(x, y, sample_weight)
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(samples)
            if self.trim_padding:
                x = trimmed(x)
            # Keras adds up the batches of several replicas to see their shapes, and booleans have
            # no sum.
            x["padding_mask"] = tf.cast(x["padding_mask"], tf.int32)
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

        def save_task_weights(self, filepath: str) -> None:
            """Saves the weights of the head alone.

            Args:
                filepath: It ends in `.weights.h5`.

            Example:
            ```python
            classifier.save_task_weights("head.weights.h5")
            ```
            """
            keras.saving.save_weights(self, filepath, objects_to_skip=self._not_in_the_head())

        def load_task_weights(self, filepath: str) -> None:
            """Loads the weights that `save_task_weights` saved.

            Args:
                filepath: It ends in `.weights.h5`.

            Example:
            ```python
            classifier.load_task_weights("head.weights.h5")
            ```
            """
            keras.saving.load_weights(self, filepath, objects_to_skip=self._not_in_the_head())

        def _not_in_the_head(self) -> list[Any]:
            # KerasHub skips the encoder only, and would save the optimizer's moments, too.
            return [*self.backbone._flatten_layers(), self.optimizer]

    return RawTextTask


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"
