"""Raw questions and contexts to what a question answerer takes."""

from typing import Any

import keras
import keras_hub
import tensorflow as tf

from cocolm_tf.finetuning.windows import NUM_SPECIAL_TOKENS, Windows, make_windows
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.normalization import as_string_tensor
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

# The released models' settings.
SEQUENCE_LENGTH = 384
STRIDE = 128
MAX_QUESTION_LENGTH = 64


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMQuestionAnswererPreprocessor(keras_hub.models.Preprocessor):
    """Tokenizes questions and contexts, and cuts long contexts into overlapping windows.

    A batch of B questions becomes W >= B rows `<s> question </s> </s> context </s>`.

    Args:
        tokenizer: `CocoLMTokenizer`.
        sequence_length: int. S, the length of every row. `from_preset` takes 384, or what the
            model has positions for.
        stride: int. Tokens of the context from one window's beginning to the next one's; None for
            128, or half of the room beside the longest question where that is less.
        max_question_length: int. Longer questions are cut off; in tokens. None for 64, or a
            quarter of a row where that is less.
        **kwargs: As for `keras.layers.Layer`.

    Call arguments:
        x: A tuple of two batches of strings: questions and contexts. Given by its name, as KerasHub
            takes a tuple without one for `x` and `y`.
        y: [B, 2] int, the characters [start, end) of the contexts that answer the questions; an
            empty range where there is no answer. None where they are not known.
        sample_weight: Not taken: a window's answer may be none though the question's is one.

    Returns:
        A dict of `token_ids` [W, S] int32 and `padding_mask` [W, S] bool; in a tuple with a dict
        of `start` and `end`, [W] int32, the tokens that the answers begin and end with, where `y`
        is given.

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
        """There is nothing to build."""
        self.built = True

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Turns texts into the model's input."""
        if sample_weight is not None:
            raise ValueError("questions have no weights: sample_weight must be None.")
        windows = self.windows(*x, y)
        features = {"token_ids": windows.token_ids, "padding_mask": windows.padding_mask}
        if y is None:
            return features
        return features, {"start": windows.start_positions, "end": windows.end_positions}

    def windows(self, questions: Any, contexts: Any, answers: Any = None) -> Windows:
        """Turns texts into windows, and says where their tokens come from.

        Args:
            questions: `[B]` strings.
            contexts: `[B]` strings.
            answers: `[B, 2]` int, as the class takes them.

        Returns:
            The windows.

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
