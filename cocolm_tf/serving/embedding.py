"""The signature `embed`: texts to vectors whose inner products are cosine similarities."""

import tensorflow as tf

from cocolm_tf.modeling.heads import Transform
from cocolm_tf.serving.encoder import Encoder
from cocolm_tf.serving.signature import (
    MAX_BYTES,
    TEXTS,
    TOKEN_IDS,
    Reader,
    Signature,
    Tensors,
    text_request,
)
from cocolm_tf.tokenization.tokenizer import CocoLMTokenizer

POOLINGS = ("cls", "mean", "projection")


def embedding_signatures(
    encoder: Encoder,
    tokenizer: CocoLMTokenizer,
    pooling: str = "cls",
    projection: Transform | None = None,
    max_bytes: int = MAX_BYTES,
    dimension: int = 0,
) -> dict[str, Signature]:
    """The signatures `embed` and `embed_ids`."""
    # Both give `embeddings` [B, D] float32, vectors of unit length, and `truncated` [B] bool, true
    # where a text was longer than the model and its end went unread. `pooling` makes the vector:
    # "cls", the hidden state of `<s>`, as the paper compares sequences (section 3.3, Sequence
    # Contrastive Learning); "mean", the mean of all tokens' hidden states; "projection", `<s>`
    # after the pretrained `projection`, which the contrastive loss was computed on.
    # Of a vector the first `dimension` numbers are kept, or all for 0.
    reader = Reader(tokenizer, encoder.model.max_sequence_length, max_bytes)

    def embeddings(ids: tf.RaggedTensor) -> tf.Tensor:
        if pooling == "mean":
            vectors = tf.reduce_mean(encoder.states(ids), axis=1)
        else:
            vectors = encoder.first_states(ids)
        if pooling == "projection":
            vectors = tf.cast(projection(vectors), tf.float32)
        if dimension:
            vectors = vectors[:, :dimension]
        return tf.math.l2_normalize(vectors, axis=-1)

    def embed(texts: tf.Tensor) -> Tensors:
        rows, is_truncated = reader.rows(texts)
        return {"embeddings": embeddings(rows), "truncated": is_truncated}

    def embed_ids(token_ids: tf.Tensor) -> Tensors:
        rows, is_truncated = reader.rows_of_ids(token_ids)
        return {"embeddings": embeddings(rows), "truncated": is_truncated}

    return {
        "embed": Signature(embed, (TEXTS,), text_request),
        "embed_ids": Signature(embed_ids, (TOKEN_IDS,), reader.ids_request),
    }
