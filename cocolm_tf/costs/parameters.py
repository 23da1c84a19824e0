"""The number of a configuration's parameters, counted without building it."""

from cocolm_tf.costs.workload import EncoderPass, encoder_passes, heads_of
from cocolm_tf.training.config import PretrainingConfig


def count_parameters(config: PretrainingConfig) -> dict[str, int]:
    """Counts the trained parameters, part by part.

    With V tokens in the vocabulary, P positions, width H:

    - `embeddings`: the main model's word and position tables, (V + P)H;
    - `main`, `auxiliary`: `encoder_parameters` of either; the auxiliary model's position table, PH,
      where it has its own, and its LayerNorm on the embeddings, 2H less, where it has not;
    - `masked_lm_head`: a dense layer from the auxiliary model's width A to the embeddings',
      AH + H, LayerNorm, 2H, and a bias, V;
    - `copy_head`: H, of each of them, and perhaps a bias, 1; `lm_head`: a bias, V;
    - `projection`: a dense layer, H^2 + H, and LayerNorm, 2H.

    See `count_frozen_parameters` for those of a frozen auxiliary model.

    Args:
        config: The run. Parts that it does without are left out.

    Returns:
        Numbers from the name of each part.

    Example:
    ```python
    parts = count_parameters(PretrainingConfig())
    parts["embeddings"] + parts["main"]  # the main model
    ```
    """
    model, passes, heads = config.model, encoder_passes(config), heads_of(config)
    width, vocabulary = model.hidden_dim, model.vocabulary_size
    bins = model.relative_position_bins
    parts = {
        "embeddings": (vocabulary + model.max_sequence_length) * width,
        "main": encoder_parameters(passes.get("main") or passes["main_corrupted"], bins),
    }
    if "auxiliary" in passes:
        own = {"token": model.max_sequence_length, "token_position": 0, "token_position_norm": -2}
        parts["auxiliary"] = encoder_parameters(passes["auxiliary"], bins)
        parts["auxiliary"] += own[config.auxiliary.shared] * width
    if heads.masked_lm:
        parts["masked_lm_head"] = _transform(heads.masked_lm, width) + vocabulary
    if heads.copy:
        parts["copy_head"] = heads.copy * width + heads.copy_bias
    if heads.lm:
        parts["lm_head"] = vocabulary
    if heads.projection:
        parts["projection"] = _transform(width, width)
    return parts


def count_frozen_parameters(config: PretrainingConfig) -> int:
    """The parameters of a frozen auxiliary model, its own word and position tables included."""
    passes = encoder_passes(config)
    if "auxiliary" in passes or "auxiliary_sampling" not in passes:
        return 0
    predictor = passes["auxiliary_sampling"]
    model, width = config.model, predictor.embedding_dim
    tables = (model.vocabulary_size + model.max_sequence_length) * width
    head = _transform(predictor.hidden_dim, width) + model.vocabulary_size
    return tables + head + encoder_parameters(predictor, model.relative_position_bins)


def encoder_parameters(encoder: EncoderPass, relative_position_bins: int) -> int:
    """The parameters of an encoder, its word and position tables aside."""
    # LayerNorm of the embeddings, 2E; where E is not H, a dense layer, EH + H; the relative
    # position table, bins * A; and in each layer `block_parameters`.
    count = 2 * encoder.embedding_dim + relative_position_bins * encoder.num_heads
    if encoder.embedding_dim != encoder.hidden_dim:
        count += _dense(encoder.embedding_dim, encoder.hidden_dim)
    return count + encoder.num_layers * block_parameters(
        encoder.hidden_dim, encoder.intermediate_dim
    )


def block_parameters(hidden_dim: int, intermediate_dim: int) -> int:
    """The parameters of a Transformer block."""
    # Query, key, value and output, 4(H^2 + H), the feed-forward network, HI + I and IH + H, and
    # twice LayerNorm, 2 * 2H.
    attention = 4 * _dense(hidden_dim, hidden_dim)
    feed_forward = _dense(hidden_dim, intermediate_dim) + _dense(intermediate_dim, hidden_dim)
    return attention + feed_forward + 2 * 2 * hidden_dim


def _transform(inputs: int, units: int) -> int:
    return _dense(inputs, units) + 2 * units


def _dense(inputs: int, units: int) -> int:
    return inputs * units + units
