"""What the signatures of a SavedModel share: settings, the reading of requests, and their results.

A signature is a function of named tensors to named tensors, with a row for each text of a request.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from cocolm_tf.serving.encoder import BUCKETS, Encoder
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.tokenization.dictionary import PAD_TOKEN_ID, START_TOKEN_ID, UNKNOWN_TOKEN_ID
from cocolm_tf.tokenization.normalization import valid_utf8
from cocolm_tf.tokenization.segment_packing import pack_ragged
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

Tensors = dict[str, tf.Tensor]

# The most bytes of a text that are read: some 20 pages of English.
MAX_BYTES = 1 << 16
# The longest text of signatures that read texts in windows, in tokens: some pages.
MAX_TOKENS = 4096
# A request may have as much as this many of the longest texts; that is more than a batch of
# TensorFlow Serving's has, so that no request is refused for what it was batched with.
LONGEST_TEXTS_OF_REQUEST = 64
# The least cost of a text: an empty one has special tokens and a row of the result.
_LEAST_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a preset is served.

    Args:
        precision: `"float32"` or `"bfloat16"`, what the matrices are stored and multiplied in.
        int8: Whether the matrices are stored in 8 bits.
        buckets: Lengths in tokens at which texts are encoded apart from shorter ones.
        pooling: How `embed` makes a vector, `"cls"`, `"mean"` or `"projection"`; `""` for what the
            preset's embedder was trained with, or `"cls"`.
        dimension: The length of a vector; 0 for what the embedder was trained with, or all.
        num_corrections: How many corrections `correct` gives for each word.
        max_tokens: The longest text that `correct` and `tag` read, and context that `answer` does.
        max_bytes: The bytes of a text that any signature reads.
        min_probability: Words that belong more surely get no corrections.
        pairs: Whether `serving_default` of `classify` takes pairs of texts.

    Example:
    ```python
    Settings(precision="bfloat16", pooling="mean")
    ```
    """

    precision: str = "float32"
    int8: bool = False
    buckets: tuple[int, ...] = BUCKETS
    pooling: str = ""
    dimension: int = 0
    num_corrections: int = 5
    max_tokens: int = MAX_TOKENS
    max_bytes: int = MAX_BYTES
    min_probability: float = 0.0
    pairs: bool = False


class SignatureGroup:
    """The signatures of one model; each is the method of its name."""

    names: tuple[str, ...]
    task: type | None = None  # the fine-tuned model, if they need one

    def __init__(
        self, parts: ServedPreset, encoder: Encoder, settings: Settings | None = None
    ) -> None:
        self.parts = parts
        self.encoder = encoder
        self.settings = settings or Settings()
        self.model = parts.task(self.task) if self.task else None
        self.reader = Reader(parts.tokenizer, self.limit, self.settings.max_bytes)

    @property
    def limit(self) -> int:
        """The longest row in tokens."""
        return self.encoder.model.max_sequence_length

    def graphs(self) -> dict[str, Callable[..., Any]]:
        """The signatures as graphs."""
        return {name: self.graph(name) for name in self.names}

    def graph(self, name: str) -> Callable[..., Any]:
        """A signature as a graph, for batches of any size."""
        return _graph(getattr(self, name))


def _graph(function: Callable[..., Tensors]) -> Callable[..., Any]:
    # The inputs are named as the function's parameters are; all but token ids are texts.
    specs = [
        tf.TensorSpec([None, None], tf.int32, name)
        if name == "token_ids"
        else tf.TensorSpec([None], tf.string, name)
        for name in inspect.signature(function).parameters
    ]
    return tf.function(function, autograph=False).get_concrete_function(*specs)


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
        columns = self._bounded(tf.add_n([tf.reduce_sum(x) for x in read]), list(columns))
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
        columns, is_cut = self.texts(*(x for x in (first, second) if x is not None))
        first, *others = (self.graph.tokenize(texts) for texts in columns)
        whole, second = first.row_lengths() + 2, None
        if others:
            (second,) = others
            extra = second.row_lengths() + 2
            whole += extra if is_pair is None else tf.where(is_pair, extra, 0)
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
        token_ids = self._bounded(num_bytes, token_ids)
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

    def _bounded(self, num_bytes: tf.Tensor, inputs: Any) -> Any:
        bound = LONGEST_TEXTS_OF_REQUEST * self._max_bytes
        message = f"a request may have {bound} bytes of text or ids, of each text at most "
        message += f"{self._max_bytes} and at least {_LEAST_BYTES} of them counted; this one has"
        # The check comes before all work.
        return _checked(inputs, num_bytes, bound, message)

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


# --- The results of a request ---


def by_text(values: Tensors, rows: tf.Tensor, num_texts: tf.Tensor) -> dict[str, tf.RaggedTensor]:
    """Results [N, ...] of words or spans as [B, (N), ...], by the texts `rows` [N] they are of."""
    by_row = tf.RaggedTensor.from_value_rowids(rows, rows, num_texts, validate=False)
    return {name: by_row.with_values(value) for name, value in values.items()}


def dense_rows(
    results: dict[str, tf.RaggedTensor], max_tokens: int, things: str, alternative: str
) -> Tensors:
    """Pads results [B, (N), ...] of `things` to the longest text's; and their number in each."""
    # It fails for a batch that would be wider than the longest texts of a request; the message
    # names `alternative`, the signature without such rows.
    counts = next(iter(results.values())).row_lengths()
    num_cells = tf.size(counts, tf.int64) * tf.reduce_max(tf.concat([counts, [0]], 0))
    bound = LONGEST_TEXTS_OF_REQUEST * max(max_tokens, MAX_TOKENS)
    message = f"texts times {things} of the longest may be {bound} at most: ask for texts of "
    message += f"similar length together, or {alternative}; here they are"
    results = _checked(results, num_cells, bound, message)
    dense = {name: ragged.to_tensor() for name, ragged in results.items()}
    return dense | {f"num_{things}": tf.cast(counts, tf.int32)}


def padded(
    rows: tf.RaggedTensor, values: tf.Tensor, width: tf.Tensor, padding: float | None = None
) -> tf.Tensor:
    """Values [T, ...] of the tokens of rows, as [B, width, ...]."""
    shape = tf.stack([-1, width, *values.shape[1:]])
    return rows.with_flat_values(values).to_tensor(padding, shape=shape)


def _checked(tensors: Any, value: tf.Tensor, bound: int, message: str) -> Any:
    """The tensors, unless the value is beyond its bound."""
    check = tf.debugging.Assert(value <= bound, [message, value])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.nest.map_structure(tf.identity, tensors)
