"""The formulas against the products in the graph that training really runs."""

import math

import keras
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cocolm_tf.costs.flops import (
    encoder_flops,
    logit_chunk_flops,
    pretraining_flops,
    rematerialization_flops,
)
from cocolm_tf.costs.step_benchmark import random_batches
from cocolm_tf.costs.workload import masked_rows
from cocolm_tf.modeling.backbone import CocoLMBackbone
from cocolm_tf.training.build import build_pretrainer
from cocolm_tf.training.config import PretrainingConfig

TINY = {
    "model": {
        "vocabulary_size": 97,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 12,
        "intermediate_dim": 20,
        "max_sequence_length": 32,
    },
    "auxiliary": {"num_layers": 1},
    "data": {"sequence_length": 26},
    "trainer": {"batch_size": 4},
}


def tiny(**changes: dict) -> PretrainingConfig:
    config = PretrainingConfig()
    for part in (TINY, changes):
        config.override(part)
    return config


def graph_flops(function: tf.types.experimental.ConcreteFunction) -> int:
    """Sums 2mkn over the products of a traced function, forward and backward."""
    total = 0
    for operation in function.graph.get_operations():
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


@pytest.mark.parametrize("embedding_dim", [None, 7])
def test_an_encoder_takes_the_products_of_its_graph(embedding_dim: int | None):
    sizes = {"num_layers": 2, "hidden_dim": 12, "intermediate_dim": 20}
    backbone = CocoLMBackbone(
        vocabulary_size=50,
        num_heads=3,
        max_sequence_length=16,
        embedding_dim=embedding_dim,
        **sizes,
    )

    @tf.function(autograph=False)
    def forward(token_ids: tf.Tensor) -> tf.Tensor:
        return backbone({"token_ids": token_ids, "padding_mask": tf.ones_like(token_ids)})

    counted = graph_flops(forward.get_concrete_function(tf.TensorSpec([5, 11], tf.int32)))
    assert 5 * encoder_flops(11, embedding_dim=embedding_dim, **sizes) == counted > 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "auxiliary": {"hidden_dim": 8, "intermediate_dim": 16, "num_layers": 3},
            "data": {"mask_fraction": 0.3, "crop_fraction": 0.5, "sequence_length": 32},
        },
        {"auxiliary": {"sampling": "train"}, "objective": {"lm_weight": 0.0, "scl_weight": 0.0}},
        {
            "auxiliary": {"replacements": "random"},
            "objective": {"copy_weight": 0.0, "all_token_lm": True, "stop_gradient": False},
        },
        {
            "auxiliary": {"sampling": "zero_dropout"},
            "objective": {"copy_weight": 0.0, "lm_weight": 0.0, "projection": False},
        },
        {"auxiliary": {"replacements": "frozen", "num_layers": 2}},
        {"objective": {"name": "masked_lm"}},
        {"objective": {"name": "mcl"}, "mcl": {"insert_fraction": 0.3}},
        {
            "objective": {"name": "mcl"},
            "auxiliary": {"sampling": "zero_dropout"},
            "mcl": {"slm_weight": 0.0, "re_slm_weight": 0.0, "re_rtd_weight": 0.0},
        },
    ],
    ids=str,
)
def test_a_step_takes_the_products_of_its_graph(changes: dict):
    """Every part that can be left out, or done another way, is so in one of the cases."""
    config = tiny(**changes)
    assert sum(pretraining_flops(config).values()) == step_flops(config)


def test_rematerialized_blocks_run_forward_twice():
    config = tiny(auxiliary={"hidden_dim": 8}, model={"rematerialize": True})
    once = sum(pretraining_flops(config).values())
    assert once + rematerialization_flops(config) == step_flops(config)


