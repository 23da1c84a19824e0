"""The signatures of a SavedModel: functions of named tensors, and the reading of requests."""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from cocolm_tf.tokenization.dictionary import PAD_TOKEN_ID, START_TOKEN_ID, UNKNOWN_TOKEN_ID
from cocolm_tf.tokenization.normalization import valid_utf8
from cocolm_tf.tokenization.segment_packing import pack_ragged
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

Tensors = dict[str, tf.Tensor]

# TensorFlow Serving's names of its interfaces.
PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{x}" for x in ("predict", "classify", "regress"))

# The most bytes of a text that are read: some 20 pages of English.
MAX_BYTES = 1 << 16
# A request may have as much as this many of the longest texts; that is more than a batch of
# TensorFlow Serving's has, so that no request is refused for what it was batched with.
LONGEST_TEXTS_OF_REQUEST = 64
# The least cost of a text: an empty one has special tokens and a row of the result.
_LEAST_BYTES = 16

TEXTS = tf.TensorSpec([None], tf.string, "texts")
TOKEN_IDS = tf.TensorSpec([None, None], tf.int32, "token_ids")


@dataclasses.dataclass(frozen=True)
class Signature:
    """One signature of a SavedModel."""

    function: Callable[..., Tensors]  # named inputs to named outputs, a row each
    inputs: tuple[tf.TensorSpec, ...]  # names, dtypes and shapes
    request: Callable[[Sequence[str]], Tensors]  # makes inputs of English texts, for warmup
    method: str = PREDICT  # which of TensorFlow Serving's interfaces it is for

    def concrete(self) -> tf.types.experimental.ConcreteFunction:
        """The function as a graph, for batches of any size."""
        function = tf.function(self.function, autograph=False)
        return function.get_concrete_function(*self.inputs)


def text_request(texts: Sequence[str]) -> Tensors:
    """The warmup inputs of a signature that takes `texts`."""
    return {"texts": tf.constant(texts, tf.string)}


def dense_rows(
    by_text: dict[str, tf.RaggedTensor], most: int, things: str, alternative: str
) -> Tensors:
    """Pads results [B, (N), ...] to the longest text's; fails for more than `most` in all."""
    # `things` are what the message calls them, `alternative` is the signature without such rows.
    counts = next(iter(by_text.values())).row_lengths()
    num_cells = tf.size(counts, tf.int64) * tf.reduce_max(tf.concat([counts, [0]], 0))
    message = f"texts times {things} of the longest may be {most} at most: ask for texts of "
    message += f"similar length together, or {alternative}; here they are"
    check = tf.debugging.Assert(num_cells <= most, [message, num_cells])
    with tf.control_dependencies([check] if check is not None else []):
        return {name: ragged.to_tensor() for name, ragged in by_text.items()}


