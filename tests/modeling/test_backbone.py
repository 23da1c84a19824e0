import keras
import keras_hub
import modeling_reference as reference
import numpy as np
import pytest
import tensorflow as tf
from modeling_models import SIZES, make_auxiliary, make_backbone, make_inputs, randomize

from cocolm_tf.modeling.backbone import CocoLMBackbone


def make_random(seed: int = 0, **changes) -> CocoLMBackbone:
    backbone = make_backbone(**changes)
    randomize(backbone, seed)
    return backbone


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"relative_position_bins": 0},
        {"embedding_dim": 6},
        {"num_heads": 4, "num_layers": 1, "layer_norm_epsilon": 1e-3},
    ],
    ids=["plain", "no relative positions", "narrow embeddings", "other sizes"],
)
def test_equals_the_equations(changes):
    backbone, inputs = make_random(**changes), make_inputs()
    hidden = backbone(inputs)
    assert hidden.shape == (4, 12, 16)
    expected = reference.encode(backbone, **inputs)
    real = inputs["padding_mask"]
    assert not real.all()
    np.testing.assert_allclose(hidden.numpy()[real], expected[real], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "in_graph"),
    [
        ({}, False),
        ({"relative_position_bins": 0, "num_layers": 1}, False),
        ({"rematerialize": "block", "num_layers": 1}, True),
    ],
)
def test_states_at_positions_are_those_of_the_whole(changes, in_graph):
    backbone, inputs = make_random(**changes), make_inputs()
    positions = tf.constant([[0, 3], [2, 2], [5, 0], [1, 4]])

    def gradients(states):
        def run(inputs):
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(states(inputs) * tf.range(16.0) ** 2)
            variables = [v.value for v in backbone.trainable_variables]
            return total, [tf.convert_to_tensor(g) for g in tape.gradient(total, variables)]

        return (tf.function(run) if in_graph else run)(inputs)

    def whole(inputs):
        return tf.gather(backbone(inputs, training=True), positions, batch_dims=1)

    total, some = gradients(lambda inputs: backbone.states_at(inputs, positions, training=True))
    expected, others = gradients(whole)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    for one, other in zip(some, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_padding_has_no_influence():
    backbone, inputs = make_random(), make_inputs()
    real = inputs["padding_mask"]
    hidden = backbone(inputs).numpy()
    other = np.where(real, inputs["token_ids"], 33)
    np.testing.assert_array_equal(
        backbone(inputs | {"token_ids": other}).numpy()[real], hidden[real]
    )
    longer = {name: np.pad(value, [(0, 0), (0, 3)]) for name, value in inputs.items()}
    np.testing.assert_allclose(backbone(longer).numpy()[:, :12][real], hidden[real], atol=1e-5)


def test_a_sequence_does_not_see_its_batch():
    backbone, inputs = make_random(), make_inputs()
    alone = {name: value[2:3] for name, value in inputs.items()}
    np.testing.assert_allclose(backbone(alone)[0], backbone(inputs)[2], atol=1e-5)


def test_refuses_a_sequence_longer_than_its_positions():
    inputs = {"token_ids": np.ones([1, 17], np.int32), "padding_mask": np.ones([1, 17])}
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        make_backbone()(inputs)


def test_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="16 is not a multiple of 3 heads"):
        make_backbone(num_heads=3)


def test_dropout_follows_from_the_one_generator():
    backbone, inputs = make_random(dropout=0.2), make_inputs()
    generators = [
        layer.seed_generator
        for layer in backbone._flatten_layers()
        if hasattr(layer, "seed_generator")
    ]
    assert all(generator is backbone.seed_generator for generator in generators)
    np.testing.assert_array_equal(backbone(inputs), backbone(inputs))
    state = backbone.seed_generator.state.numpy()
    first, second = (backbone(inputs, training=True).numpy() for _ in range(2))
    assert (first != second).any()
    backbone.seed_generator.state.assign(state)
    np.testing.assert_array_equal(backbone(inputs, training=True), first)


def test_all_weights_but_unmet_rows_learn():
    backbone, inputs = make_random(), make_inputs()
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(backbone(inputs) ** 3)
    variables = backbone.trainable_variables
    for variable, gradient in zip(
        variables, tape.gradient(total, [v.value for v in variables]), strict=True
    ):
        # The softmax does not change where all logits of a query change alike.
        if "key/bias" not in variable.path:
            assert np.abs(tf.convert_to_tensor(gradient)).max() > 1e-3, variable.path


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_finite_with_float32_weights(dtype):
    backbone, inputs = make_random(dtype=dtype, dropout=0.1), make_inputs()
    hidden = backbone(inputs)
    assert hidden.dtype == dtype.removeprefix("mixed_")
    assert all(variable.dtype == "float32" for variable in backbone.trainable_variables)
    assert np.isfinite(tf.cast(backbone(inputs, training=True), tf.float32)).all()
    real = inputs["padding_mask"]
    np.testing.assert_allclose(
        tf.cast(hidden, tf.float32).numpy()[real],
        make_random()(inputs).numpy()[real],
        atol=0.3 if dtype == "mixed_bfloat16" else 0.05,
    )


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 2),
        ({"shared": "token"}, 1),
        ({"shared": "token_position"}, 2),
        ({"shared": "token_position_norm"}, 4),
    ],
    ids=str,
)
def test_shares_the_tables_of_another(options: dict, count: int):
    main = make_backbone()
    other = make_backbone(num_layers=1, embeddings_of=main, **options)
    assert other.token_embedding is main.token_embedding
    norm = main.get_layer("embeddings_norm")
    tables = [main.token_embedding.embeddings, main.position_embedding.position_embeddings]
    expected = [*tables, norm.gamma, norm.beta][:count]
    shared = {id(v) for v in main.trainable_variables} & {id(v) for v in other.trainable_variables}
    assert shared == {id(variable) for variable in expected}
    with pytest.raises(ValueError, match="shared is one of token, .* not 'norm'"):
        make_backbone(embeddings_of=main, shared="norm")