def test_chunked_logits_are_computed_twice():
    config = tiny()
    assert logit_chunk_flops(config) == 0
    config.runtime.logit_chunk_rows = 1
    rows = 2 * masked_rows(config) * config.trainer.batch_size  # of two heads
    by_hand = 2 * rows * config.model.hidden_dim * config.model.vocabulary_size
    assert logit_chunk_flops(config) == by_hand
    config.objective.lm_weight = 0.0
    assert logit_chunk_flops(config) == by_hand / 2


def step_flops(config: PretrainingConfig) -> int:
    pretrainer = build_pretrainer(config, mask_token_id=96)

    @tf.function(autograph=False)
    def gradients(batch: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            losses, _ = pretrainer.compute(batch, training=True)
            objective = tf.add_n([losses[name] for name in pretrainer.loss_weights])
        return tape.gradient(objective, [v.value for v in pretrainer.trainable_variables])

    batch = next(iter(random_batches(config, count=1)))
    with keras.StatelessScope():
        return graph_flops(gradients.get_concrete_function(batch))


def test_parts_that_are_not_built_are_not_counted():
    all_parts = set(pretraining_flops(tiny()))
    assert all_parts == {
        "main_corrupted",
        "main_crop",
        "auxiliary",
        "mlm_head",
        "auxiliary_sampling",
        "copy_head",
        "lm_head",
        "scl_head",
    }

    def without(**changes: dict) -> set[str]:
        return all_parts - set(pretraining_flops(tiny(**changes)))

    assert without(objective={"scl_weight": 0.0}) == {"main_crop", "scl_head"}
    assert without(objective={"lm_weight": 0.0}) == {"lm_head"}
    assert without(objective={"copy_weight": 0.0, "use_copy": False}) == {"copy_head"}
    assert without(auxiliary={"sampling": "zero_dropout"}) == {"auxiliary_sampling"}
    random = {"auxiliary", "mlm_head", "auxiliary_sampling"}
    assert without(auxiliary={"replacements": "random"}) == random
    assert without(auxiliary={"replacements": "stored"}) == random


def test_rematerialization_is_not_counted():
    assert pretraining_flops(tiny(model={"rematerialize": True})) == pretraining_flops(tiny())


@given(batch=st.integers(1, 64), micro_batches=st.integers(1, 8))
def test_only_contrasting_depends_on_how_a_batch_is_cut(batch: int, micro_batches: int):
    batch *= micro_batches
    one = pretraining_flops(tiny(trainer={"batch_size": 1}))
    whole = pretraining_flops(tiny(trainer={"batch_size": batch}))
    cut = pretraining_flops(tiny(trainer={"batch_size": batch, "micro_batches": micro_batches}))
    for part in one:
        if part != "scl_head":
            assert whole[part] == cut[part] == batch * one[part]
    # Similarities grow with the square of what is compared, the projections do not.
    similarities = one["scl_head"] - 3 * 2 * 2 * 12**2
    assert cut["scl_head"] == batch * (3 * 2 * 2 * 12**2 + batch // micro_batches * similarities)
    assert cut["scl_head"] <= whole["scl_head"]


@given(length=st.integers(8, 512), layers=st.integers(1, 24))
def test_an_encoder_is_linear_in_layers_and_quadratic_in_length(length: int, layers: int):
    sizes = {"hidden_dim": 64, "intermediate_dim": 256}
    one = encoder_flops(length, 1, **sizes)
    assert encoder_flops(length, layers, **sizes) == layers * one
    assert encoder_flops(2 * length, 1, **sizes) - 2 * one == 8 * length**2 * 64


def test_the_paper_base_setting():
    """12 layers of width 768: the usual 2 FLOPs for each parameter and token, and attention."""
    parameters = 12 * (4 * 768**2 + 2 * 768 * 3072)
    attention = 12 * 4 * 512**2 * 768
    flops = pretraining_flops(PretrainingConfig())
    assert flops["main_corrupted"] == 3 * 2048 * (2 * parameters * 512 + attention)
    assert flops["lm_head"] == 3 * 2048 * 2 * 77 * 768 * 32_768
