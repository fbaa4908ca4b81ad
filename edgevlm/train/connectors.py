"""VLMs whose projector attends to the picture with learned queries: a family's layout with another connector.

"qformer": BLIP-2's Q-Former (Li et al. 2023, arXiv 2301.12597). "resampler": the Perceiver resampler of Flamingo
(Alayrac et al. 2022, arXiv 2204.14198) as Idefics2 has it. Both are transformers' own modules. Importing this module
registers the layout with transformers' Auto classes.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Blip2QFormerConfig,
)
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

from edgevlm.checkpoint.families import FAMILIES

MODEL_TYPE = "edgevlm_query"
_LAYOUT = next(family.composed for family in FAMILIES if MODEL_TYPE in family.model_types)
assert _LAYOUT is not None
_CONFIG, _MODEL = (getattr(transformers, name) for name in (_LAYOUT.config, _LAYOUT.model))


class QueryConfig(_CONFIG):  # type: ignore[misc, valid-type]
    """The family's, with `query_connector`: {"kind", "queries", "layers"}."""

    model_type = MODEL_TYPE
    query_connector: dict[str, Any] | None = None

    @property
    def connector(self) -> dict[str, Any]:
        assert self.query_connector is not None, "config.json has no query_connector"
        return self.query_connector


class QFormer(nn.Module):
    """Patch states (T, P, D) to (T, queries, H)."""

    def __init__(self, config: QueryConfig) -> None:
        super().__init__()
        vision, text = config.vision_config, config.text_config
        settings = config.connector
        inner = Blip2QFormerConfig(
            hidden_size=vision.hidden_size,
            encoder_hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_attention_heads=vision.num_attention_heads,
            num_hidden_layers=settings["layers"],
            cross_attention_frequency=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.queries = nn.Parameter(0.02 * torch.randn(settings["queries"], vision.hidden_size))
        self.qformer = Blip2QFormerModel._from_config(inner)
        self.proj = nn.Linear(vision.hidden_size, text.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        queries = self.queries.expand(len(states), -1, -1)
        attended = self.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
        features: Tensor = self.proj(attended)
        return features


class Resampler(nn.Module):
    """Patch states (T, P, D) to (T, queries, H)."""

    def __init__(self, config: QueryConfig) -> None:
        super().__init__()
        vision, text = config.vision_config, config.text_config
        settings = config.connector
        inner = Idefics2PerceiverConfig(
            hidden_size=text.hidden_size,
            resampler_n_latents=settings["queries"],
            resampler_depth=settings["layers"],
            resampler_n_heads=text.num_attention_heads,
            resampler_head_dim=text.hidden_size // text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            rms_norm_eps=text.rms_norm_eps,
        )
        self.proj = nn.Linear(vision.hidden_size, text.hidden_size)
        self.resampler = Idefics2PerceiverResampler._from_config(inner)
        with torch.no_grad():  # all ones, as Idefics2 starts, leaves the queries alike for ever
            self.resampler.latents.normal_(0.0, 0.02)

    def forward(self, states: Tensor) -> Tensor:
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        features: Tensor = self.resampler(context=self.proj(states), attention_mask=mask)
        return features


class QueryVLM(_MODEL):  # type: ignore[misc, valid-type]
    config_class = QueryConfig

    def __init__(self, config: QueryConfig) -> None:
        super().__init__(config)
        kinds = {"qformer": QFormer, "resampler": Resampler}
        self.model.connector = kinds[config.connector["kind"]](config)

    def _init_weights(self, module: nn.Module) -> None:
        """The connectors' own start stays; transformers would draw it again."""


AutoConfig.register(MODEL_TYPE, QueryConfig, exist_ok=True)
AutoModelForImageTextToText.register(QueryConfig, QueryVLM, exist_ok=True)
