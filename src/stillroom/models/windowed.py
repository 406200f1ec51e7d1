"""A small causal language model with attention sinks and a sliding window.

Pre-norm transformer with learned positions, an untied output layer and a GELU feed-forward. A
query at position i sees a key at position j iff ``j <= i`` and (``j < sinks`` or
``i - j < window``); without a window it sees the whole past. The pattern is the one of
StreamingLLM (arXiv 2309.17453); ours keeps absolute positions, and the cache keeps all keys.

Importing this module makes ``AutoModelForCausalLM.from_pretrained`` know the folders it saves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from stillroom.core import Failure

HIDDEN = -3e4
"""What a hidden key's score gets: its weight e^-30000 is 0 in every precision. Not -inf, nor what
a cast to half precision would make so: a query that sees nothing (padding) must not turn NaN."""


class WindowedConfig(PretrainedConfig):
    """Sizes (the defaults make 8,269 parameters), what a query sees, and two initial scales.

    ``window``: how many last tokens are seen, the own one included; None: all of them.
    ``sinks``: how many first positions stay visible to all. Embeddings and positions start as
    N(0, range^2); linear layers and norms start as torch starts them.
    """

    model_type = "windowed"

    vocab_size: int = 37
    hidden_size: int = 24
    num_hidden_layers: int = 1
    num_attention_heads: int = 2
    intermediate_size: int = 48
    max_position_embeddings: int = 64
    window: int | None = None
    sinks: int = 0
    embedding_initializer_range: float = 0.5
    position_initializer_range: float = 0.3
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise Failure(
                f"hidden_size {self.hidden_size} cannot be shared by {self.num_attention_heads} "
                "heads; make it a multiple of num_attention_heads"
            )
        if self.window is not None and self.window < 1:
            raise Failure(f"window must be at least 1 (a token sees itself), got {self.window}")
        super().__post_init__(**kwargs)


def visible(queries: Tensor, keys: Tensor, window: int | None, sinks: int) -> Tensor:
    """Which positions see which: [B, q] and [B, k] to booleans [B, q, k].

    ``j <= i and (i - j < window or j < sinks)`` for query position i and key position j.
    """
    distance = queries.unsqueeze(-1) - keys.unsqueeze(-2)
    seen = distance >= 0
    if window is not None:
        seen &= (distance < window) | (keys < sinks).unsqueeze(-2)
    return seen


class Attention(nn.Module):
    """Multi-head attention; ``mask`` is added to the scores, None: causal in storage order."""

    def __init__(self, config: WindowedConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        batch, length, width = hidden.shape
        heads = self.config.num_attention_heads
        qkv = self.qkv_proj(hidden).view(batch, length, 3, heads, width // heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        mixed = self._mix(query, key, value, mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if self.config._attn_implementation != "eager":
            causal = mask is None and query.shape[2] > 1
            return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
        # the fused kernels have no second derivative; this has, and always comes with a mask
        assert mask is not None
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return (scores + mask).softmax(-1) @ value


class Block(GradientCheckpointingLayer):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: WindowedConfig, layer: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.input_norm = nn.LayerNorm(width)
        self.self_attn = Attention(config, layer)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, hidden: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        hidden = hidden + self.self_attn(self.input_norm(hidden), mask, cache)
        return hidden + self.mlp(self.mlp_norm(hidden))


class _Windowed(PreTrainedModel):
    """What the body and the language model have in common for loading and saving."""

    config_class = WindowedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # torch.nn.init only: transformers makes these calls skip weights that came from a file
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            positions = module is getattr(self, "embed_positions", None)
            scales = self.config.embedding_initializer_range, self.config.position_initializer_range
            nn.init.normal_(module.weight, std=scales[positions])


class WindowedModel(_Windowed):
    """The body: token ids to states after the last norm."""

    def __init__(self, config: WindowedConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """States of ``input_ids`` [B, q], the last q of the tokens that the cache then holds.

        ``attention_mask`` [B, k] marks the real ones among all k tokens, cached and new, padded on
        any side. Positions count real tokens from 0, unless ``position_ids`` [B, q] says others.
        Rows are one text each: positions that restart (packing) are not told apart.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        queries, keys = self._positions(input_ids, attention_mask, position_ids, past)
        hidden = self.embed_tokens(input_ids) + self.embed_positions(queries)
        mask = self._mask(queries, keys, attention_mask, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, mask, past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden), past_key_values=past_key_values
        )

    def _positions(
        self, ids: Tensor, real: Tensor | None, given: Tensor | None, past: int
    ) -> tuple[Tensor, Tensor]:
        """Positions of the queries [B or 1, q] and of all keys [B or 1, k]."""
        new, total, slots = ids.shape[1], past + ids.shape[1], self.config.max_position_embeddings
        if real is not None and real.shape[1] != total:
            raise Failure(
                f"attention_mask covers {real.shape[1]} tokens, but {past} cached and {new} new "
                "ones are there; pass one entry for each of them"
            )
        if given is not None and not past:
            keys = given
        elif real is not None:
            keys = (real.cumsum(-1) - 1).clamp_(min=0)
        else:
            keys = torch.arange(total, device=ids.device).unsqueeze(0)
        queries = keys[:, -new:] if given is None else given
        if total > slots and int(queries.max()) >= slots:
            raise Failure(
                f"position {int(queries.max())} is beyond the {slots} that the model has; "
                "shorten the text or raise max_position_embeddings"
            )
        return queries, keys

    def _mask(
        self, queries: Tensor, keys: Tensor, real: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """What is added to the scores, [B or 1, 1, q, k]; None where storage order says it all."""
        plain = real is None and self.config.window is None
        fused = self.config._attn_implementation != "eager"
        if plain and fused and queries.shape[1] in (1, keys.shape[1]):
            return None
        seen = visible(queries, keys, self.config.window, self.config.sinks)
        if real is not None:
            seen &= real.bool().unsqueeze(1)
        return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, HIDDEN).unsqueeze(1)


class WindowedLM(_Windowed, GenerationMixin):
    """The body and an output layer: next-token logits."""

    def __init__(self, config: WindowedConfig) -> None:
        super().__init__(config)
        self.model = WindowedModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, q, V]; the arguments are those of the body."""
        out = self.model(input_ids, attention_mask, position_ids, past_key_values, use_cache)
        return CausalLMOutputWithPast(
            logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values
        )


AutoConfig.register("windowed", WindowedConfig, exist_ok=True)
AutoModel.register(WindowedConfig, WindowedModel, exist_ok=True)
AutoModelForCausalLM.register(WindowedConfig, WindowedLM, exist_ok=True)
