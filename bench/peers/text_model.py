"""The language model of a checkpoint by itself, in transformers' own class, for peers that take no pictures."""

from __future__ import annotations

from pathlib import Path

KINDS = {"llama": "Llama", "qwen3_vl_text": "Qwen3", "lfm2": "Lfm2"}  # Qwen3-VL's text is Qwen3 where no picture is


def write_text_model(checkpoint: Path, folder: Path) -> Path:
    import torch
    import transformers

    whole = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    config = whole.config.text_config
    kind = KINDS[config.model_type]
    settings = {key: value for key, value in config.to_dict().items() if key != "model_type"}
    text = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings))
    weights = {f"model.{name}": tensor for name, tensor in whole.get_decoder().state_dict().items()}
    text.load_state_dict(weights | {"lm_head.weight": whole.lm_head.weight})
    text.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder
