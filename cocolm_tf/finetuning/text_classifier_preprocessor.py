"""Raw texts or pairs of texts to what a text classifier takes."""

from typing import Any

import keras
import keras_hub
import tensorflow as tf
from keras_hub.src.utils.tensor_utils import preprocessing_function

from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.tokenization.normalization import as_string_tensor
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMTextClassifierPreprocessor(keras_hub.models.TextClassifierPreprocessor):
    """Tokenizes texts and lays them out as `<s> A </s>` or `<s> A </s> </s> B </s>`.

    What is too long is cut at its end; of a pair it is the longer text that is cut, as
    `"round_robin"` does in KerasHub.

    Args:
        tokenizer: `CocoLMTokenizer`.
        sequence_length: int. S, how long every row becomes. `from_preset` takes what the model
            has positions for.
        **kwargs: As for `keras.layers.Layer`.

    Call arguments:
        x: A text, a batch of texts, a tuple of two of these for pairs, or a [B, 2] batch of
            pairs. Strings or string tensors.
        y: Labels, passed through.
        sample_weight: Weights of the labels, passed through.

    Returns:
        A dict of `token_ids` [B, S] int32 and `padding_mask` [B, S] bool, [S] for a single text;
        in a tuple with `y` and `sample_weight` where these are given.

    Raises:
        ValueError: If there are more than two texts to a row.

    Example:
    ```python
    preprocessor = CocoLMTextClassifierPreprocessor.from_preset("runs/first/preset")
    preprocessor(["The cat sat.", "It slept."])
    preprocessor(x=(["Where is it?", "Who slept?"], ["On the mat.", "The cat."]))
    x, y = preprocessor(["The cat sat.", "It slept."], [0, 1])
    tf.data.Dataset.from_tensor_slices((["The cat sat.", "It slept."], [0, 1])).map(preprocessor)
    ```
    """

    backbone_cls = CocoLMBackbone
    tokenizer_cls = CocoLMTokenizer

    def __init__(
        self,
        tokenizer: CocoLMTokenizer,
        sequence_length: int = 512,
        truncate: str = "round_robin",
        **kwargs: Any,
    ) -> None:
        if truncate != "round_robin":
            raise ValueError(f"truncate={truncate!r}: the longer text is cut, 'round_robin'.")
        super().__init__(tokenizer, sequence_length, truncate, **kwargs)

    def build(self, input_shape: Any) -> None:
        """There is nothing to build: the tokenizer packs."""
        self.built = True

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Turns texts into the model's input."""
        x = tuple(map(as_string_tensor, x)) if isinstance(x, tuple) else as_string_tensor(x)
        return self._pack(x, y, sample_weight)

    @preprocessing_function
    def _pack(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        if isinstance(x, tf.Tensor) and x.shape.rank == 2:
            x = tuple(tf.unstack(x, axis=1))
        texts = x if isinstance(x, tuple) else (x,)
        if len(texts) > 2:
            raise ValueError(f"a row is a text or a pair of texts, not {len(texts)} texts.")
        features = self.tokenizer.pack(
            *map(self.tokenizer, texts), sequence_length=self.sequence_length
        )
        return keras.utils.pack_x_y_sample_weight(features, y, sample_weight)

    @classmethod
    def _add_missing_kwargs(cls, loader: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        # KerasHub calls this where the preset, as one that was only pretrained, has a tokenizer
        # but no preprocessor.
        positions = loader.config["config"].get("max_sequence_length")
        if positions:
            kwargs.setdefault("sequence_length", positions)
        return super()._add_missing_kwargs(loader, kwargs)
