"""An encoder and its heads as ONNX graphs, from token ids to the outputs of an export's signatures.

Batches are padded with `<pad>`, of whatever length up to the model's. The operations are those of
opset 20, the first with GELU as one operation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cocolm_tf.finetuning.models.question_answerer import CocoLMQuestionAnswerer
from cocolm_tf.finetuning.models.text_classifier import CocoLMTextClassifier
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.modeling.heads import CopyHead, TiedProjection
from cocolm_tf.modeling.transformer import TransformerBlock
from cocolm_tf.tokenization.dictionary import PAD_TOKEN_ID

OPSET = 20

_EXCLUDED = np.float32(-1e9)
# The logit of padding.
_PADDING_LOGIT = np.float32(-1e4)


def embedding_model(
    backbone: CocoLMBackbone, pooling: str = "cls", dimension: int = 0
) -> onnx.ModelProto:
    """The model of `embed`: `token_ids` [B, S] int64 to unit vectors, `embeddings` [B, D]."""
    # `pooling` is "cls", the hidden state of `<s>`, or "mean", that of all tokens. Of a vector the
    # first `dimension` numbers are kept, or all for 0.
    graph = _Graph()
    states = graph.states(backbone)
    if pooling == "cls":
        vectors = graph.first(states)
    else:
        # The sum instead of the mean: normalizing removes the factor.
        real = graph.Mul(states, graph.Unsqueeze(graph.is_real(), [2]))
        vectors = graph.ReduceSum(real, [1], keepdims=0)
    dimension = dimension or backbone.hidden_dim
    vectors = graph.Slice(vectors, [0], [dimension], [1])
    length = graph.ReduceL2(vectors, [1], keepdims=1)
    return graph.model(embeddings=(graph.Div(vectors, length), ["batch", dimension]))


def classification_model(classifier: CocoLMTextClassifier) -> onnx.ModelProto:
    """The model of `classify`: `token_ids` [B, S] int64 to `probabilities` [B, C] float32."""
    # Of a regression model: to `values` [B] float32.
    graph = _Graph()
    first = graph.first(graph.states(classifier.backbone))
    pooled = graph.Gelu(graph.dense(first, classifier.pooled_dense))
    outputs = graph.dense(pooled, classifier.output_dense)
    if classifier.num_classes == 1:
        return graph.model(values=(graph.Squeeze(outputs, [1]), ["batch"]))
    probabilities = graph.Softmax(outputs, axis=-1)
    return graph.model(probabilities=(probabilities, ["batch", classifier.num_classes]))


def correction_model(
    backbone: CocoLMBackbone,
    copy_head: CopyHead,
    lm_head: TiedProjection,
    special_token_ids: Sequence[int],
    num_corrections: int = 5,
) -> onnx.ModelProto:
    """The model of `correct_ids`: which tokens are not original, and their corrections."""
    # From `token_ids` [B, S] int64 to `probabilities` [B, S] float32, that the token is not the
    # original; `correction_ids` [B, S, K] int64, the most probable first, none of
    # `special_token_ids`; and `correction_probabilities` [B, S, K] float32. Zeros at padding.
    graph = _Graph()
    states = graph.states(backbone)
    copy_logits = graph.MatMul(states, np.asarray(copy_head.kernel)[:, np.newaxis])
    if copy_head.bias is not None:
        copy_logits = graph.Add(copy_logits, copy_head.bias)
    is_real = graph.Unsqueeze(graph.is_real(), [2])
    replaced = graph.Mul(graph.Sigmoid(graph.Neg(copy_logits)), is_real)

    matrix = np.asarray(backbone.token_embedding.embeddings)
    logits = graph.MatMul(states, np.ascontiguousarray(matrix.T))
    logits = graph.Add(logits, lm_head.bias)
    shares = graph.Mul(graph.Softmax(logits, axis=-1), replaced)
    allowed = np.ones(len(matrix), np.float32)
    allowed[list(special_token_ids)] = 0
    shares = graph.Mul(shares, allowed)
    own = graph.Unsqueeze("token_ids", [-1])
    shares = graph.ScatterElements(shares, own, graph.Mul(replaced, np.float32(0)), axis=2)
    best, ids = graph.add("TopK", shares, [num_corrections], num_outputs=2)
    ids = graph.Mul(ids, graph.Cast(is_real, to=TensorProto.INT64))
    by_token, wide = ["batch", "length"], ["batch", "length", num_corrections]
    return graph.model(
        probabilities=(graph.Squeeze(replaced, [2]), by_token),
        correction_ids=(ids, wide, TensorProto.INT64),
        correction_probabilities=(best, wide),
    )


def answering_model(answerer: CocoLMQuestionAnswerer) -> onnx.ModelProto:
    """The model of `answer_ids`: the logits of an answer's first and last token."""
    # From `token_ids` [B, S] int64, `<s> question </s> </s> context </s>`, to `start_logits` and
    # `end_logits` [B, S] float32; of `<s>`, that there is no answer. -10000 at padding.
    graph = _Graph()
    logits = graph.dense(graph.states(answerer.backbone), answerer.answer_logits)
    is_padding, outputs = graph.is_padding(), {}
    for place, name in enumerate(("start_logits", "end_logits")):
        values = graph.Gather(logits, place, axis=2)
        outputs[name] = (graph.Where(is_padding, _PADDING_LOGIT, values), ["batch", "length"])
    return graph.model(**outputs)


