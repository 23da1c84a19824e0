import keras
import numpy as np
import pytest

from cocolm_tf.tokenization.vocabulary import load_vocabulary
from cocolm_tf.training.build import build_optimizer, build_pretrainer

MASK = 59


@pytest.fixture
def build(tiny):
    return lambda **changes: build_pretrainer(tiny(**changes), MASK)


def test_sizes_are_the_configurations(build, tiny):
    pretrainer, config = build(), tiny()
    sizes = pretrainer.backbone.get_config()
    for key, value in config.model.as_dict().items():
        assert sizes[key] == value, key
    assert pretrainer.mask_token_id == MASK
    assert pretrainer.loss_weights == {
        "mlm_loss": 1.0,
        "copy_loss": 50.0,
        "lm_loss": 1.0,
        "scl_loss": 1.0,
    }


def test_the_auxiliary_model_has_the_main_models_sizes_and_tables(build):
    pretrainer = build(model={"num_layers": 3}, auxiliary={"num_layers": 2})
    main, auxiliary = pretrainer.backbone, pretrainer.auxiliary.backbone
    assert (main.num_layers, auxiliary.num_layers) == (3, 2)
    for key in ("num_heads", "hidden_dim", "intermediate_dim", "dropout", "vocabulary_size"):
        assert getattr(auxiliary, key) == getattr(main, key)
    assert auxiliary.token_embedding is main.token_embedding
    assert auxiliary.position_embedding is main.position_embedding
    variables = pretrainer.trainable_variables
    assert len({id(variable) for variable in variables}) == len(variables)


def test_the_auxiliary_model_may_be_narrower(build):
    """ELECTRA's: a quarter of the width, and the main model's tables all the same."""
    pretrainer = build(auxiliary={"hidden_dim": 8, "num_heads": 1, "intermediate_dim": 12})
    auxiliary = pretrainer.auxiliary.backbone
    assert (auxiliary.hidden_dim, auxiliary.num_heads, auxiliary.intermediate_dim) == (8, 1, 12)
    assert auxiliary.token_embedding is pretrainer.backbone.token_embedding
    assert pretrainer.auxiliary.head.projection.bias.shape == (pretrainer.backbone.vocabulary_size,)


def test_zero_dropout_takes_the_auxiliary_models_dropout_away(build):
    pretrainer = build(auxiliary={"sampling": "zero_dropout"})
    assert pretrainer.auxiliary.backbone.dropout == 0
    assert pretrainer.backbone.dropout == 0.1
    assert build(auxiliary={"sampling": "train"}).auxiliary.backbone.dropout == 0.1


def test_random_replacements_need_no_auxiliary_model(build):
    pretrainer = build(auxiliary={"replacements": "random"})
    assert pretrainer.auxiliary is None
    assert "mlm_loss" not in pretrainer.loss_weights


@pytest.mark.parametrize(
    ("objective", "absent"),
    [
        ({"lm_weight": 0.0, "scl_weight": 0.0}, {"lm_head", "projection"}),
        ({"copy_weight": 0.0, "use_copy": False}, {"copy_head"}),
        ({"scl_weight": 0.0}, {"projection"}),
        ({"projection": False}, {"projection"}),
    ],
)
def test_a_task_of_no_weight_is_not_built(build, objective: dict, absent: set[str]):
    pretrainer = build(objective=objective)
    heads = ("copy_head", "lm_head", "projection")
    assert {head for head in heads if getattr(pretrainer, head) is None} == absent


def test_the_seed_decides_the_weights(build):
    def weights(seed: int) -> np.ndarray:
        variables = build(runtime={"seed": seed}).trainable_variables
        return np.concatenate([variable.numpy().ravel() for variable in variables])

    np.testing.assert_array_equal(weights(3), weights(3))
    assert (weights(3) != weights(4)).any()


def test_precision_is_that_of_the_computation_and_not_of_the_weights(build):
    pretrainer = build(runtime={"precision": "mixed_bfloat16"})
    for layer in (pretrainer, pretrainer.backbone, pretrainer.auxiliary.backbone):
        assert layer.compute_dtype == "bfloat16"
    assert {variable.dtype for variable in pretrainer.trainable_variables} == {"float32"}
    assert keras.config.dtype_policy().name == "float32", "the global policy is left alone"


def optimizer_of(tiny, **changes):
    config = tiny(**changes)
    pretrainer = build_pretrainer(config, MASK)
    optimizer = build_optimizer(config.optimizer, 100, pretrainer)
    optimizer.build(pretrainer.trainable_variables)
    return pretrainer, optimizer


def test_the_optimizer_is_the_configurations(tiny):
    _, optimizer = optimizer_of(
        tiny, optimizer={"learning_rate": 0.5, "warmup_steps": 10, "end_learning_rate": 0.25}
    )
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.9, 0.98, 1e-6)
    assert optimizer.weight_decay == 0.01
    for step, rate in ((9, 0.5), (10, 0.5), (55, 0.375), (100, 0.25), (200, 0.25)):
        optimizer.iterations.assign(step)
        assert float(optimizer.learning_rate) == pytest.approx(rate)


@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_what_decays(tiny, decay_embeddings: bool):
    pretrainer, optimizer = optimizer_of(tiny, optimizer={"decay_embeddings": decay_embeddings})
    decaying = {id(v) for v in pretrainer.trainable_variables if optimizer._use_weight_decay(v)}
    backbone = pretrainer.backbone
    tables = {
        id(backbone.token_embedding.embeddings),
        id(backbone.position_embedding.position_embeddings),
    }
    assert (tables <= decaying) == decay_embeddings
    for variable in pretrainer.trainable_variables:
        if id(variable) not in tables:
            matrix = len(variable.shape) > 1
            assert (id(variable) in decaying) == matrix, variable.path


def test_tokenizers_made_before_still_work(build, corpus):
    tokenizer = load_vocabulary(corpus.vocabulary)
    ids = tokenizer("some words")
    build()
    np.testing.assert_array_equal(tokenizer("some words"), ids)
