"""COCO-LM for PyTorch and `transformers`: the file that goes into a folder of `transformers`.

It stands alone there, and imports nothing of the package that wrote it. Modules are named as in the
released checkpoints, so that these load as well.
"""

import functools

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
)

_DEFAULTS = {
    "vocab_size": 64000,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "rel_pos_bins": 0,
    "max_rel_pos": 0,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "need_pooler": False,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}


class CocoLMConfig(PretrainedConfig):
    """The sizes of a COCO-LM encoder, under the released checkpoints' names of them."""

    model_type = "cocolm"

    def __init__(self, **kwargs) -> None:
        super().__init__(**(_DEFAULTS | kwargs))


class CocoLMPreTrainedModel(PreTrainedModel):
    """What the models here have in common."""

    config_class = CocoLMConfig
    base_model_prefix = "cocolm"
    _supports_sdpa = True
    # The heads of pretraining and the auxiliary model, which a converted checkpoint may have.
    _keys_to_ignore_on_load_unexpected = [
        r"^(binary_head|lm_head|masked_lm_head|auxiliary|classifier|qa_outputs)\.",
        r"scl_head\.",
    ]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class CocoLMModel(CocoLMPreTrainedModel):
    """The encoder: hidden states of ids."""

    # A BERT with LayerNorm after each block, and one table of relative positions, shared by all
    # layers, in the attention logits. `pooler_output` is `<s>` after the projection that the
    # contrastive loss compared, where `config.need_pooler`.

    def __init__(self, config: CocoLMConfig) -> None:
        super().__init__(config)
        self.embeddings = _Embeddings(config)
        if config.rel_pos_bins:
            self.relative_attention_bias = nn.Embedding(
                config.rel_pos_bins, config.num_attention_heads
            )
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        if config.need_pooler:
            self.scl_head = _Transform(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling | tuple:
        """Takes ids [B, S] and their mask, 1 at real tokens; there are no segments."""
        if attention_mask is None:
            if input_ids is None:
                attention_mask = torch.ones(inputs_embeds.shape[:2], device=inputs_embeds.device)
            else:
                attention_mask = input_ids != self.config.pad_token_id
        x = self.embeddings(input_ids, inputs_embeds, attention_mask)
        bias = self._bias(attention_mask, x.dtype)
        hidden_states = [x]
        for layer in self.encoder.layer:
            x = layer(x, bias)
            hidden_states.append(x)
        output = BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=self.scl_head(x[:, 0]) if self.config.need_pooler else None,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )
        return output.to_tuple() if return_dict is False else output

    def _bias(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the attention logits: [B, heads, S, S], or [B, 1, 1, S]."""
        # float16 has no -1e9; either value leaves padding no weight after the softmax.
        excluded = -3e4 if dtype == torch.float16 else -1e9
        padding = ((mask == 0).to(dtype) * excluded)[:, None, None, :]
        config = self.config
        if not config.rel_pos_bins:
            return padding
        buckets = _buckets(config.rel_pos_bins, config.max_rel_pos, config.max_position_embeddings)
        places = np.arange(mask.shape[1])
        distances = places[None, :] - places[:, None] + config.max_position_embeddings - 1
        rows = torch.from_numpy(buckets[distances]).to(mask.device)
        return padding + self.relative_attention_bias(rows).permute(2, 0, 1)[None].to(dtype)


class CocoLMForSequenceClassification(CocoLMPreTrainedModel):
    """A classifier, or with one class a regression, on the hidden state of `<s>`."""

    def __init__(self, config: CocoLMConfig) -> None:
        super().__init__(config)
        self.cocolm = CocoLMModel(config)
        self.classifier = nn.Module()
        self.classifier.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier.out_proj = nn.Linear(config.hidden_size, config.num_labels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Gives `logits` [B, num_labels], and with `labels` [B] the loss."""
        states = self.cocolm(input_ids, attention_mask, **kwargs).last_hidden_state
        x = self.classifier.dense(self.dropout(states[:, 0]))
        logits = self.classifier.out_proj(self.dropout(nn.functional.gelu(x)))
        loss = None
        if labels is not None and self.config.num_labels == 1:
            loss = nn.functional.mse_loss(logits[:, 0], labels.to(logits.dtype))
        elif labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class CocoLMForQuestionAnswering(CocoLMPreTrainedModel):
    """Where in `<s> question </s> </s> context </s>` the answer begins and ends."""

    def __init__(self, config: CocoLMConfig) -> None:
        super().__init__(config)
        self.cocolm = CocoLMModel(config)
        self.qa_outputs = nn.Module()
        for name in ("start_logits", "end_logits"):
            head = nn.Module()
            head.dense = nn.Linear(config.hidden_size, 1)
            setattr(self.qa_outputs, name, head)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """Gives both logits [B, S], very negative at padding, and with positions [B] the loss."""
        states = self.cocolm(input_ids, attention_mask, **kwargs).last_hidden_state
        if attention_mask is None:
            attention_mask = input_ids != self.config.pad_token_id
        start, end = (
            head.dense(states)[..., 0].masked_fill(attention_mask == 0, -1e4)
            for head in (self.qa_outputs.start_logits, self.qa_outputs.end_logits)
        )
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = nn.functional.cross_entropy(start, start_positions)
            loss = (loss + nn.functional.cross_entropy(end, end_positions)) / 2
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end)


class _Embeddings(nn.Module):
    """Words and positions."""

    def __init__(self, config: CocoLMConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        x = self.LayerNorm(words + self.position_embeddings.weight[: words.shape[1]])
        return self.dropout(x) * attention_mask[..., None].to(x.dtype)


class _Layer(nn.Module):
    """A Transformer block."""

    def __init__(self, config: CocoLMConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.rate = config.hidden_dropout_prob
        self.attention = nn.Module()
        self.attention.self_attn = nn.Module()
        # Query, key and value, one after the other.
        self.attention.self_attn.in_proj = nn.Linear(width, 3 * width)
        self.attention.self_attn.out_proj = nn.Linear(width, width)
        self.attention.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(width, inner)
        self.output = nn.Module()
        self.output.dense = nn.Linear(inner, width)
        self.output.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        attention = self.attention.self_attn
        split = attention.in_proj(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=self.rate if self.training else 0.0
        )
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        x = self.attention.LayerNorm(x + self.dropout(attention.out_proj(attended)))
        hidden = nn.functional.gelu(self.intermediate.dense(x))
        return self.output.LayerNorm(x + self.dropout(self.output.dense(hidden)))


class _Transform(nn.Module):
    """Dense, GELU, LayerNorm."""

    def __init__(self, config: CocoLMConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(nn.functional.gelu(self.dense(x)))


@functools.lru_cache
def _buckets(bins: int, max_distance: int, max_positions: int) -> np.ndarray:
    """The row of the table for each distance key - query, from 1 - max_positions upwards."""
    # Half of the bins serve each direction: near distances have one each, far ones share bins whose
    # width grows with the logarithm of the distance. The smallest that occurs is 0.
    half, exact = bins // 2, bins // 4
    distance = np.arange(1 - max_positions, max_positions)
    magnitude = np.abs(distance)
    # float32: rounding decides at the edges of the bins.
    ratio = np.log(np.maximum(magnitude, exact).astype(np.float32) / np.float32(exact))
    ratio /= np.float32(np.log((max_distance - 1) / exact))
    far = exact + np.ceil(ratio * np.float32(half - 1 - exact)).astype(np.int64)
    bucket = np.where(magnitude < exact, magnitude, np.minimum(half - 1, far))
    signed = np.sign(distance) * bucket
    return signed - signed.min()