def with_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Stores and multiplies the matrices in fewer bits; inputs and outputs stay what they are."""
    # `precision` is "float32", "float16" or "int8", onnxruntime's dynamic quantization: the weights
    # in 8 bits, their factors quantized to 8 bits on the way.
    if precision == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        # What exceeds float16's range, and sums that it would round, stay float32.
        stays = ["LayerNormalization", "Softmax", "ReduceL2", "Div", "TopK", "Where"]
        return convert_float_to_float16(model, keep_io_types=True, op_block_list=stays)
    if precision == "int8":
        import tempfile

        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            quantize_dynamic(model, file.name, weight_type=QuantType.QInt8, per_channel=True)
            return onnx.load(file.name)
    return model


class _Graph:
    """Nodes and arrays, as they are added. Every operation of ONNX is a method, as `Add`."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._arrays: list[onnx.TensorProto] = []

    def __getattr__(self, operation: str) -> Callable[..., str]:
        def add(*inputs: Any, **attributes: Any) -> str:
            (output,) = self.add(operation, *inputs, **attributes)
            return output

        return add

    def add(
        self, operation: str, *inputs: Any, num_outputs: int = 1, **attributes: Any
    ) -> list[str]:
        """Adds an operation, and returns its outputs' names; inputs are names or constants."""
        names = [value if isinstance(value, str) else self._constant(value) for value in inputs]
        outputs = [f"{operation}_{len(self._nodes)}_{number}" for number in range(num_outputs)]
        self._nodes.append(helper.make_node(operation, names, outputs, **attributes))
        return outputs

    def _constant(self, values: Any) -> str:
        name = f"array_{len(self._arrays)}"
        self._arrays.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def model(self, **outputs: tuple) -> onnx.ModelProto:
        """Closes the graph: outputs by name, with their shapes and, if not float32, types."""
        results = []
        for name, (value, shape, *type_) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [name]))
            kind = type_[0] if type_ else TensorProto.FLOAT
            results.append(helper.make_tensor_value_info(name, kind, shape))
        ids = helper.make_tensor_value_info("token_ids", TensorProto.INT64, ["batch", "length"])
        graph = helper.make_graph(self._nodes, "encoder", [ids], results, self._arrays)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        onnx.checker.check_model(model)
        return model

    def is_padding(self) -> str:
        """[B, S] bool."""
        return self.Equal("token_ids", PAD_TOKEN_ID)

    def is_real(self) -> str:
        """[B, S] float32, 1 or 0."""
        return self.Cast(self.Not(self.is_padding()), to=TensorProto.FLOAT)

    def first(self, states: str) -> str:
        """The hidden states of `<s>`, [B, H]."""
        return self.Gather(states, 0, axis=1)

    def states(self, backbone: CocoLMBackbone) -> str:
        """The hidden states, [B, S, H]."""
        length = self.Gather(self.Shape("token_ids"), 1)
        positions = self.Range(0, length, 1)
        words = self.Gather(backbone.token_embedding.embeddings, "token_ids")
        position_vectors = self.Gather(backbone.position_embedding.position_embeddings, positions)
        x = self.norm(self.Add(words, position_vectors), backbone.get_layer("embeddings_norm"))
        excluded = self.Where(self.is_padding(), _EXCLUDED, np.float32(0))
        bias = self.Unsqueeze(excluded, [1, 2])
        if backbone.relative_position_bins:
            bias = self.Add(bias, self.relative_bias(backbone, positions))
        for block in backbone.blocks:
            x = self.block(x, block, bias)
        return x

    def relative_bias(self, backbone: CocoLMBackbone, positions: str) -> str:
        """[1, heads, S, S]."""
        layer = backbone.get_layer("attention_bias")
        # By the signed distance of two tokens.
        table = np.asarray(layer.table)[np.asarray(layer.buckets)]
        distance = self.Sub(self.Unsqueeze(positions, [0]), self.Unsqueeze(positions, [1]))
        found = self.Gather(table, self.Add(distance, backbone.max_sequence_length - 1))
        return self.Unsqueeze(self.Transpose(found, perm=[2, 0, 1]), [0])

    def block(self, x: str, block: TransformerBlock, bias: str) -> str:
        """A Transformer block."""
        heads, width = block.num_heads, block.query.kernel.shape[1]
        query, key, value = (
            self.Reshape(self.dense(x, layer), [0, 0, heads, width // heads])
            for layer in (block.query, block.key, block.value)
        )
        query, value = (self.Transpose(part, perm=[0, 2, 1, 3]) for part in (query, value))
        logits = self.MatMul(query, self.Transpose(key, perm=[0, 2, 3, 1]))
        logits = self.Mul(logits, np.float32((width // heads) ** -0.5))
        shares = self.Softmax(self.Add(logits, bias), axis=-1)
        attended = self.Transpose(self.MatMul(shares, value), perm=[0, 2, 1, 3])
        attended = self.dense(self.Reshape(attended, [0, 0, width]), block.attention_output)
        x = self.norm(self.Add(x, attended), block.attention_norm)
        hidden = self.Gelu(self.dense(x, block.intermediate))
        return self.norm(self.Add(x, self.dense(hidden, block.output_dense)), block.output_norm)

    def dense(self, x: str, layer: keras.layers.Dense) -> str:
        """A dense layer, without its activation."""
        return self.Add(self.MatMul(x, layer.kernel), layer.bias)

    def norm(self, x: str, layer: keras.layers.LayerNormalization) -> str:
        """LayerNorm."""
        return self.LayerNormalization(x, layer.gamma, layer.beta, axis=-1, epsilon=layer.epsilon)
