"""The formulas against the tensors that the graph of a training step keeps."""

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
from cocolm_tf.costs.parameters import count_parameters
from cocolm_tf.costs.step_benchmark import random_batches
from cocolm_tf.costs.workload import encoder_passes
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig

# These give what they are given, in the same memory.
_ALIASES = ("Reshape", "Identity", "IdentityN", "ExpandDims", "Squeeze", "StopGradient")


def origin(tensor: tf.Tensor) -> tf.Tensor:
    while tensor.op.type in _ALIASES:
        tensor = tensor.op.inputs[int(tensor.name.rpartition(":")[2])]
    return tensor


def kept_tensors(config: PretrainingConfig) -> list[tf.Tensor]:
    """What the backward pass of a traced step takes from its forward pass."""
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

    with keras.StatelessScope():
        traced = gradients.get_concrete_function(next(iter(random_batches(config, count=1))))
    kept, seen, waiting = {}, set(), [output.op for output in traced.outputs]
    while waiting:
        operation = waiting.pop()
        if operation.name in seen:
            continue
        seen.add(operation.name)
        for tensor in operation.inputs:
            waiting.append(tensor.op)
            source = origin(tensor)
            if operation.name not in forward and source.op.name in forward:
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


def size(tensors: Iterable[tf.Tensor]) -> int:
    return sum(math.prod(tensor.shape) * tensor.dtype.size for tensor in tensors)


PRECISIONS = itertools.cycle(["float32", "mixed_bfloat16"])


@pytest.mark.parametrize(
    ("changes", "precision"),
    [({}, "mixed_bfloat16"), *zip(VARIANTS, PRECISIONS, strict=False)],
    ids=str,
)
def test_the_graph_keeps_what_is_counted(changes: dict, precision: str):
    config = tiny(changes, {"runtime": {"precision": precision}})
    parts = memory.step_memory(config, devices=1, rematerialize=False)
    tensors = kept_tensors(config)
    kept = [tensor for tensor in tensors if is_counted(tensor, config)]
    of_vocabulary = [tensor for tensor in kept if tensor.shape[-1] == VOCABULARY_SIZE]
    assert parts["activations"] == size(kept) - size(of_vocabulary) > 0
    assert parts["logits"] >= size(of_vocabulary)
    # Of the matrices that are copied, those of blocks and the word table are counted.
    copied = [
        tensor
        for tensor in tensors
        if is_weight(tensor) and tensor.op.type != "ReadVariableOp" and tensor.shape.rank == 2
    ]
    assert parts["copied_weights"] == size(
        tensor
        for tensor in copied
        if "transformer_block" in tensor.name or tensor.shape[0] == VOCABULARY_SIZE
    )


@pytest.mark.parametrize("changes", [VARIANTS[0], VARIANTS[3]], ids=str)
def test_the_graph_keeps_the_inputs_of_rematerialized_blocks(changes: dict):
    config = tiny(changes, {"model": {"rematerialize": True}})
    parts = memory.step_memory(config, devices=1, rematerialize=True)
    kept = [tensor for tensor in kept_tensors(config) if is_counted(tensor, config)]
    others = [tensor for tensor in kept if tensor.shape[-1] != VOCABULARY_SIZE]
    assert parts["activations"] == size(others)


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
