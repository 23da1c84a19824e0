"""What models that `fit()` on raw text have in common."""

from collections.abc import Sequence
from typing import Any

import keras
import keras_hub
import tensorflow as tf

from cocolm_tf.finetuning.padding import trimmed
from cocolm_tf.finetuning.raw_inputs import (
    Columns,
    as_model_input,
    check_dataset,
    check_weights,
    label_errors_told,
    text_columns,
)
from cocolm_tf.training.optimization import AdamW


def check_row_length(
    preprocessor: keras_hub.models.Preprocessor | None, backbone: keras_hub.models.Backbone
) -> None:
    """Makes sure that rows are no longer than a model can read.

    Args:
        preprocessor: Makes the rows; None where others do.
        backbone: The encoder.

    Raises:
        ValueError: If they are.

    Example:
    ```python
    check_row_length(preprocessor, backbone)
    ```
    """
    length = getattr(preprocessor, "sequence_length", 0)
    if length > backbone.max_sequence_length:
        raise ValueError(
            f"The preprocessor's sequence_length={length} is more than the backbone's "
            f"max_sequence_length={backbone.max_sequence_length}."
        )


def raw_text_task(base: type[keras_hub.models.Task]) -> type[keras_hub.models.Task]:
    """Derives a KerasHub task that preprocesses, traces and saves no more than it needs.

    Keras rewrites the bases of a functional model's class, which fails where one is a mixin: so
    this is a function.

    Args:
        base: A task of KerasHub.

    Returns:
        The class. One that derives from it sets `trim_padding`, whether padding that all rows of
        a batch have in common is cut off. TPUs and `jit_compile` want equal shapes: False.

    Example:
    ```python
    class Rater(raw_text_task(keras_hub.models.TextClassifier)):
        trim_padding = True
    ```
    """

    class RawTextTask(base):
        """The task, with what all of them have in common."""

        trim_padding: bool
        label_names: Sequence[str] | None = None

        def fit(
            self,
            x: Any = None,
            y: Any = None,
            batch_size: int | None = None,
            sample_weight: Any = None,
            validation_data: Any = None,
            **kwargs: Any,
        ) -> Any:
            """Fine-tunes the model, as KerasHub does.

            Args:
                x: Texts, see `text_columns`, or what else `keras.Model.fit` takes.
                y: Labels.
                batch_size: int. 32 where it is None.
                sample_weight: Weights of the labels.
                validation_data: `(x, y)` or `(x, y, sample_weight)`, or a dataset.
                **kwargs: As for `keras.Model.fit`.

            Returns:
                Keras's `History`.

            Raises:
                ValueError: Saying which text or label is wrong.
            """
            x, y = self.checked(x, y, sample_weight)
            if isinstance(validation_data, tuple | list):
                parts = keras.utils.unpack_x_y_sample_weight(tuple(validation_data))
                validation_data = (*self.checked(*parts), *parts[2:])
            elif validation_data is not None:
                self.checked(validation_data, None)
            with label_errors_told():
                return super().fit(
                    x,
                    y,
                    batch_size,
                    sample_weight=sample_weight,
                    validation_data=validation_data,
                    **kwargs,
                )

        def evaluate(
            self,
            x: Any = None,
            y: Any = None,
            batch_size: int | None = None,
            sample_weight: Any = None,
            **kwargs: Any,
        ) -> Any:
            """Computes the loss and the metrics, as KerasHub does.

            Args:
                x: As for `fit`.
                y: As for `fit`.
                batch_size: int. 32 where it is None.
                sample_weight: As for `fit`.
                **kwargs: As for `keras.Model.evaluate`.

            Returns:
                What `keras.Model.evaluate` returns.

            Raises:
                ValueError: Saying which text or label is wrong.
            """
            x, y = self.checked(x, y, sample_weight)
            with label_errors_told():
                return super().evaluate(x, y, batch_size, sample_weight=sample_weight, **kwargs)

        def predict(self, x: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
            """Computes the outputs, as KerasHub does.

            Args:
                x: As for `fit`.
                batch_size: int. 32 where it is None.
                **kwargs: As for `keras.Model.predict`.

            Returns:
                What `keras.Model.predict` returns.

            Raises:
                ValueError: Saying which text is wrong.
            """
            if isinstance(x, tf.data.Dataset):
                check_dataset(x, None, has_labels=False)
            elif columns := self._columns(x):
                if not columns[0]:
                    raise ValueError("there are no texts.")
                x = as_model_input(columns)
            return super().predict(x, batch_size, **kwargs)

        def checked(self, x: Any, y: Any, sample_weight: Any = None) -> tuple[Any, Any]:
            """Texts and labels as KerasHub takes them; what comes by itself stays as it is."""
            if isinstance(x, tf.data.Dataset):
                check_dataset(x, self.label_names, has_labels=True)
                return x, y
            columns = self._columns(x)
            if columns is None:
                return x, y
            check_weights(sample_weight, len(columns[0]))
            return as_model_input(columns), self.checked_labels(y, len(columns[0]))

        def checked_labels(self, y: Any, rows: int) -> Any:
            """Labels of texts as the loss takes them; a `ValueError` says what is wrong."""
            return y

        def labels_in_graph(self, y: Any) -> Any:
            """The same for the labels of a dataset's batch."""
            return y

        @property
        def _has_class_loss(self) -> bool:
            return self.loss == "sparse_categorical_crossentropy" or isinstance(
                self.loss, keras.losses.SparseCategoricalCrossentropy
            )

        def _columns(self, x: Any) -> Columns | None:
            return None if self.preprocessor is None or x is None else text_columns(x)

        def preprocess_samples(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
            """Turns a batch of raw texts into tokens. Tokens are left as they are.

            Args:
                x: As for the preprocessor, or a dict of `token_ids` and `padding_mask`.
                y: Labels.
                sample_weight: Their weights.

            Returns:
                What `fit()` takes of one batch.
            """
            if self.preprocessor is None or isinstance(x, dict):
                return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
            if isinstance(y, tf.Tensor):
                y = self.labels_in_graph(y)
            elif y is not None:
                y = self.checked_labels(y, len(y))
            samples = super().preprocess_samples(x, y, sample_weight)
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(samples)
            if self.trim_padding:
                x = trimmed(x)
            # Keras adds up the batches of several replicas to see their shapes, and booleans have
            # no sum.
            x["padding_mask"] = tf.cast(x["padding_mask"], tf.int32)
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

        def default_optimizer(self) -> AdamW:
            """AdamW with the released models' settings, and a learning rate of 2e-5."""
            optimizer = AdamW(2e-5, beta_2=0.98, epsilon=1e-6, weight_decay=0.01)
            optimizer.exclude_from_weight_decay(
                var_list=[v for v in self.trainable_variables if len(v.shape) < 2]
            )
            return optimizer

        def make_train_function(self, force: bool = False) -> Any:
            """The function that `fit()` calls for every step."""
            # Keras would build the optimizer while it traces the step, and then trace it again.
            if not self.optimizer.built:
                with self.distribute_strategy.scope():
                    self.optimizer.build(self.trainable_variables)
            return super().make_train_function(force)

        # AutoGraph finds nothing to convert in the model, but looks for a minute.
        @tf.autograph.experimental.do_not_convert
        def train_step(self, *args: Any, **kwargs: Any) -> Any:
            """One update, as Keras does it."""
            return super().train_step(*args, **kwargs)

        @tf.autograph.experimental.do_not_convert
        def test_step(self, *args: Any, **kwargs: Any) -> Any:
            """The loss and the metrics of a batch, as Keras computes them."""
            return super().test_step(*args, **kwargs)

        @tf.autograph.experimental.do_not_convert
        def predict_step(self, *args: Any, **kwargs: Any) -> Any:
            """The outputs for a batch, as Keras computes them."""
            return super().predict_step(*args, **kwargs)

        def save_task_weights(self, filepath: str) -> None:
            """Saves the head alone.

            Args:
                filepath: It ends in `.weights.h5`.
            """
            keras.saving.save_weights(self, filepath, objects_to_skip=self._not_in_the_head())

        def load_task_weights(self, filepath: str) -> None:
            """Loads what `save_task_weights` wrote.

            Args:
                filepath: It ends in `.weights.h5`.
            """
            keras.saving.load_weights(self, filepath, objects_to_skip=self._not_in_the_head())

        def _not_in_the_head(self) -> list[Any]:
            # KerasHub skips the encoder only, and so saves the optimizer's moments of all weights.
            return [*self.backbone._flatten_layers(), self.optimizer]

    return RawTextTask
