"""An encoder and its head as an ONNX graph, for measuring beside onnxruntime.

The graph is what an exporter makes of the Keras model: padded batches, every layer for every token.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cocolm_tf.finetuning.text_classifier import CocoLMTextClassifier
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.transformer import TransformerBlock
from cocolm_tf.tokenization.dictionary import PAD_TOKEN_ID

# The first with GELU as one operation is 20.
_OPSET = 20
_EXCLUDED = np.float32(-1e9)


def embedding_model(backbone: CocoLMBackbone) -> onnx.ModelProto:
    """Makes the model of `embed`: the hidden states of `<s>`, of unit length.

    Args:
        backbone: whose weights are copied.

    Returns:
        A model from `token_ids` [B, S] int64, padded with `<pad>`, to `output` [B, H] float32.

    Example:
    ```python
    onnx.save(embedding_model(CocoLMBackbone.from_preset("runs/first/preset")), "embed.onnx")
    ```
    """
    graph = _Graph()
    first = graph.first_states(backbone)
    length = graph.add("ReduceL2", first, graph.array(np.int64([1])), keepdims=1)
    return graph.model(graph.add("Div", first, length), backbone.hidden_dim)


def classification_model(classifier: CocoLMTextClassifier) -> onnx.ModelProto:
    """Makes the model of `classify`: the probabilities of the classes.

    Args:
        classifier: whose weights are copied; its output are logits.

    Returns:
        A model from `token_ids` [B, S] int64, padded with `<pad>`, to `output` [B, C] float32.

    Example:
    ```python
    classifier = CocoLMTextClassifier.from_preset("runs/reviews")
    onnx.save(classification_model(classifier), "classify.onnx")
    ```
    """
    graph = _Graph()
    first = graph.first_states(classifier.backbone)
    pooled = graph.add("Gelu", graph.dense(first, classifier.pooled_dense))
    logits = graph.dense(pooled, classifier.output_dense)
    return graph.model(graph.add("Softmax", logits, axis=-1), classifier.num_classes)


class _Graph:
    """Nodes and arrays, as they are added."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._arrays: list[onnx.TensorProto] = []

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operation with one output, whose name it returns."""
        name = f"{operation}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operation, inputs, [name], **attributes))
        return name

    def array(self, values: Any) -> str:
        """Adds a constant."""
        name = f"array_{len(self._arrays)}"
        self._arrays.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def model(self, output: str, width: int) -> onnx.ModelProto:
        """Closes the graph."""
        self._nodes.append(helper.make_node("Identity", [output], ["output"]))
        ids = helper.make_tensor_value_info("token_ids", TensorProto.INT64, ["batch", "length"])
        result = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", width])
        graph = helper.make_graph(self._nodes, "encoder", [ids], [result], self._arrays)
        opset = helper.make_opsetid("", _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        onnx.checker.check_model(model)
        return model

    def first_states(self, backbone: CocoLMBackbone) -> str:
        """The hidden states of `<s>`."""
        length = self.add("Gather", self.add("Shape", "token_ids"), self.array(np.int64(1)))
        zero, one = self.array(np.int64(0)), self.array(np.int64(1))
        positions = self.add("Range", zero, length, one)
        is_padding = self.add("Equal", "token_ids", self.array(np.int64(PAD_TOKEN_ID)))

        words = self.add("Gather", self.array(backbone.token_embedding.embeddings), "token_ids")
        table = self.array(backbone.position_embedding.position_embeddings)
        x = self.add("Add", words, self.add("Gather", table, positions))
        x = self.norm(x, backbone.get_layer("embeddings_norm"))
        padding = self.add(
            "Unsqueeze",
            self.add("Where", is_padding, self.array(_EXCLUDED), self.array(np.float32(0))),
            self.array(np.int64([1, 2])),
        )
        bias = self.add("Add", padding, self.relative_bias(backbone, positions))
        for block in backbone.blocks:
            x = self.block(x, block, bias)
        return self.add("Gather", x, zero, axis=1)

    def relative_bias(self, backbone: CocoLMBackbone, positions: str) -> str:
        """[1, heads, S, S]."""
        layer = backbone.get_layer("attention_bias")
        if not layer.bins:
            return self.array(np.zeros([1, 1, 1, 1], np.float32))
        # By the signed distance of two tokens.
        table = np.asarray(layer.table)[np.asarray(layer.buckets)]
        keys = self.add("Unsqueeze", positions, self.array(np.int64([0])))
        queries = self.add("Unsqueeze", positions, self.array(np.int64([1])))
        shift = self.array(np.int64(backbone.max_sequence_length - 1))
        distance = self.add("Add", self.add("Sub", keys, queries), shift)
        found = self.add("Gather", self.array(table), distance)
        found = self.add("Transpose", found, perm=[2, 0, 1])
        return self.add("Unsqueeze", found, self.array(np.int64([0])))

    def block(self, x: str, block: TransformerBlock, bias: str) -> str:
        """A Transformer block."""
        heads = block.num_heads
        width = block.query.kernel.shape[1]
        split = self.array(np.int64([0, 0, heads, width // heads]))
        query, key, value = (
            self.add("Reshape", self.dense(x, layer), split)
            for layer in (block.query, block.key, block.value)
        )
        query = self.add("Transpose", query, perm=[0, 2, 1, 3])
        key = self.add("Transpose", key, perm=[0, 2, 3, 1])
        value = self.add("Transpose", value, perm=[0, 2, 1, 3])
        scale = self.array(np.float32((width // heads) ** -0.5))
        logits = self.add("Mul", self.add("MatMul", query, key), scale)
        shares = self.add("Softmax", self.add("Add", logits, bias), axis=-1)
        attended = self.add("Transpose", self.add("MatMul", shares, value), perm=[0, 2, 1, 3])
        attended = self.add("Reshape", attended, self.array(np.int64([0, 0, width])))
        attended = self.dense(attended, block.attention_output)
        x = self.norm(self.add("Add", x, attended), block.attention_norm)
        hidden = self.add("Gelu", self.dense(x, block.intermediate))
        hidden = self.dense(hidden, block.output_dense)
        return self.norm(self.add("Add", x, hidden), block.output_norm)

    def dense(self, x: str, layer: Any) -> str:
        """A dense layer, without its activation."""
        product = self.add("MatMul", x, self.array(layer.kernel))
        return self.add("Add", product, self.array(layer.bias))

    def norm(self, x: str, layer: Any) -> str:
        """LayerNorm."""
        weights = self.array(layer.gamma), self.array(layer.beta)
        return self.add("LayerNormalization", x, *weights, axis=-1, epsilon=layer.epsilon)
