"""The encoder: a BERT-style Transformer with relative positions."""

import json
import os
from typing import Any, Self

import keras
import keras_hub
import tensorflow as tf

from cocolm_tf import files
from cocolm_tf.modeling.transformer import (
    SHARED_EMBEDDINGS,
    AttentionBias,
    Dropout,
    ResidualNorm,
    TransformerBlock,
    rematerialize_mode,
    residual_scale,
)


@keras.saving.register_keras_serializable(package="cocolm_tf")
class CocoLMBackbone(keras_hub.models.Backbone):
    """COCO-LM's Transformer encoder (paper, sections 3.3 and 4).

    BERT's architecture with learned absolute positions, LayerNorm after each residual sum, exact
    GELU and no segment embedding, plus a relative position bias shared by all layers. The main
    model and the auxiliary model are both of this class; the auxiliary is built with
    `embeddings_of=main`, and then has the main model's word and position tables as its own.

    Args:
        vocabulary_size: Rows of the word table.
        num_layers: Transformer blocks.
        num_heads: Attention heads; divides `hidden_dim`.
        hidden_dim: Width of the hidden states.
        intermediate_dim: Width of the feed-forward networks' hidden layers.
        dropout: Rate on the embeddings, the attention probabilities and the sublayers.
        max_sequence_length: Rows of the position table.
        relative_position_bins: Rows of the relative position table; 0 for none.
        relative_position_max_distance: The distance from which on all pairs share a row.
        neighbor_bias: The initial relative position bias between a token and one neighbor, a
            different one for each head. 0 is the paper's; with 4 to 8 a model starts out attending
            next to each token, and learns from its first thousand steps what otherwise takes many
            thousands.
        embedding_dim: Width of the word and position tables, None for `hidden_dim`; where it
            differs, a dense layer follows them.
        layer_norm_epsilon: Added to the variances.
        initializer_range: Standard deviation of the normal distribution that every matrix
            starts from. 0.02 suits a width of 768; narrow models learn sooner from more.
        residual_init: What the matrices that write to the residual sum, attention's output and
            the feed-forward network's, start with: "none", the same; "layer", divided by
            sqrt(2 l) in layer l, counted from 1; "total", by sqrt(2 `num_layers`) in each.
        rematerialize: What is computed again in the backward pass to save memory: "none";
            "attention", of every two positions (one product and a softmax more); or "block" (least
            memory, about a third more time). True and False are the last and the first.
        attention: Which kernel computes attention, "xla" or "cudnn"; see
            `cocolm_tf.ops.attention`. Not part of the configuration: a preset runs anywhere.
        dtype: Dtype or policy of the computation, as in Keras.
        embeddings_of: Another `CocoLMBackbone` whose word and position tables this one shares, or
            None. Not part of the configuration: a shared table is saved with its owner.
        shared: what it shares of that one: "token", its word table alone; "token_position", both
            tables; "token_position_norm", the LayerNorm on their sum, too.

    Call arguments:
        inputs: A dict of `token_ids` [B, S] int32 and `padding_mask` [B, S], non-zero at real
            tokens.

    Returns:
        Hidden states [B, S, hidden_dim]. The first is the sequence's representation.

    Raises:
        ValueError: If the sizes do not fit each other.

    Example:
    ```python
    backbone = CocoLMBackbone(
        vocabulary_size=1000, num_layers=2, num_heads=2, hidden_dim=32, intermediate_dim=64
    )
    backbone({"token_ids": tf.ones([1, 8], tf.int32), "padding_mask": tf.ones([1, 8])})
    ```
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        dropout: float = 0.1,
        max_sequence_length: int = 512,
        relative_position_bins: int = 32,
        relative_position_max_distance: int = 128,
        neighbor_bias: float = 0.0,
        embedding_dim: int | None = None,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        residual_init: str = "none",
        rematerialize: str | bool = "none",
        attention: str = "xla",
        dtype: Any = None,
        embeddings_of: Self | None = None,
        shared: str = "token_position",
        **kwargs: Any,
    ) -> None:
        embedding_dim = embedding_dim or hidden_dim
        # One generator for all layers: a training step sets its state and so decides every mask.
        seed_generator = keras.random.SeedGenerator()

        def initializer() -> keras.initializers.Initializer:
            return keras.initializers.RandomNormal(stddev=initializer_range)

        if shared not in SHARED_EMBEDDINGS:
            raise ValueError(f"shared is one of {', '.join(SHARED_EMBEDDINGS)}, not {shared!r}.")

        # === Layers ===
        if embeddings_of is None:
            token_embedding = keras_hub.layers.ReversibleEmbedding(
                vocabulary_size,
                embedding_dim,
                embeddings_initializer=initializer(),
                dtype=dtype,
                name="token_embedding",
            )
        else:
            for name, size in (
                ("vocabulary_size", vocabulary_size),
                ("max_sequence_length", max_sequence_length),
            ):
                if size != getattr(embeddings_of, name):
                    raise ValueError(f"{name}={size} is not that of the model that embeds.")
            token_embedding = embeddings_of.token_embedding
            embedding_dim = token_embedding.output_dim
        if embeddings_of is None or shared == "token":
            position_embedding = keras_hub.layers.PositionEmbedding(
                max_sequence_length,
                initializer=initializer(),
                dtype=dtype,
                name="position_embedding",
            )
        else:
            position_embedding = embeddings_of.position_embedding
        if embeddings_of is None or shared != "token_position_norm":
            embeddings_norm = ResidualNorm(
                epsilon=layer_norm_epsilon, dtype=dtype, name="embeddings_norm"
            )
        else:
            embeddings_norm = embeddings_of.get_layer("embeddings_norm")
        embeddings_dropout = Dropout(
            dropout, seed_generator, dtype=dtype, name="embeddings_dropout"
        )
        attention_bias = AttentionBias(
            num_heads,
            relative_position_bins,
            relative_position_max_distance,
            max_sequence_length,
            neighbor_bias,
            dtype=dtype,
            name="attention_bias",
        )
        blocks = [
            TransformerBlock(
                num_heads,
                intermediate_dim,
                dropout,
                seed_generator,
                layer_norm_epsilon,
                initializer_range,
                rematerialize,
                attention,
                residual_scale(residual_init, i + 1, num_layers),
                dtype=dtype,
                name=f"transformer_block_{i}",
            )
            for i in range(num_layers)
        ]
        embeddings_projection = None
        if embedding_dim != hidden_dim:
            embeddings_projection = keras.layers.Dense(
                hidden_dim,
                kernel_initializer=initializer(),
                dtype=dtype,
                name="embeddings_projection",
            )

        def encode(
            inputs: dict[str, tf.Tensor],
            positions: tf.Tensor | None = None,
            training: bool | None = None,
        ) -> tf.Tensor:
            padding_mask = inputs["padding_mask"]
            x = token_embedding(inputs["token_ids"])
            x = embeddings_norm(x, position_embedding(x))
            x = embeddings_dropout(x, training=training)
            if embeddings_projection:
                x = embeddings_projection(x)
            x = x * keras.ops.cast(keras.ops.expand_dims(padding_mask, -1), x.dtype)
            padding, relative = attention_bias(padding_mask)
            for block in blocks[:-1]:
                x = block(x, padding, relative, training=training)
            return blocks[-1](x, padding, relative, positions, training=training)

        # === Functional model ===
        inputs = {
            name: keras.Input((None,), dtype="int32", name=name)
            for name in ("token_ids", "padding_mask")
        }
        super().__init__(inputs=inputs, outputs=encode(inputs), dtype=dtype, **kwargs)
        self._encode = encode

        # === Configuration ===
        self.token_embedding = token_embedding
        self.position_embedding = position_embedding
        self.blocks = blocks
        self.seed_generator = seed_generator
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.max_sequence_length = max_sequence_length
        self.relative_position_bins = relative_position_bins
        self.relative_position_max_distance = relative_position_max_distance
        self.neighbor_bias = neighbor_bias
        self.embedding_dim = embedding_dim
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.residual_init = residual_init
        self.rematerialize = rematerialize_mode(rematerialize)

    def states_at(
        self, inputs: dict[str, tf.Tensor], positions: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        """The hidden states at some positions, for which alone the last layer is computed.

        Args:
            inputs: As for a call.
            positions: [B, M] int32.
            training: Whether dropout acts.

        Returns:
            [B, M, hidden_dim].

        Example:
        ```python
        inputs = {"token_ids": tf.ones([1, 8], tf.int32), "padding_mask": tf.ones([1, 8])}
        backbone.states_at(inputs, tf.zeros([1, 1], tf.int32))  # the sequence's representation
        ```
        """
        return self._encode(inputs, positions, training)

    def get_config(self) -> dict[str, Any]:
        """The arguments that rebuild this architecture."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "max_sequence_length": self.max_sequence_length,
            "relative_position_bins": self.relative_position_bins,
            "relative_position_max_distance": self.relative_position_max_distance,
            "neighbor_bias": self.neighbor_bias,
            "embedding_dim": self.embedding_dim,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_range": self.initializer_range,
            "residual_init": self.residual_init,
            "rematerialize": self.rematerialize,
        }

    def save_to_preset(self, preset_dir: str, max_shard_size: float = 10) -> None:
        """Saves a preset, as KerasHub does, whose weights load at any precision.

        The precision of the computation, such as mixed precision, is not saved: `from_preset` takes
        Keras's policy of the process, or `dtype`.

        Args:
            preset_dir: The folder.
            max_shard_size: In GB, of a file of weights.

        Example:
        ```python
        backbone.save_to_preset("runs/encoder")
        CocoLMBackbone.from_preset("runs/encoder", dtype="mixed_bfloat16")
        ```
        """
        super().save_to_preset(preset_dir, max_shard_size)
        policy = self.dtype_policy
        if policy.name.startswith("mixed_"):
            # KerasHub loads any float type at the policy of the process, but fails on these.
            path = os.path.join(preset_dir, "config.json")
            config = json.loads(files.read_text(path))
            stored = keras.DTypePolicy(policy.variable_dtype)
            config["config"]["dtype"] = keras.dtype_policies.serialize(stored)
            files.write_text(path, json.dumps(config, indent=4))
