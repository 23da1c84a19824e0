"""Parameters, FLOPs and memory by the formulas, against the model and graph of a training step."""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import keras
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tiny_configs import VARIANTS, VOCABULARY_SIZE, tiny

from cocolm_tf.costs import memory
from cocolm_tf.costs.flops import (
    logit_chunk_flops,
    pass_flops,
    pretraining_flops,
    rematerialization_flops,
)
from cocolm_tf.costs.step_benchmark import random_batches
from cocolm_tf.costs.workload import (
    EncoderPass,
    block_parameters,
    count_parameters,
    encoder_passes,
    masked_rows,
)
from cocolm_tf.modeling.pretrainer import CocoLMPretrainer
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig

# These give what they are given, in the same memory.
_ALIASES = ("Reshape", "Identity", "IdentityN", "ExpandDims", "Squeeze", "StopGradient")
PRECISIONS = itertools.cycle(["mixed_bfloat16", "float32"])


@dataclasses.dataclass
class Traced:
    """A model, and the graph of its gradients."""

    pretrainer: CocoLMPretrainer
    function: tf.types.experimental.ConcreteFunction
    forward: set[str]  # The operations of the forward pass


def trace(config: PretrainingConfig) -> Traced:
    pretrainer = build_pretrainer(config, mask_token_id=VOCABULARY_SIZE - 1)
    forward: set[str] = set()

    @tf.function(autograph=False)
    def gradients(batch: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            losses, _ = pretrainer.compute(batch, training=True)
            objective = tf.add_n([losses[name] for name in pretrainer.loss_weights])
        graph = tf.compat.v1.get_default_graph()
        forward.update(operation.name for operation in graph.get_operations())
        variables = [variable.value for variable in pretrainer.trainable_variables]
        return [tf.convert_to_tensor(gradient) for gradient in tape.gradient(objective, variables)]

    spec = random_batches(config, count=1).element_spec
    with keras.StatelessScope():
        return Traced(pretrainer, gradients.get_concrete_function(spec), forward)


def graph_flops(traced: Traced) -> int:
    """Sums 2mkn over the products of a traced function, forward and backward."""
    total = 0
    for operation in traced.function.graph.get_operations():
        # What they contain would go uncounted.
        assert operation.type not in ("Einsum", "While", "StatelessWhile", "If", "StatelessIf")
        if operation.type == "MatMul":
            inner = operation.inputs[0].shape[0 if operation.get_attr("transpose_a") else 1]
        elif operation.type.startswith("BatchMatMul"):
            inner = operation.inputs[0].shape[-2 if operation.get_attr("adj_x") else -1]
        else:
            continue
        if operation.outputs[0].shape[0] == 1:
            continue  # the gradient of a bias: a sum, written as a product
        total += 2 * math.prod(operation.outputs[0].shape) * inner
    return total


def origin(tensor: tf.Tensor) -> tf.Tensor:
    while tensor.op.type in _ALIASES:
        tensor = tensor.op.inputs[int(tensor.name.rpartition(":")[2])]
    return tensor


def kept_tensors(traced: Traced) -> list[tf.Tensor]:
    """What the backward pass takes from the forward pass."""
    kept, seen = {}, set()
    waiting = [output.op for output in traced.function.outputs]
    while waiting:
        operation = waiting.pop()
        if operation.name in seen:
            continue
        seen.add(operation.name)
        for tensor in operation.inputs:
            waiting.append(tensor.op)
            source = origin(tensor)
            if operation.name not in traced.forward and source.op.name in traced.forward:
                kept[source.name] = source
    return [tensor for tensor in kept.values() if tensor.dtype.is_floating]


def is_weight(tensor: tf.Tensor) -> bool:
    """Whether it is a variable or made of variables alone."""
    operation = origin(tensor).op
    if operation.type in ("Cast", "ConcatV2"):
        return all(is_weight(part) for part in operation.inputs)
    return operation.type in ("ReadVariableOp", "Const")


def is_counted(tensor: tf.Tensor, config: PretrainingConfig) -> bool:
    """Whether it holds more than a number a token or a vector a sequence."""
    sizes, batch, model = tensor.shape.as_list(), config.trainer.batch_size, config.model
    if is_weight(tensor) or len(sizes) < 2 or sizes[0] == 1:
        return False
    widths = [model.hidden_dim, model.intermediate_dim, model.vocabulary_size]
    widths += [config.auxiliary.hidden_dim, config.auxiliary.intermediate_dim]
    if sizes[-1] not in widths and (len(sizes) < 4 or sizes[1:3] == [1, 1]):
        return False
    is_vector = sizes[0] in (batch, 2 * batch) and len(sizes) == 2
    return not is_vector or "transformer_block" in tensor.name


def tensor_bytes(tensors: Iterable[tf.Tensor]) -> int:
    return sum(math.prod(tensor.shape) * tensor.dtype.size for tensor in tensors)


def parameters_of(variables: list) -> int:
    return sum(int(variable.value.shape.num_elements()) for variable in variables)


@pytest.mark.parametrize(("changes", "precision"), zip(VARIANTS, PRECISIONS, strict=False), ids=str)
def test_a_step_takes_what_is_counted(changes: dict, precision: str):
    """Every part that can be left out, or done another way, is so in one of the cases."""
    config = tiny(changes, {"runtime": {"precision": precision}})
    traced = trace(config)
    assert sum(pretraining_flops(config).values()) == graph_flops(traced)
    check_parameters(config, traced.pretrainer)

    parts = memory.step_memory(config, devices=1, rematerialize=False)
    tensors = kept_tensors(traced)
    kept = [tensor for tensor in tensors if is_counted(tensor, config)]
    of_vocabulary = [tensor for tensor in kept if tensor.shape[-1] == VOCABULARY_SIZE]
    assert parts["activations"] == tensor_bytes(kept) - tensor_bytes(of_vocabulary) > 0
    assert parts["logits"] >= tensor_bytes(of_vocabulary)
    # Of the matrices that are copied, those of blocks and the word table are counted.
    assert parts["copied_weights"] == tensor_bytes(
        tensor
        for tensor in tensors
        if is_weight(tensor)
        and tensor.op.type != "ReadVariableOp"
        and tensor.shape.rank == 2
        and ("transformer_block" in tensor.name or tensor.shape[0] == VOCABULARY_SIZE)
    )


def check_parameters(config: PretrainingConfig, pretrainer: CocoLMPretrainer) -> None:
    parts = count_parameters(config)
    assert sum(parts.values()) == parameters_of(pretrainer.trainable_variables)
    main = parameters_of(pretrainer.backbone.trainable_variables)
    assert parts["embeddings"] + parts["main"] == main
    if config.objective.name == "masked_lm":
        return
    heads = {
        "copy_head": pretrainer.copy_head,
        "lm_head": pretrainer.lm_head,
        "projection": pretrainer.projection,
        "masked_lm_head": pretrainer.auxiliary and pretrainer.auxiliary.head,
    }
    table = config.model.vocabulary_size * config.model.hidden_dim
    for name, head in heads.items():
        if config.auxiliary.replacements == "frozen" and name == "masked_lm_head":
            continue
        tied = table if name in ("lm_head", "masked_lm_head") else 0
        assert (name in parts) == (head is not None)
        if head is not None:
            count = parameters_of(head.trainable_variables) - tied
            # MCL may have one for each of its three courses.
            more = name == "copy_head" and getattr(pretrainer, "insert_head", None)
            assert parts[name] == (3 * count if more else count)


def test_rematerialized_blocks_keep_their_inputs_and_run_forward_twice():
    changes = VARIANTS[3]
    config = tiny(changes, {"model": {"rematerialize": True}})
    assert pretraining_flops(config) == pretraining_flops(tiny(changes)), "the model's FLOPs"
    traced = trace(config)
    once = sum(pretraining_flops(config).values())
    assert once + rematerialization_flops(config) == graph_flops(traced)
    parts = memory.step_memory(config, devices=1, rematerialize=True)
    kept = [tensor for tensor in kept_tensors(traced) if is_counted(tensor, config)]
    others = [tensor for tensor in kept if tensor.shape[-1] != VOCABULARY_SIZE]
    assert parts["activations"] == tensor_bytes(others)


# --- Parameters ---


@pytest.mark.parametrize(
    ("changes", "millions"),
    [
        ({}, 110.6),
        ({"vocabulary_size": 64_000, "relative_position_bins": 64}, 134.6),
        (
            {
                "vocabulary_size": 64_000,
                "num_layers": 24,
                "num_heads": 16,
                "hidden_dim": 1024,
                "intermediate_dim": 4096,
                "relative_position_bins": 128,
            },
            368.4,
        ),
    ],
    ids=["base", "base++", "large++"],
)
def test_the_paper_s_models(changes: dict, millions: float):
    """Table 1 has 110, 134 and 367 million, position tables left out."""
    config = PretrainingConfig()
    config.override({"model": changes})
    parts = count_parameters(config)
    assert (parts["embeddings"] + parts["main"]) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_block_of_bert_base():
    assert block_parameters(768, 3072) == 7_087_872


# --- FLOPs ---


def test_chunked_logits_are_computed_twice():
    config = tiny()
    assert logit_chunk_flops(config) == 0
    config.runtime.logit_chunk_rows = 1
    rows = 2 * masked_rows(config) * config.trainer.batch_size  # of two heads
    by_hand = 2 * rows * config.model.hidden_dim * config.model.vocabulary_size
    assert logit_chunk_flops(config) == by_hand
    config.objective.lm_weight = 0.0
    assert logit_chunk_flops(config) == by_hand / 2


def test_parts_that_are_not_built_are_not_counted():
    all_parts = set(pretraining_flops(tiny()))
    main = {"main_corrupted", "main_crop"}
    auxiliary = {"auxiliary", "mlm_head", "auxiliary_sampling"}
    assert all_parts == main | auxiliary | {"copy_head", "lm_head", "scl_head"}

    def without(**changes: dict) -> set[str]:
        return all_parts - set(pretraining_flops(tiny(changes)))

    assert without(objective={"scl_weight": 0.0}) == {"main_crop", "scl_head"}
    assert without(objective={"lm_weight": 0.0}) == {"lm_head"}
    assert without(objective={"copy_weight": 0.0, "use_copy": False}) == {"copy_head"}
    assert without(auxiliary={"sampling": "zero_dropout"}) == {"auxiliary_sampling"}
    assert without(auxiliary={"replacements": "random"}) == auxiliary
    assert without(auxiliary={"replacements": "stored"}) == auxiliary


@given(batch=st.integers(1, 64), micro_batches=st.integers(1, 8))
def test_only_contrasting_depends_on_how_a_batch_is_cut(batch: int, micro_batches: int):
    batch *= micro_batches
    one = pretraining_flops(tiny({"trainer": {"batch_size": 1}}))
    whole = pretraining_flops(tiny({"trainer": {"batch_size": batch}}))
    cut = pretraining_flops(
        tiny({"trainer": {"batch_size": batch, "micro_batches": micro_batches}})
    )
    for part in one:
        if part != "scl_head":
            assert whole[part] == cut[part] == batch * one[part]
    # Similarities grow with the square of what is compared, the projections do not.
    similarities = one["scl_head"] - 3 * 2 * 2 * 12**2
    assert cut["scl_head"] == batch * (3 * 2 * 2 * 12**2 + batch // micro_batches * similarities)
    assert cut["scl_head"] <= whole["scl_head"]


@given(length=st.integers(8, 512), layers=st.integers(1, 24))
def test_an_encoder_is_linear_in_layers_and_quadratic_in_length(length: int, layers: int):
    def flops(length: int, layers: int) -> int:
        return pass_flops(EncoderPass(length, length, layers, 1, 64, 256, 64, relative=False))

    one = flops(length, 1)
    assert flops(length, layers) == layers * one
    assert flops(2 * length, 1) - 2 * one == 8 * length**2 * 64


def test_the_paper_base_setting():
    """12 layers of width 768: the usual 2 FLOPs for each parameter and token, and attention."""
    parameters = 12 * (4 * 768**2 + 2 * 768 * 3072)
    attention = 12 * 4 * 512**2 * 768
    flops = pretraining_flops(PretrainingConfig())
    assert flops["main_corrupted"] == 3 * 2048 * (2 * parameters * 512 + attention)
    assert flops["lm_head"] == 3 * 2048 * 2 * 77 * 768 * 32_768


# --- Memory ---


def test_weights_gradients_and_moments_are_float32():
    config = tiny({"runtime": {"precision": "mixed_bfloat16"}})
    parameters = sum(count_parameters(config).values())
    parts = memory.step_memory(config, devices=1, rematerialize=False)
    assert parts["weights"] == parts["gradients"] == parts["optimizer"] / 2 == 4 * parameters
    config.trainer.micro_batches = 5
    parts = memory.step_memory(config, devices=1, rematerialize=False)
    assert parts["gradients"] == 2 * 4 * parameters


@given(
    sequences=st.integers(1, 8),
    micro_batches=st.integers(1, 8),
    devices=st.integers(1, 8),
    rematerialize=st.booleans(),
)
def test_a_device_holds_one_micro_batch(
    sequences: int, micro_batches: int, devices: int, rematerialize: bool
):
    batch = sequences * micro_batches * devices
    cut = tiny({"trainer": {"batch_size": batch, "micro_batches": micro_batches}})
    alone = tiny({"trainer": {"batch_size": sequences}})
    parts = memory.step_memory(cut, devices, rematerialize)
    of_alone = memory.step_memory(alone, 1, rematerialize)
    for part in ("activations", "logits", "working", "weights", "copied_weights"):
        assert parts[part] == of_alone[part]
    # The similarities are of all devices' vectors.
    assert parts["similarities"] == devices**2 * of_alone["similarities"]


def test_chunks_of_logits_by_hand():
    """32 sequences with 77 masked positions, 2 heads, 32,768 tokens, width 768, float32."""
    config = PretrainingConfig()
    config.runtime.logit_chunk_rows = 256
    chunks = memory.logit_bytes(config, sequences=32)
    assert chunks == 32_768 * (4 * 256 + 4 * 256 + 8 * 768)
    config.runtime.logit_chunk_rows = 32 * 77
    at_once = memory.logit_bytes(config, sequences=32)
    assert at_once == 32_768 * 3 * 4 * 32 * 77
    config.runtime.logit_chunk_rows = 0
    assert memory.logit_bytes(config, sequences=32) == at_once


def test_a_block_of_bert_base_by_hand():
    """12 heads, width 768, 512 tokens, bfloat16: 9 of 768, 2 of 3072 and 2 of 12 * 512 a token."""
    main = encoder_passes(PretrainingConfig())["main_corrupted"]
    by_hand = 2 * 512 * (9 * 768 + 2 * 3072 + 2 * 12 * 512)
    by_hand += 4 * 512 * 12  # what each softmax was divided by
    assert memory.block_activations(main, width=2, wanted=512) == by_hand


def test_attention_grows_with_the_square_of_the_length():
    def block(length: int) -> int:
        config = PretrainingConfig()
        config.override({"data": {"sequence_length": length}})
        main = encoder_passes(config)["main_corrupted"]
        return memory.block_activations(main, width=4, wanted=length)

    assert block(512) - 2 * block(256) == 4 * 2 * 12 * (512**2 - 2 * 256**2)
