"""The language model of a checkpoint by itself, as transformers' LlamaForCausalLM, for peers that take no pictures."""

from __future__ import annotations

from pathlib import Path


def write_text_model(checkpoint: Path, folder: Path) -> Path:
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer, LlamaForCausalLM

    whole = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    text = LlamaForCausalLM(whole.config.text_config)
    weights = {f"model.{name}": tensor for name, tensor in whole.model.text_model.state_dict().items()}
    text.load_state_dict(weights | {"lm_head.weight": whole.lm_head.weight})
    text.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder
