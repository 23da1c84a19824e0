"""A pretrained encoder that answers questions with parts of a text."""

from typing import Any, Self

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from cocolm_tf.finetuning.batches import Tokens
from cocolm_tf.finetuning.models.answers import Spans, best_spans, collect_answers
from cocolm_tf.finetuning.models.question_windows import (
    NUM_SPECIAL_TOKENS,
    Windows,
    by_side,
    check_window_sizes,
    lay_out_windows,
    reading_batches,
    window_rows,
)
from cocolm_tf.finetuning.models.raw_inputs import answer_spans, decoded
from cocolm_tf.finetuning.models.raw_text import (
    BATCH_SIZE,
    TextPreprocessor,
    check_row_length,
    output_layer,
    raw_text_task,
)
from cocolm_tf.finetuning.presets import converted_head
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
_PADDING_LOGIT = -1e4


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMQuestionAnswererPreprocessor(TextPreprocessor, keras_hub.models.Preprocessor):
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

    usual_length = SEQUENCE_LENGTH
    saved = ("sequence_length", "stride", "max_question_length")

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
        self.check(max_answer_length=1)

    @property
    def room(self) -> int:
        """How many tokens of the context a window has beside the longest question."""
        return self.sequence_length - self.max_question_length - NUM_SPECIAL_TOKENS

    def check(self, max_answer_length: int) -> None:
        """Raises `ValueError` unless a window holds whole every answer of up to so many tokens."""
        check_window_sizes(
            self.sequence_length, self.stride, self.max_question_length, max_answer_length
        )

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
            graph = self.tokenizer.graph_module()
            return lay_out_windows(
                graph.tokenize(questions),
                graph.tokenize_with_offsets(contexts),
                tf.convert_to_tensor(answers),
                sequence_length=self.sequence_length,
                stride=self.stride,
                max_question_length=self.max_question_length,
            )


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMQuestionAnswerer(raw_text_task(keras_hub.models.Task)):
    """Answers questions with parts of their contexts; `fit()` fine-tunes it on raw strings.

    The head is that of the released models: one dense layer, from each token's hidden state to
    the logits of an answer that begins there and of one that ends there. `<s>` stands for no
    answer. Contexts that are longer than the model are read in overlapping windows.

    `from_preset(directory)` loads a fine-tuned answerer with its head, which may be a converted
    checkpoint's, or puts a new head on a pretrained encoder.

    `fit((questions, contexts), answers)` takes the answers as [N, 2] int, the characters
    [start, end) of the contexts, an empty range where there is none, and no weights. The loss is
    the mean of the cross entropies of the answer's first and of its last token; `evaluate()`
    measures windows, not the scores of answers.

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

    preprocessor_cls = CocoLMQuestionAnswererPreprocessor
    saved = ("max_answer_length", "n_best", "null_threshold")
    column_names = ("questions", "contexts")
    keras_can_batch = False  # a long context is several rows

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
            preprocessor.check(max_answer_length)
        if n_best < 1:
            raise ValueError(f"n_best={n_best} must be at least 1.")

        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.answer_logits = output_layer(backbone, 2, "answer_logits")

        # === Functional model ===
        inputs = backbone.input
        logits = self.answer_logits(backbone(inputs))
        is_real = keras.ops.expand_dims(keras.ops.cast(inputs["padding_mask"], "bool"), -1)
        logits = keras.ops.where(is_real, logits, _PADDING_LOGIT)
        outputs = {"start": logits[..., 0], "end": logits[..., 1]}
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Configuration ===
        self.max_answer_length = max_answer_length or MAX_ANSWER_LENGTH
        self.n_best = n_best
        self.null_threshold = null_threshold

    def default_losses(self) -> dict[str, Any]:
        defaults: dict[str, Any] = {"loss": {}, "loss_weights": {}, "metrics": {}}
        for side in ("start", "end"):
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            defaults["loss"][side], defaults["loss_weights"][side] = loss, 0.5
            defaults["metrics"][side] = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        return defaults

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
        texts = self.texts_of(x)
        if texts is None:
            return super().predict(x, batch_size, **kwargs)
        questions, contexts = texts
        if not questions:
            return []
        rows = window_rows(self.preprocessor, questions, contexts)
        batches, order = reading_batches(rows, batch_size or BATCH_SIZE)
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
        inputs = {name: x[name] for name in ("token_ids", "padding_mask")}
        logits = self(inputs, training=False)
        return best_spans(
            logits["start"],
            logits["end"],
            x["starts"],
            x["ends"],
            max_answer_length=self.max_answer_length,
            n_best=self.n_best,
        )._asdict()

    @classmethod
    def _load(cls, preset: str, load_weights: bool, **kwargs: Any) -> Self:
        answerer = super()._load(preset, load_weights, **kwargs)
        if load_weights and (head := converted_head(preset, "question_answerer")):
            answerer.answer_logits.set_weights([head["output.kernel"], head["output.bias"]])
        return answerer

    def texts_of(self, x: Any) -> tuple[list[str], list[str]] | None:
        # A list of two is the two columns, and not two rows of a question and a context.
        x = tuple(x) if isinstance(x, list) and len(x) == 2 else x
        columns = super().texts_of(x)
        if columns is None:
            return None
        if len(columns) != 2:
            raise ValueError("x must be the questions and their contexts: (questions, contexts).")
        questions, contexts = ([*map(decoded, column)] for column in columns)
        return questions, contexts

    def checked_labels(
        self, texts: tuple[list[str], list[str]], y: Any, weights: Any
    ) -> tuple[np.ndarray, None]:
        if weights is not None:
            raise ValueError("questions have no weights: sample_weight must be None.")
        if not texts[0]:
            raise ValueError("there are no questions.")
        return answer_spans(y, texts[1]), None

    def labeled_tokens(
        self, texts: tuple[list[str], list[str]], labels: np.ndarray, weights: None
    ) -> tuple[Tokens, np.ndarray, np.ndarray]:
        rows = window_rows(self.preprocessor, *texts, labels)
        return rows.tokens, rows.labels, np.ones(len(rows), np.float32)

    def text_batches(self, *args: Any) -> tuple[tf.data.Dataset, int]:
        batches, steps = super().text_batches(*args)
        return batches.map(lambda x, y, weights: (x, by_side(y), weights)), steps