@pytest.mark.parametrize("shared", ["token", "token_position_norm"])
def test_shares_tables_of_another_width(shared: str):
    main = make_random()
    narrow = make_auxiliary(main, hidden_dim=8, intermediate_dim=8, shared=shared).backbone
    randomize(narrow, seed=1)
    assert narrow.embedding_dim == 16
    inputs = make_inputs()
    real = inputs["padding_mask"]
    np.testing.assert_allclose(
        narrow(inputs).numpy()[real], reference.encode(narrow, **inputs)[real], atol=1e-5
    )


def test_config_rebuilds_the_architecture():
    changes = {
        "embedding_dim": 6,
        "dropout": 0.3,
        "layer_norm_epsilon": 1e-3,
        "rematerialize": "attention",
    }
    backbone = make_backbone(**changes, name="named", dtype="mixed_bfloat16")
    config = backbone.get_config()
    assert {key: config[key] for key in (SIZES | changes)} == SIZES | changes
    again = CocoLMBackbone.from_config(config)
    assert again.get_config() == config
    assert [v.shape for v in again.weights] == [v.shape for v in backbone.weights]
    assert again.compute_dtype == "bfloat16"


def test_a_preset_loads_at_any_precision(tmp_path):
    backbone, inputs = make_random(dtype="mixed_bfloat16", num_layers=1), make_inputs()
    backbone.save_to_preset(str(tmp_path))
    for cls in (CocoLMBackbone, keras_hub.models.Backbone):
        assert cls.from_preset(str(tmp_path)).compute_dtype == "float32"
    again = CocoLMBackbone.from_preset(str(tmp_path), dtype="mixed_bfloat16")
    np.testing.assert_array_equal(
        tf.cast(again(inputs), tf.float32), tf.cast(backbone(inputs), tf.float32)
    )


def test_presets_and_keras_files_hold_the_model(tmp_path):
    backbone, inputs = make_random(embedding_dim=6, num_layers=1), make_inputs()
    backbone.save_to_preset(str(tmp_path / "preset"))
    backbone.save(tmp_path / "model.keras")
    for again in (
        CocoLMBackbone.from_preset(str(tmp_path / "preset")),
        keras.saving.load_model(tmp_path / "model.keras"),
    ):
        assert type(again) is CocoLMBackbone
        np.testing.assert_array_equal(again(inputs), backbone(inputs))


def parameters(vocabulary, hidden, layers, heads, intermediate, positions, bins) -> int:
    tables = vocabulary * hidden + positions * hidden + bins * heads
    attention = 4 * (hidden * hidden + hidden)
    feed_forward = 2 * hidden * intermediate + intermediate + hidden
    norm = 2 * hidden
    return tables + norm + layers * (attention + feed_forward + 2 * norm)


@pytest.mark.parametrize(("layers", "bins"), [(1, 8), (3, 0)])
def test_parameters_in_closed_form(layers, bins):
    backbone = make_backbone(num_layers=layers, relative_position_bins=bins)
    assert backbone.count_params() == parameters(60, 16, layers, 2, 24, 16, bins)


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [
        ((32_768, 768, 12, 12, 3072, 512, 32), 110),
        ((64_000, 768, 12, 12, 3072, 512, 64), 134),
        ((64_000, 1024, 24, 16, 4096, 512, 128), 367),
    ],
    ids=["base", "base++", "large++"],
)
def test_parameters_are_the_papers(sizes, millions):
    # 110.6, 134.6 and 368.4 million. The paper does not say what its numbers count, and cuts off
    # rather than rounds: of the largest, without its position table 367.8 million are left.
    assert parameters(*sizes) == pytest.approx(millions * 1e6, rel=0.006)


@pytest.mark.parametrize("changes", [{"vocabulary_size": 31}, {"max_sequence_length": 8}])
def test_refuses_tables_of_another_size(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        make_backbone(embeddings_of=make_backbone(), **changes)


@pytest.mark.parametrize(
    ("residual_init", "scales"),
    [("none", [1, 1, 1]), ("layer", [2**-0.5, 4**-0.5, 6**-0.5]), ("total", [6**-0.5] * 3)],
)
def test_what_writes_to_the_residual_sum_starts_scaled(residual_init: str, scales: list[float]):
    # Wide enough for a standard deviation to be one.
    backbone = make_backbone(
        num_layers=3, hidden_dim=64, intermediate_dim=64, residual_init=residual_init
    )
    for block, scale in zip(backbone.blocks, scales, strict=True):
        for layer in (block.attention_output, block.output_dense):
            assert np.std(layer.kernel) == pytest.approx(0.02 * scale, rel=0.06)
        for layer in (block.query, block.key, block.value, block.intermediate):
            assert np.std(layer.kernel) == pytest.approx(0.02, rel=0.06)
    assert backbone.get_config()["residual_init"] == residual_init


def test_refuses_an_unknown_residual_init():
    with pytest.raises(ValueError, match="residual_init is one of none, layer, total, not 'deep'"):
        make_backbone(residual_init="deep")
