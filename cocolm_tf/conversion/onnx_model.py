"""An encoder and its heads as ONNX graphs, from token ids to the outputs of an export's signatures.

Batches are padded with `<pad>`, of whatever length up to the model's. The operations are those of
opset 20, the first with GELU as one operation.
"""

from collections.abc import Sequence
from typing import Any

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
POOLINGS = ("cls", "mean")
PRECISIONS = ("float32", "float16", "int8")

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
        is_real = graph.add("Unsqueeze", graph.is_real(), graph.array(np.int64([2])))
        real = graph.add("Mul", states, is_real)
        vectors = graph.add("ReduceSum", real, graph.array(np.int64([1])), keepdims=0)
    dimension = dimension or backbone.hidden_dim
    ends = (graph.array(np.int64([one])) for one in (0, dimension, 1))
    vectors = graph.add("Slice", vectors, *ends)
    length = graph.add("ReduceL2", vectors, graph.array(np.int64([1])), keepdims=1)
    width = ["batch", dimension]
    return graph.model(embeddings=(graph.add("Div", vectors, length), width))


def classification_model(classifier: CocoLMTextClassifier) -> onnx.ModelProto:
    """The model of `classify`: `token_ids` [B, S] int64 to `probabilities` [B, C] float32."""
    # Of a regression model: to `values` [B] float32.
    graph = _Graph()
    first = graph.first(graph.states(classifier.backbone))
    pooled = graph.add("Gelu", graph.dense(first, classifier.pooled_dense))
    outputs = graph.dense(pooled, classifier.output_dense)
    if classifier.num_classes == 1:
        values = graph.add("Squeeze", outputs, graph.array(np.int64([1])))
        return graph.model(values=(values, ["batch"]))
    probabilities = graph.add("Softmax", outputs, axis=-1)
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
    kernel = np.asarray(copy_head.kernel)[:, np.newaxis]
    last, three = graph.array(np.int64([2])), graph.array(np.int64([-1]))
    copy_logits = graph.add("MatMul", states, graph.array(kernel))
    if copy_head.bias is not None:
        copy_logits = graph.add("Add", copy_logits, graph.array(copy_head.bias))
    is_real = graph.add("Unsqueeze", graph.is_real(), last)
    replaced = graph.add("Mul", graph.add("Sigmoid", graph.add("Neg", copy_logits)), is_real)

    matrix = np.asarray(backbone.token_embedding.embeddings)
    logits = graph.add("MatMul", states, graph.array(np.ascontiguousarray(matrix.T)))
    logits = graph.add("Add", logits, graph.array(lm_head.bias))
    shares = graph.add("Mul", graph.add("Softmax", logits, axis=-1), replaced)
    allowed = np.ones(len(matrix), np.float32)
    allowed[list(special_token_ids)] = 0
    shares = graph.add("Mul", shares, graph.array(allowed))
    own = graph.add("Unsqueeze", "token_ids", three)
    nothing = graph.add("Mul", replaced, graph.array(np.float32(0)))
    shares = graph.add("ScatterElements", shares, own, nothing, axis=2)
    best, ids = graph.add_many(2, "TopK", shares, graph.array(np.int64([num_corrections])))
    ids = graph.add("Mul", ids, graph.add("Cast", is_real, to=TensorProto.INT64))
    by_token, wide = ["batch", "length"], ["batch", "length", num_corrections]
    return graph.model(
        probabilities=(graph.add("Squeeze", replaced, last), by_token),
        correction_ids=(ids, wide, TensorProto.INT64),
        correction_probabilities=(best, wide),
    )


def answering_model(answerer: CocoLMQuestionAnswerer) -> onnx.ModelProto:
    """The model of `answer_ids`: the logits of an answer's first and last token."""
    # From `token_ids` [B, S] int64, `<s> question </s> </s> context </s>`, to `start_logits` and
    # `end_logits` [B, S] float32; of `<s>`, that there is no answer. -10000 at padding.
    graph = _Graph()
    logits = graph.dense(graph.states(answerer.backbone), answerer.answer_logits)
    is_padding, never = graph.is_padding(), graph.array(_PADDING_LOGIT)
    outputs = {}
    for place, name in enumerate(("start_logits", "end_logits")):
        values = graph.add("Gather", logits, graph.array(np.int64(place)), axis=2)
        values = graph.add("Where", is_padding, never, values)
        outputs[name] = (values, ["batch", "length"])
    return graph.model(**outputs)


def with_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Stores and multiplies the matrices in fewer bits; inputs and outputs stay what they are."""
    # Of `PRECISIONS`, "int8" is onnxruntime's dynamic quantization: the weights in 8 bits, their
    # factors quantized to 8 bits on the way.
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
    """Nodes and arrays, as they are added."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._arrays: list[onnx.TensorProto] = []

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operation with one output, whose name it returns."""
        name = f"{operation}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operation, inputs, [name], **attributes))
        return name

    def add_many(self, count: int, operation: str, *inputs: str, **attributes: Any) -> list[str]:
        """Adds an operation with several outputs, whose names it returns."""
        names = [f"{operation}_{len(self._nodes)}_{number}" for number in range(count)]
        self._nodes.append(helper.make_node(operation, inputs, names, **attributes))
        return names

    def array(self, values: Any) -> str:
        """Adds a constant."""
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
        return self.add("Equal", "token_ids", self.array(np.int64(PAD_TOKEN_ID)))

    def is_real(self) -> str:
        """[B, S] float32, 1 or 0."""
        return self.add("Cast", self.add("Not", self.is_padding()), to=TensorProto.FLOAT)

    def first(self, states: str) -> str:
        """The hidden states of `<s>`, [B, H]."""
        return self.add("Gather", states, self.array(np.int64(0)), axis=1)

    def states(self, backbone: CocoLMBackbone) -> str:
        """The hidden states, [B, S, H]."""
        length = self.add("Gather", self.add("Shape", "token_ids"), self.array(np.int64(1)))
        zero, one = self.array(np.int64(0)), self.array(np.int64(1))
        positions = self.add("Range", zero, length, one)
        is_padding = self.is_padding()
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
        return x

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
