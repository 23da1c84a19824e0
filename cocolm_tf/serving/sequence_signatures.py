"""The signatures about whole texts: `embed`, their vectors, and `classify`, their classes."""

import tensorflow as tf

from cocolm_tf.finetuning.models.text_classifier import CocoLMTextClassifier
from cocolm_tf.serving.encoder import Encoder
from cocolm_tf.serving.served_preset import ServedPreset
from cocolm_tf.serving.signature import Settings, SignatureGroup, Tensors


class Embedder(SignatureGroup):
    """The signatures `embed` and `embed_ids`: vectors whose inner products are cosines."""

    # Both give `embeddings` [B, D] float32, vectors of unit length, and `truncated` [B] bool, true
    # where a text was longer than the model and its end went unread. The pooling makes the vector:
    # "cls", the hidden state of `<s>`, as the paper compares sequences (section 3.3, Sequence
    # Contrastive Learning); "mean", the mean of all tokens' hidden states; "projection", `<s>`
    # after the pretrained `projection`, which the contrastive loss was computed on.

    names = ("embed", "embed_ids")

    def __init__(
        self, parts: ServedPreset, encoder: Encoder, settings: Settings | None = None
    ) -> None:
        super().__init__(parts, encoder, settings)
        self._pooling, self._dimension = parts.embedding(
            self.settings.pooling, self.settings.dimension
        )
        # Loaded here: within a graph its weights would be set by operations of that graph.
        self._projection = parts.head("projection") if self._pooling == "projection" else None

    def embed(self, texts: tf.Tensor) -> Tensors:
        """Gives the vectors of texts [B] string."""
        return self._embed_rows(*self.reader.rows(texts))

    def embed_ids(self, token_ids: tf.Tensor) -> Tensors:
        """Gives the vectors of token ids [B, S] int32, special tokens included."""
        return self._embed_rows(*self.reader.rows_of_ids(token_ids))

    def _embed_rows(self, rows: tf.RaggedTensor, is_truncated: tf.Tensor) -> Tensors:
        if self._pooling == "mean":
            vectors = tf.reduce_mean(self.encoder.states(rows), axis=1)
        else:
            vectors = self.encoder.first_states(rows)
        if self._projection is not None:
            vectors = tf.cast(self._projection(vectors), tf.float32)
        if self._dimension:
            vectors = vectors[:, : self._dimension]
        return {"embeddings": tf.math.l2_normalize(vectors, axis=-1), "truncated": is_truncated}


class Classifier(SignatureGroup):
    """The signatures `classify`, `classify_pairs`, `classify_ids` and `classify_examples`.

    Each returns

    - `labels` [B, C] string: the names of the classes; their numbers where they have none;
    - `probabilities` [B, C] float32: of the classes, in that order;
    - `truncated` [B] bool: whether the text or pair was longer than the model, and was cut as in
      fine-tuning;

    of a model of several labels a text also

    - `assigned` [B, C] bool: whether the text has the label, by the model's thresholds;

    or, of a regression model, `values` [B] float32 instead of the first two.
    """

    names = ("classify", "classify_pairs", "classify_ids", "classify_examples")
    task = CocoLMTextClassifier

    @property
    def limit(self) -> int:
        """The longest row in tokens, as in fine-tuning."""
        return self.model.preprocessor.sequence_length

    def classify(self, texts: tf.Tensor) -> Tensors:
        """Classifies texts [B] string."""
        return self._classify_rows(*self.reader.rows(texts))

    def classify_pairs(self, first: tf.Tensor, second: tf.Tensor) -> Tensors:
        """Classifies pairs of texts, [B] string each."""
        return self._classify_rows(*self.reader.rows(first, second))

    def classify_ids(self, token_ids: tf.Tensor) -> Tensors:
        """Classifies token ids [B, S] int32, special tokens included, padded with `<pad>`."""
        return self._classify_rows(*self.reader.rows_of_ids(token_ids))

    def classify_examples(self, inputs: tf.Tensor) -> Tensors:
        """Answers TensorFlow Serving's Classify and Regress."""
        # Inputs are [B] string, serialized `tf.Example`s with the features `first` and, of a pair,
        # `second`, of one text each; a missing text is an empty one. Outputs are `classes` [B, C]
        # string and `scores` [B, C] float32, as Classify names labels and probabilities, or
        # `outputs` [B] float32, as Regress names values.
        feature = tf.io.RaggedFeature(tf.string)
        texts = tf.io.parse_example(inputs, {"first": feature, "second": feature})
        first, second = (
            tf.strings.reduce_join(texts[name][:, :1], axis=1) for name in ("first", "second")
        )
        is_pair = texts["second"].row_lengths() > 0
        found = self._classify_rows(*self.reader.rows(first, second, is_pair))
        if "values" in found:
            return {"outputs": found["values"]}
        return {"classes": found["labels"], "scores": found["probabilities"]}

    def _classify_rows(self, rows: tf.RaggedTensor, is_truncated: tf.Tensor) -> Tensors:
        model, count = self.model, self.model.num_classes
        states = model.pooled_dense(self.encoder.first_states(rows))
        outputs = tf.cast(model.output_dense(states), tf.float32)
        if count == 1 and not model.multi_label:
            return {"values": outputs[:, 0], "truncated": is_truncated}
        if model.output_dense.activation.__name__ == "linear":
            outputs = tf.sigmoid(outputs) if model.multi_label else tf.nn.softmax(outputs)
        names = model.label_names or list(map(str, range(count)))
        found = {
            "labels": tf.tile([names], [rows.nrows(), 1]),
            "probabilities": outputs,
            "truncated": is_truncated,
        }
        if model.multi_label:
            found["assigned"] = outputs >= tf.constant(model.thresholds or [0.5] * count)
        return found
