"""A pretrained encoder that answers questions with parts of a text."""

import os
import random
from collections.abc import Sequence
from typing import Any, Self

import keras
import keras_hub
import tensorflow as tf

from cocolm_tf.finetuning.models.answers import collect_answers
from cocolm_tf.finetuning.models.raw_text import (
    BATCH_SIZE,
    answer_spans,
    check_row_length,
    raw_text_task,
    text_columns,
)
from cocolm_tf.finetuning.models.spans import Spans, best_spans
from cocolm_tf.finetuning.models.window_rows import (
    WindowRows,
    learning_batches,
    reading_batches,
    window_rows,
)
from cocolm_tf.finetuning.models.windows import (
    NUM_SPECIAL_TOKENS,
    Windows,
    check_window_sizes,
    make_windows,
)
from cocolm_tf.finetuning.presets import converted_head, local_preset
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.normalization import as_string_tensor
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

# The released models' settings.
SEQUENCE_LENGTH = 384
STRIDE = 128
MAX_QUESTION_LENGTH = 64
MAX_ANSWER_LENGTH = 30
N_BEST = 20

# The logit of padding, whose probability is 0 in half precision, too.
_NEVER = -1e4


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMQuestionAnswererPreprocessor(keras_hub.models.Preprocessor):
    """Tokenizes questions and contexts, and cuts long contexts into overlapping windows.

    A batch of B questions becomes W >= B rows `<s> question </s> </s> context </s>`.

    Args:
        tokenizer: Turns texts into tokens.
        sequence_length: S, the tokens of every row. `from_preset` takes 384, or as many as the
            model has positions where these are fewer.
        stride: Tokens of the context from one window's beginning to the next one's; None for
            128, or half of the room beside the longest question where that is less.
        max_question_length: Tokens at which longer questions are cut off. None for 64, or a
            quarter of a row where that is less.
        **kwargs: As for `keras.layers.Layer`.

    Call arguments:
        x: A tuple of two batches of strings: questions and contexts. Without `y` give it by its
            name, as KerasHub takes an unnamed tuple for `(x, y)`.
        y: [B, 2] int, the characters [start, end) of the contexts that answer the questions; an
            empty range where there is no answer. None where they are not known.
        sample_weight: Must be None: some of a question's windows may not hold its answer.

    Returns:
        A dict of `token_ids` [W, S] int32 and `padding_mask` [W, S] bool; in a tuple with a dict
        of `start` and `end`, [W] int32, the tokens that the answers begin and end with, where `y`
        is given.

    Raises:
        ValueError: If the lengths do not fit each other, or there are sample weights.

    Example:
    ```python
    preprocessor = CocoLMQuestionAnswererPreprocessor.from_preset("runs/first/preset")
    preprocessor(x=(["Who sat?"], ["The cat sat."]))
    features, labels = preprocessor((["Who sat?"], ["The cat sat."]), [[0, 7]])
    preprocessor.windows(["Who sat?"], ["The cat sat."]).starts
    ```
    """

    backbone_cls = CocoLMBackbone
    tokenizer_cls = CocoLMTokenizer

    def __init__(
        self,
        tokenizer: CocoLMTokenizer,
        sequence_length: int = SEQUENCE_LENGTH,
        stride: int | None = None,
        max_question_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.max_question_length = max_question_length or min(
            MAX_QUESTION_LENGTH, sequence_length // 4
        )
        self.stride = stride or max(1, min(STRIDE, self.room // 2))
        if self.room < self.stride:
            raise ValueError(
                f"sequence_length={sequence_length} leaves {self.room} tokens for the context "
                f"beside max_question_length={self.max_question_length}, fewer than "
                f"stride={self.stride}."
            )

    @property
    def room(self) -> int:
        """How many tokens of the context a window has beside the longest question."""
        return self.sequence_length - self.max_question_length - NUM_SPECIAL_TOKENS

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        if sample_weight is not None:
            raise ValueError("questions have no weights: sample_weight must be None.")
        windows = self.windows(*x, y)
        features = {"token_ids": windows.token_ids, "padding_mask": windows.padding_mask}
        if y is None:
            return features
        return features, {"start": windows.start_positions, "end": windows.end_positions}

    def windows(self, questions: Any, contexts: Any, answers: Any = None) -> Windows:
        """Turns texts into windows, with the places of their tokens in the contexts.

        Args:
            questions: [B] strings.
            contexts: [B] strings.
            answers: [B, 2] int, as `y` of a call; None where they are not known.

        Returns:
            The windows: their `token_ids` and `padding_mask`; `rows` [W], the question of each;
            `starts` and `ends` [W, S], the characters of the context where a token starts, and
            after its end, -1 for other tokens; `start_positions` and `end_positions` [W], the
            answer's first and last token, 0 where the window does not have the whole answer.

        Example:
        ```python
        preprocessor.windows(["Who sat?"], ["The cat sat."], [[0, 7]]).start_positions
        ```
        """
        with tf.device("cpu"):
            questions, contexts = as_string_tensor(questions), as_string_tensor(contexts)
            if answers is None:
                answers = tf.zeros([tf.size(questions), 2], tf.int32)
            return make_windows(
                self.tokenizer.graph_module(),
                questions,
                contexts,
                tf.convert_to_tensor(answers),
                sequence_length=self.sequence_length,
                stride=self.stride,
                max_question_length=self.max_question_length,
            )

    def get_config(self) -> dict[str, Any]:
        """The arguments that rebuild this layer."""
        return {
            **super().get_config(),
            "sequence_length": self.sequence_length,
            "stride": self.stride,
            "max_question_length": self.max_question_length,
        }

    @classmethod
    def _add_missing_kwargs(cls, loader: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        # KerasHub calls this where the preset, as one that was only pretrained, has a tokenizer
        # but no preprocessor.
        positions = loader.config["config"].get("max_sequence_length", SEQUENCE_LENGTH)
        kwargs.setdefault("sequence_length", min(SEQUENCE_LENGTH, positions))
        return super()._add_missing_kwargs(loader, kwargs)


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMQuestionAnswerer(raw_text_task(keras_hub.models.Task)):
    """Answers questions with parts of their contexts; `fit()` fine-tunes it on raw strings.

    The head is that of the released models: one dense layer, from each token's hidden state to
    the logits of an answer that begins there and of one that ends there. `<s>` stands for no
    answer. Contexts that are longer than the model are read in overlapping windows.

    `from_preset(directory)` loads a fine-tuned answerer with its head, which may be a converted
    checkpoint's, or puts a new head on a pretrained encoder.

    Args:
        backbone: The encoder.
        preprocessor: Turns texts into windows; None where `fit()` gets tokens.
        max_answer_length: The longest answer, in tokens; None for 30, or for what fits into the
            windows' overlap where that is less.
        n_best: How many candidates a prediction has.
        null_threshold: `predict()` gives an empty answer where a prediction's `null_odds` are
            above it; None to answer always.
        **kwargs: As for `keras_hub.models.Task`.

    Call arguments:
        inputs: A dict of `token_ids` [B, S] int32 and `padding_mask` [B, S].

    Returns:
        A dict of `start` and `end`, [B, S] float32 logits.

    Raises:
        ValueError: If the lengths do not fit each other.

    Example:
    ```python
    questions, contexts = ["Who sat?", "Who flew?"], ["The cat sat.", "The cat sat."]
    answerer = CocoLMQuestionAnswerer.from_preset("runs/first/preset")
    answerer.fit((questions, contexts), [[0, 7], [0, 0]], batch_size=2, epochs=3)
    [prediction.answer for prediction in answerer.predict((questions, contexts))]
    answerer.save_to_preset("runs/answers")
    answerer = CocoLMQuestionAnswerer.from_preset("runs/answers")
    ```
    """

    backbone_cls = CocoLMBackbone
    preprocessor_cls = CocoLMQuestionAnswererPreprocessor
    trim_padding = True

    def __init__(
        self,
        backbone: CocoLMBackbone,
        preprocessor: CocoLMQuestionAnswererPreprocessor | None = None,
        max_answer_length: int | None = None,
        n_best: int = N_BEST,
        null_threshold: float | None = 0.0,
        **kwargs: Any,
    ) -> None:
        check_row_length(preprocessor, backbone)
        if preprocessor is not None:
            max_answer_length = max_answer_length or max(
                1, min(MAX_ANSWER_LENGTH, preprocessor.room - preprocessor.stride + 1)
            )
            check_window_sizes(
                preprocessor.sequence_length,
                preprocessor.stride,
                preprocessor.max_question_length,
                max_answer_length,
            )
        if n_best < 1:
            raise ValueError(f"n_best={n_best} must be at least 1.")

        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.answer_logits = keras.layers.Dense(
            2,
            kernel_initializer=keras.initializers.RandomNormal(stddev=backbone.initializer_range),
            # In float32: half precision would round the scores that decide.
            dtype="float32",
            name="answer_logits",
        )

        # === Functional model ===
        inputs = backbone.input
        logits = self.answer_logits(backbone(inputs))
        is_real = keras.ops.expand_dims(keras.ops.cast(inputs["padding_mask"], "bool"), -1)
        logits = keras.ops.where(is_real, logits, _NEVER)
        outputs = {"start": logits[..., 0], "end": logits[..., 1]}
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Configuration ===
        self.max_answer_length = max_answer_length or MAX_ANSWER_LENGTH
        self.n_best = n_best
        self.null_threshold = null_threshold

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        loss_weights: Any = "auto",
        metrics: Any = "auto",
        **kwargs: Any,
    ) -> None:
        """Configures the model for `fit()`.

        Args:
            optimizer: `"auto"` for AdamW with the released models' settings and a learning rate
                of 2e-5, or what Keras takes.
            loss: `"auto"` for the cross entropies of the first and of the last token, or what
                Keras takes.
            loss_weights: `"auto"` for the mean of both, or what Keras takes.
            metrics: `"auto"` for the accuracies of both, or what Keras takes.
            **kwargs: As for `CocoLMTextClassifier.compile`.
        """
        sides = ("start", "end")
        if optimizer == "auto":
            optimizer = self.default_optimizer()
        if loss == "auto":
            loss = {
                side: keras.losses.SparseCategoricalCrossentropy(from_logits=True) for side in sides
            }
        if loss_weights == "auto":
            loss_weights = dict.fromkeys(sides, 0.5)
        if metrics == "auto":
            metrics = {
                side: keras.metrics.SparseCategoricalAccuracy(name="accuracy") for side in sides
            }
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            **kwargs,
        )

    def fit(
        self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs: Any
    ) -> Any:
        """Fine-tunes the model.

        Args:
            x: A tuple of the questions and their contexts, two batches of strings, or a
                `tf.data.Dataset` of batches of `(x, y)`.
            y: [N, 2] int, the characters [start, end) of the contexts that answer the questions;
                an empty range where there is no answer.
            batch_size: Windows of a batch; None for 32. Windows of texts are shuffled in every
                epoch, and those of like lengths share a batch.
            **kwargs: As for `keras.Model.fit`; `validation_data` is like `(x, y)`.

        Returns:
            Keras's `History`.

        Raises:
            ValueError: Naming the first text or answer that is wrong.
        """
        validation = kwargs.get("validation_data")
        if isinstance(validation, tuple) and self._is_raw(validation[0]):
            kwargs["validation_data"] = self._measuring_batches(*validation, batch_size)
        if not self._is_raw(x):
            return super().fit(x, y, batch_size, **kwargs)
        rows = self._labeled_rows(x, y)
        # Python's generator also seeds the weights.
        batches, steps = learning_batches(
            rows, self._batch_size(batch_size), seed=random.randrange(2**31)
        )
        kwargs = {"steps_per_epoch": steps, **kwargs, "shuffle": False}
        return super().fit(batches, **kwargs)

    def evaluate(
        self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs: Any
    ) -> Any:
        """Computes the loss and the metrics of windows, not the scores of answers.

        Args:
            x: As for `fit`.
            y: As for `fit`.
            batch_size: Windows of a batch; None for 32.
            **kwargs: As for `keras.Model.evaluate`.

        Returns:
            What `keras.Model.evaluate` returns.
        """
        if self._is_raw(x):
            x, y, batch_size = self._measuring_batches(x, y, batch_size), None, None
        return super().evaluate(x, y, batch_size, **kwargs)

    def predict(self, x: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Answers questions.

        Args:
            x: A tuple of the questions and their contexts, two batches of strings. With tokens
                instead, the result is that of `keras.Model.predict`, logits.
            batch_size: Windows of a batch; None for 32.
            **kwargs: As for `keras.Model.predict`.

        Returns:
            A list of `Prediction`, one for each question.

        Example:
        ```python
        answerer.predict((["Who sat?"], ["The cat sat."]))[0].answer
        ```
        """
        if not self._is_raw(x):
            return super().predict(x, batch_size, **kwargs)
        questions, contexts = self._texts(x)
        if not questions:
            return []
        rows = window_rows(self.preprocessor, questions, contexts)
        size = min(batch_size or BATCH_SIZE, len(rows))
        batches, order = reading_batches(rows, size)
        spans = self.spans_of(batches, len(order), **kwargs)
        return collect_answers(
            contexts, rows.questions[order], spans, self.null_threshold, self.n_best
        )

    def spans_of(self, batches: tf.data.Dataset, count: int, **kwargs: Any) -> Spans:
        """The best spans of `count` windows, in the batches of `reading_batches`."""
        found = super().predict(batches, **kwargs)
        return Spans(**{name: part[:count] for name, part in found.items()})

    def predict_step(self, data: Any) -> Any:
        # The best spans where a batch has the places of its tokens, else its logits.
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if not isinstance(x, dict) or "starts" not in x:
            return super().predict_step(data)
        logits = self(_model_inputs(x), training=False)
        return best_spans(
            logits["start"],
            logits["end"],
            x["starts"],
            x["ends"],
            max_answer_length=self.max_answer_length,
            n_best=self.n_best,
        )._asdict()

    def get_config(self) -> dict[str, Any]:
        """The arguments that rebuild this model."""
        return {
            **super().get_config(),
            "max_answer_length": self.max_answer_length,
            "n_best": self.n_best,
            "null_threshold": self.null_threshold,
        }

    @classmethod
    def from_preset(
        cls, preset: str | os.PathLike[str], load_weights: bool = True, **kwargs: Any
    ) -> Self:
        """Loads an answerer, or puts a new head on a pretrained encoder.

        Args:
            preset: A folder, or a handle as KerasHub takes them (`kaggle://`, `hf://`, `gs://`).
            load_weights: Whether to load the preset's weights; otherwise they are random.
            **kwargs: Arguments of the class.

        Returns:
            The answerer, compiled with the defaults of `compile`.

        Example:
        ```python
        CocoLMQuestionAnswerer.from_preset("runs/first/preset", max_answer_length=15)
        ```
        """
        with local_preset(preset) as local:
            answerer = super().from_preset(local, load_weights, **kwargs)
            head = converted_head(local, "question_answerer")
        if head and load_weights:
            answerer.answer_logits.set_weights([head["output.kernel"], head["output.bias"]])
        return answerer

    def _is_raw(self, x: Any) -> bool:
        return self.preprocessor is not None and (
            isinstance(x, tuple | list | str) or hasattr(x, "__array__")
        )

    def _texts(self, x: Any) -> tuple[list[str], list[str]]:
        # A list of two is the two columns, and not two rows of a question and a context.
        x = tuple(x) if isinstance(x, list) and len(x) == 2 else x
        columns = text_columns(x, ("questions", "contexts"))
        if len(columns) != 2:
            raise ValueError("x must be the questions and their contexts: (questions, contexts).")
        return tuple(map(_as_strings, columns))

    def _labeled_rows(self, x: Any, y: Any) -> WindowRows:
        questions, contexts = self._texts(x)
        if not questions:
            raise ValueError("there are no questions.")
        return window_rows(self.preprocessor, questions, contexts, answer_spans(y, contexts))

    def _measuring_batches(self, x: Any, y: Any, batch_size: int | None) -> tf.data.Dataset:
        rows = self._labeled_rows(x, y)
        batches, _ = reading_batches(rows, min(batch_size or BATCH_SIZE, len(rows)))
        return batches.map(lambda x, labels, real: (_model_inputs(x), labels, real))


def _model_inputs(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {name: features[name] for name in ("token_ids", "padding_mask")}


def _as_strings(texts: Sequence[str | bytes]) -> list[str]:
    return [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in texts]