class Reader:
    """Reads requests, whose cost is bounded by their own length and by limits."""

    # `limit` is the longest row in tokens, `max_bytes` the longest text that is read.

    def __init__(self, tokenizer: CocoLMTokenizer, limit: int, max_bytes: int = MAX_BYTES) -> None:
        self.limit = limit
        self.graph = tokenizer.graph_module()
        self._max_bytes = max_bytes
        self._vocabulary_size = tokenizer.vocabulary_size()

    def texts(self, *columns: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Columns [B] string as valid UTF-8 of at most `max_bytes`; and [B], if any was cut."""
        # When called, too much text in all is a `tf.errors.InvalidArgumentError`.
        lengths = [tf.strings.length(texts) for texts in columns]
        read = [tf.clip_by_value(x, _LEAST_BYTES, self._max_bytes) for x in lengths]
        columns = self._bounded(tf.add_n([tf.reduce_sum(x) for x in read]), *columns)
        texts = [valid_utf8(self._cut(x, n)) for x, n in zip(columns, lengths, strict=True)]
        return texts, tf.reduce_any([x > self._max_bytes for x in lengths], axis=0)

    def rows(
        self,
        first: tf.Tensor,
        second: tf.Tensor | None = None,
        is_pair: tf.Tensor | None = None,
    ) -> tuple[tf.RaggedTensor, tf.Tensor]:
        """Rows of ids [B, (N)], special tokens included; and [B] bool, whether a text was cut."""
        # `second` are the second texts of pairs; `is_pair` [B] says which rows have one, None for
        # all.
        if second is None:
            (first,), is_cut = self.texts(first)
            first = self.graph.tokenize(first)
            whole = first.row_lengths() + 2
        else:
            (first, second), is_cut = self.texts(first, second)
            first, second = self.graph.tokenize(first), self.graph.tokenize(second)
            whole = first.row_lengths() + second.row_lengths() + 4
            if is_pair is not None:
                whole = tf.where(is_pair, whole, first.row_lengths() + 2)
        rows = pack_ragged(first, second, is_pair, sequence_length=self.limit)
        return rows, is_cut | (whole > self.limit)

    def rows_of_ids(self, token_ids: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor]:
        """The rows [B, (N)] of padded `token_ids` [B, S]; and [B], whether they were cut."""
        # They are cut at `limit`. Rows are filled up with `<pad>`; or with `<s>`, which is what
        # TensorFlow Serving does to a batch of several requests: it repeats the first element.
        # Unknown ids count as `<unk>`. Rows have one token at least. When called, too many ids in
        # all are a `tf.errors.InvalidArgumentError`.
        rows, width = tf.unstack(tf.shape(token_ids))
        num_bytes = rows * tf.maximum(token_ids.dtype.size * width, _LEAST_BYTES)
        (token_ids,) = self._bounded(num_bytes, token_ids)
        is_id = (token_ids >= 0) & (token_ids < self._vocabulary_size)
        token_ids = tf.where(is_id, token_ids, UNKNOWN_TOKEN_ID)
        token_ids = tf.pad(token_ids, [[0, 0], [0, 1]], constant_values=PAD_TOKEN_ID)
        is_filling = (token_ids == PAD_TOKEN_ID) | (token_ids == START_TOKEN_ID)
        count = tf.range(1, tf.shape(token_ids)[1] + 1)
        lengths = tf.reduce_max(tf.where(is_filling, 1, count), axis=1)
        rows = tf.RaggedTensor.from_tensor(
            token_ids[:, : self.limit], tf.minimum(lengths, self.limit)
        )
        return rows, lengths > self.limit

    def ids_request(self, texts: Sequence[str]) -> Tensors:
        """The warmup inputs of a signature that takes `token_ids`."""
        rows, _ = self.rows(tf.constant(texts))
        return {"token_ids": rows.to_tensor(PAD_TOKEN_ID)}

    def _bounded(self, num_bytes: tf.Tensor, *inputs: tf.Tensor) -> list[tf.Tensor]:
        bound = LONGEST_TEXTS_OF_REQUEST * self._max_bytes
        message = f"a request may have {bound} bytes of text or ids, of each text at most "
        message += f"{self._max_bytes} and at least {_LEAST_BYTES} of them counted; this one has"
        check = tf.debugging.Assert(num_bytes <= bound, [message, num_bytes])
        # The check comes before all work.
        with tf.control_dependencies([check] if check is not None else []):
            return [tf.identity(x) for x in inputs]

    def _cut(self, texts: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """At most `max_bytes` of each text, with no character cut in two."""
        is_long = lengths > self._max_bytes
        # The bytes up to the first that goes: a character begins at one of them, if they are any.
        places = tf.where(is_long, self._max_bytes - 3, 0)
        tail = tf.strings.substr(texts, places, tf.fill(tf.shape(places), 4))
        tail = tf.io.decode_raw(tail, tf.uint8, fixed_length=4)
        is_beginning = (tail[:, ::-1] & 0xC0) != 0x80
        back = tf.argmax(tf.cast(is_beginning, tf.int32), axis=1, output_type=tf.int32)
        kept = tf.where(is_long, self._max_bytes - back, lengths)
        return tf.strings.substr(texts, tf.zeros_like(kept), kept)
