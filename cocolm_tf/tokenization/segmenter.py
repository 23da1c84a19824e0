"""SentencePiece as a TensorFlow operation whose model survives a change of seed.

TensorFlow Text gives the loaded model to the kernel that loaded it. `tf.random.set_seed`, and with
it `keras.utils.set_random_seed`, throws all kernels away, and every tokenizer made before then
fails. A resource with a name of its own stays. It is named after its content: tokenizers of one
vocabulary share it, those loaded from a SavedModel included, so that nobody need own and free it.
"""

import hashlib

import sentencepiece
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.python.ops import sentencepiece_tokenizer

# How SentencePiece writes the space before a word.
WORD_START = "▁"


class Segmenter(tf_text.SentencepieceTokenizer):
    """`tf_text.SentencepieceTokenizer` with pieces as strings; see the module's docstring."""

    # `byte_pieces` maps the pieces that stand for a byte, those of a model with byte fallback, to
    # it.

    def __init__(self, proto: bytes) -> None:
        super().__init__(proto, out_type=tf.string)
        self._model_resource = _SharedModel(proto)
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self.byte_pieces = {
            piece: bytes([int(piece[1:-1], 16)])
            for id in range(processor.vocab_size())
            if processor.is_byte(id) and (piece := processor.id_to_piece(id))
        }
        if self.byte_pieces:
            self._bytes = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(
                    tf.constant(list(self.byte_pieces)),
                    tf.constant(list(self.byte_pieces.values())),
                ),
                default_value="",
            )

    def is_byte(self, pieces: tf.Tensor) -> tf.Tensor:
        """Which pieces, [P] string, stand for a byte: [P] bool."""
        if not self.byte_pieces:
            return tf.zeros_like(pieces, tf.bool)
        return self._bytes.lookup(pieces) != ""

    def is_continuation(self, pieces: tf.Tensor) -> tf.Tensor:
        """Which pieces, [P] string, stand for a byte after the first of a character: [P] bool."""
        return self.is_byte(pieces) & tf.strings.regex_full_match(pieces, "<0x[89AB].>")

    def content(self, pieces: tf.Tensor) -> tf.Tensor:
        """What pieces, [P] string, spell without spaces: [P] string, bytes as they are."""
        content = tf.strings.regex_replace(pieces, WORD_START, "")
        if not self.byte_pieces:
            return content
        return tf.where(self.is_byte(pieces), self._bytes.lookup(pieces), content)


class _SharedModel(tf.saved_model.experimental.TrackableResource):
    """A SentencePiece model that lives as long as the process."""

    def __init__(self, proto: bytes) -> None:
        super().__init__()
        self._proto = proto
        self._shared_name = f"sentencepiece_{hashlib.sha256(proto).hexdigest()}"
        _ = self.resource_handle  # Loads the model now, so that an invalid one fails here.

    def _create_resource(self) -> tf.Tensor:
        operations = sentencepiece_tokenizer.gen_sentencepiece_tokenizer
        return operations.sentencepiece_op(model=self._proto, shared_name=self._shared_name)
