"""What a SavedModel can be asked: a function of named tensors, and requests to warm it up with."""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from cocolm_tf.serving.packing import pack_rows
from cocolm_tf.tokenization.dictionary import PAD_TOKEN_ID, START_TOKEN_ID, UNKNOWN_TOKEN_ID
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

Tensors = dict[str, tf.Tensor]

# TensorFlow Serving's names of its interfaces.
PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{x}" for x in ("predict", "classify", "regress"))

TEXTS = tf.TensorSpec([None], tf.string, "texts")
TOKEN_IDS = tf.TensorSpec([None, None], tf.int32, "token_ids")


@dataclasses.dataclass(frozen=True)
class Signature:
    """One signature of a SavedModel.

    Args:
        function: takes the inputs by their names, gives named tensors with one row per input row.
        inputs: names, dtypes and shapes.
        request: makes inputs of some English texts, for warming up.
        method: which of TensorFlow Serving's interfaces it is for.

    Example:
    ```python
    Signature(lambda texts: {"lengths": tf.strings.length(texts)}, (TEXTS,), text_request)
    ```
    """

    function: Callable[..., Tensors]
    inputs: tuple[tf.TensorSpec, ...]
    request: Callable[[Sequence[str]], Tensors]
    method: str = PREDICT

    def concrete(self) -> tf.types.experimental.ConcreteFunction:
        """The function as a graph, for batches of any size."""
        function = tf.function(self.function, autograph=False)
        return function.get_concrete_function(*self.inputs)


def text_request(texts: Sequence[str]) -> Tensors:
    """The request of a signature that takes `texts`."""
    return {"texts": tf.constant(texts, tf.string)}


def ids_request(tokenizer: CocoLMTokenizer, limit: int) -> Callable[[Sequence[str]], Tensors]:
    """The requests of a signature that takes `token_ids` of at most `limit` tokens."""

    def request(texts: Sequence[str]) -> Tensors:
        rows, _ = pack_rows(tokenizer.graph_module().tokenize(tf.constant(texts)), limit=limit)
        return {"token_ids": rows.to_tensor(PAD_TOKEN_ID)}

    return request


def rows_of_ids(
    token_ids: tf.Tensor, limit: int, vocabulary_size: int
) -> tuple[tf.RaggedTensor, tf.Tensor]:
    """Reads the ids of a caller who tokenizes.

    Args:
        token_ids: [B, S] int32, special tokens included. Rows are filled up with `<pad>`; or with
            `<s>`, which is what TensorFlow Serving does to a batch of several requests: it repeats
            the first element.
        limit: int. The longest row that the model takes.
        vocabulary_size: int. Ids that are none count as `<unk>`.

    Returns:
        [B, (N)] int32, the rows, of one token at least. And [B] bool: whether they were longer
        than `limit` and have been cut.

    Example:
    ```python
    rows_of_ids(tf.constant([[0, 5, 2, 1], [0, 2, 1, 1]]), 512, 1000)  # lengths 3 and 2
    ```
    """
    is_id = (token_ids >= 0) & (token_ids < vocabulary_size)
    token_ids = tf.where(is_id, token_ids, UNKNOWN_TOKEN_ID)
    token_ids = tf.pad(token_ids, [[0, 0], [0, 1]], constant_values=PAD_TOKEN_ID)
    is_filling = (token_ids == PAD_TOKEN_ID) | (token_ids == START_TOKEN_ID)
    count = tf.range(1, tf.shape(token_ids)[1] + 1)
    lengths = tf.reduce_max(tf.where(is_filling, 1, count), axis=1)
    rows = tf.RaggedTensor.from_tensor(token_ids, lengths)
    return rows[:, :limit], lengths > limit
