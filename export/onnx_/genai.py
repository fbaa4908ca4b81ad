"""genai_config.json: lets onnxruntime-genai run the bundle's text side, as a pipeline of embedding and decoder.

onnxruntime-genai has no image pipeline for these graphs (its list of vision models is fixed in its library), so a
bundle's pictures need edgevlm's own runtime, whether features are packed or not.
Format: the configuration reference of onnxruntime-genai.
"""

from __future__ import annotations

from typing import Any

from edgevlm.bundle.targets import OnnxTarget
from edgevlm.inputs.spec import PromptSpec
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Attention, Decoder


def runs_text(d: Decoder) -> bool:
    """Whether genai's loop feeds the decoder all that it takes: a length, and rows as wide as the embeddings."""
    return d.is_plain and d.cache == "float32" and not (d.replaces or d.per_layer or d.deepstack)


def genai_config(spec: ModelSpec, prompt: PromptSpec, target: OnnxTarget) -> dict[str, Any]:
    """The configuration for the folder that holds tokenizer.json and, below it, the graphs' files."""
    text = spec.decoder
    (attention,) = text.blocks[0].mixers
    assert isinstance(attention, Attention) and runs_text(text)

    def stage(graph: str) -> dict[str, Any]:
        entry = target.graphs[graph]
        return {"filename": entry.file, "inputs": list(entry.inputs), "outputs": list(entry.outputs)}

    return {
        "model": {
            "type": "decoder-pipeline",
            "bos_token_id": prompt.stop_ids[0] if prompt.bos_id is None else prompt.bos_id,
            "eos_token_id": list(prompt.stop_ids),
            "pad_token_id": prompt.stop_ids[0] if prompt.pad_id is None else prompt.pad_id,
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "decoder": {
                # A file cannot test the CPU as edgevlm's runtime does: products exact on every CPU, slower with VNNI.
                "session_options": {"provider_options": [], "session.x64quantprecision": "1"},
                "head_size": attention.head_dim,
                "hidden_size": text.hidden_size,
                "num_attention_heads": attention.heads,
                "num_hidden_layers": text.num_layers,
                "num_key_value_heads": attention.kv_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "inputs_embeds": "inputs_embeds",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "pipeline": [{"embeddings": stage("embed_tokens")}, {"decoder": stage("decoder")}],
            },
        },
        # Without a bound of its own, genai allocates the cache for the whole context.
        "search": {"max_length": min(1024, text.context_length), "past_present_share_buffer": True, "do_sample": False},
    }
