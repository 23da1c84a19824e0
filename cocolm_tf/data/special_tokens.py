"""The ids of special tokens."""

import dataclasses

import tensorflow as tf

from cocolm_tf.tokenization.dictionary import END_TOKEN_ID, PAD_TOKEN_ID, START_TOKEN_ID


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a vocabulary; all but the mask are the same in each.

    Args:
        mask: `<mask>`, the last id.
        start: `<s>`, the first token of every sequence.
        pad: `<pad>`, after a sequence shorter than its batch.
        end: `</s>`, after every document.

    Example:
    ```python
    SpecialTokens(mask=32767).contains(tf.constant([0, 7]))  # [True, False]
    ```
    """

    mask: int
    start: int = START_TOKEN_ID
    pad: int = PAD_TOKEN_ID
    end: int = END_TOKEN_ID

    def contains(self, token_ids: tf.Tensor) -> tf.Tensor:
        """Whether each id is special: a bool tensor of the same shape."""
        ids = tf.constant([self.start, self.pad, self.end, self.mask], token_ids.dtype)
        return tf.reduce_any(token_ids[..., tf.newaxis] == ids, axis=-1)
