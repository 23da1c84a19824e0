"""The signature `classify`: texts or pairs of texts to class probabilities, or to a number."""

from collections.abc import Sequence

import tensorflow as tf

from cocolm_tf.finetuning.models.text_classifier import CocoLMTextClassifier
from cocolm_tf.serving.encoder import Encoder
from cocolm_tf.serving.signature import (
    CLASSIFY,
    MAX_BYTES,
    REGRESS,
    TEXTS,
    TOKEN_IDS,
    Reader,
    Signature,
    Tensors,
    text_request,
)
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer


class Classifier:
    """The functions of the signatures `classify`, `classify_pairs` and `classify_ids`.

    Each returns

    - `labels` [B, C] string: the names of the classes; their numbers where they have none;
    - `probabilities` [B, C] float32: of the classes, in that order;
    - `truncated` [B] bool: whether the text or pair was longer than the model, and was cut as in
      fine-tuning;

    of a model of several labels a text also

    - `assigned` [B, C] bool: whether the text has the label, by the model's thresholds;

    or, of a regression model, `values` [B] float32 instead of the first two.
    """

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: CocoLMTokenizer,
        classifier: CocoLMTextClassifier,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._encoder = encoder
        self._classifier = classifier
        self.reader = Reader(tokenizer, classifier.preprocessor.sequence_length, max_bytes)
        names = classifier.label_names or [str(number) for number in range(classifier.num_classes)]
        self._names = tf.constant(names)
        self.is_multi_label = classifier.multi_label
        self.is_regression = classifier.num_classes == 1 and not self.is_multi_label
        self._thresholds = tf.constant(
            classifier.thresholds or [0.5] * classifier.num_classes, tf.float32
        )

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
        if self.is_regression:
            return {"outputs": found["values"]}
        return {"classes": found["labels"], "scores": found["probabilities"]}

    def _classify_rows(self, rows: tf.RaggedTensor, is_truncated: tf.Tensor) -> Tensors:
        classifier = self._classifier
        states = classifier.pooled_dense(self._encoder.first_states(rows))
        outputs = tf.cast(classifier.output_dense(states), tf.float32)
        if self.is_regression:
            return {"values": outputs[:, 0], "truncated": is_truncated}
        if classifier.output_dense.activation.__name__ == "linear":
            outputs = tf.sigmoid(outputs) if self.is_multi_label else tf.nn.softmax(outputs)
        assigned = {"assigned": outputs >= self._thresholds} if self.is_multi_label else {}
        return assigned | {
            "labels": tf.tile(self._names[tf.newaxis], [rows.nrows(), 1]),
            "probabilities": outputs,
            "truncated": is_truncated,
        }


def classification_signatures(classifier: Classifier) -> dict[str, Signature]:
    """The signatures `classify`, its variants for pairs and tokens, and for Classify or Regress."""
    pair = tuple(tf.TensorSpec([None], tf.string, name) for name in ("first", "second"))
    inputs = tf.TensorSpec([None], tf.string, "inputs")
    method = REGRESS if classifier.is_regression else CLASSIFY
    return {
        "classify": Signature(classifier.classify, (TEXTS,), text_request),
        "classify_pairs": Signature(classifier.classify_pairs, pair, _pair_request),
        "classify_ids": Signature(
            classifier.classify_ids, (TOKEN_IDS,), classifier.reader.ids_request
        ),
        "classify_examples": Signature(
            classifier.classify_examples, (inputs,), _example_request, method
        ),
    }


def _pair_request(texts: Sequence[str]) -> Tensors:
    return {"first": tf.constant(texts, tf.string), "second": tf.constant(texts, tf.string)}


def _example_request(texts: Sequence[str]) -> Tensors:
    examples = []
    for text in texts:
        example = tf.train.Example()
        example.features.feature["first"].bytes_list.value.append(text.encode())
        examples.append(example.SerializeToString())
    return {"inputs": tf.constant(examples)}
