"""What every builder needs: random weights that matter, saving under a layout's names, and the oracle's answer."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, ProcessorMixin

F32 = npt.NDArray[np.float32]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Answer:
    """What transformers makes of pictures and a question, in float32.

    prompt: the chat template's text, before image tokens are repeated.
    input_ids: the whole prompt's tokens.
    inputs: every array that the processor made (`pixel_values`, and `image_grid_thw` where there is one).
    features: (image tokens, D), all pictures after the projector, in the prompt's order; None without pictures.
    logits: (prompt tokens, vocabulary).
    tokens: greedy, not stopped by an end token. margins: best minus second logit of each.
    text: `tokens` up to the end token, without special tokens.
    """

    prompt: str
    input_ids: list[int]
    inputs: dict[str, npt.NDArray[Any]]
    features: F32 | None
    logits: F32
    tokens: list[int]
    margins: list[float]
    text: str


def ask(
    model: Any,
    processor: Any,
    pictures: Sequence[Image.Image],
    question: str,
    *,
    system: str | None = None,
    tokens: int = 64,
) -> Answer:
    """transformers' answer to one user message: the pictures, then the question."""
    content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return converse(model, processor, pictures, messages, tokens=tokens)


@torch.no_grad()
def converse(
    model: Any, processor: Any, pictures: Sequence[Image.Image], messages: list[dict[str, Any]], *, tokens: int = 64
) -> Answer:
    """The same to a conversation."""
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=prompt, images=list(pictures) or None, return_tensors="pt")
    features = image_features(model, inputs) if pictures else None
    logits = model(**inputs).logits[0]
    stops = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = None
    try:
        made = model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    finally:
        model.generation_config.eos_token_id = stops
    best = torch.stack(made.logits)[:, 0].topk(2).values
    answer = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    ends = [i for i, token in enumerate(answer) if token in np.atleast_1d(stops)]
    return Answer(
        prompt=prompt,
        input_ids=inputs["input_ids"][0].tolist(),
        inputs={name: value.numpy() for name, value in inputs.items()},
        features=None if features is None else features.numpy(),
        logits=logits.numpy(),
        tokens=answer,
        margins=(best[:, 0] - best[:, 1]).tolist(),
        text=processor.tokenizer.decode(answer[: ends[0]] if ends else answer, skip_special_tokens=True),
    )


@torch.no_grad()
def image_features(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(image tokens, D): the projector's output for all pictures of `inputs`, in order, and DeepStack's beside it."""
    takes = inspect.signature(model.model.get_image_features).parameters
    wanted = {name: value for name, value in inputs.items() if name in takes}
    found = model.model.get_image_features(**wanted)

    def joined(parts: Any) -> torch.Tensor:
        whole = [parts] if isinstance(parts, torch.Tensor) else list(parts)
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in whole])

    if found.pooler_output is None:  # all of them are levels, each of one of the decoder's layers
        return torch.cat([joined(level) for _, level in sorted(found.deepstack_features, key=lambda of: of[0])], dim=-1)
    # What a Granite multiplies embeddings by is inside of ours.
    scale = getattr(getattr(model.config, "text_config", None), "embedding_multiplier", 1.0)
    levels = [joined(level) for level in (found.pooler_output, *(getattr(found, "deepstack_features", None) or ()))]
    return torch.cat([levels[0] * scale, *levels[1:]], dim=-1)


@torch.no_grad()
def randomize(model: Any, seed: int, special: Sequence[int], *, head: float = 2.0) -> None:
    """Fill every parameter so that each part matters to the logits; the words win over the `special` tokens.

    Activations stay near unit size. Norm weights are near 1, layer scales near 0.6, tables and tokens near 0.5 noise.
    head: standard deviation of the logits of an untied head; a tied one's is near 2, as those of trained models. What
    an engine rounds grows with it, and the gate's bound on near-ties does not.
    """
    random = torch.Generator().manual_seed(seed)
    tied = model.config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=random)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        if "lambda_" in name:
            parameter.copy_(0.6 + 0.1 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        elif re.search(r"[qk]_norm\.weight$", name):  # heads that look at something
            parameter.copy_(1.8 + 0.2 * noise)
        elif re.search(r"norm|\bln_q\b", name) and parameter.ndim == 1:
            parameter.copy_(1 + 0.2 * noise)
        elif re.search("class_embedding|cls_token|position_embedding", name):
            parameter.copy_(0.5 * noise)
        elif "embed_tokens" in name:
            parameter.copy_((0.2 if tied else 1.0) * noise)  # a tied decoder would repeat what it reads
        elif "lm_head" in name:
            parameter.copy_(head / fan_in**0.5 * noise)
        else:
            decoder = "language_model" in name or "text_model" in name
            gains = {r"[qk]_proj": 1.7, r"o_proj|down_proj": 2.0} if decoder else {}
            gain = next((gain for pattern, gain in gains.items() if re.search(pattern, name)), 1.0)
            parameter.copy_(gain / fan_in**0.5 * noise)
    head = model.lm_head.weight
    head[list(special)] *= 0.2
    head[max(special) + 1 :] *= 0.2  # rows that pad the vocabulary: no token of the tokenizer


def padded(vocab_size: int) -> int:
    """The next multiple of 32 that leaves some rows without a token, as published vocabularies have them."""
    return (vocab_size // 32 + 1) * 32


def write_tensors(folder: Path, model: Any, name: Callable[[str], str | None] = lambda name: name) -> None:
    """model.safetensors with the in-memory names mapped by `name`; None leaves a tensor out, as does tying."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    tensors = {}
    for old, tensor in model.state_dict().items():
        new = None if old in tied else name(old)
        if new is not None:
            tensors[new] = tensor.contiguous().clone()
    write_safetensors(folder, tensors)


def write_safetensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """One model.safetensors with the header that transformers writes."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def renamed(*rules: tuple[str, str]) -> Callable[[str], str]:
    """A function that applies the first of the (pattern, replacement) `rules` that matches a name's start."""

    def rename(name: str) -> str:
        for pattern, replacement in rules:
            new, count = re.subn("^" + pattern, replacement, name)
            if count:
                return new
        return name

    return rename


def without_videos(kind: Callable[..., Any], **parts: Any) -> Any:
    """A processor that has no video processor, which would need torchvision."""
    with mock.patch.object(ProcessorMixin, "check_argument_for_proper_class"):
        return kind(**parts, video_processor=None)


def write_processor(folder: Path, name: str, images: Any, template: str, **settings: Any) -> None:
    """The processor's files as transformers 5 saves them: one processor_config.json and the template beside it."""
    nested = {"image_processor": json.loads(images.to_json_string()), "processor_class": name}
    write_json(folder / "processor_config.json", nested | settings)
    (folder / "chat_template.jinja").write_text(template, "utf-8")


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer, *, kind: str, published: bool, template: str | None, **tokens: Any
) -> None:
    """tokenizer.json and tokenizer_config.json.

    published: with the token list and the template inside, as transformers 4 wrote them, under the class name `kind`;
    otherwise as transformers 5 saves them. tokens: eos_token=..., extra_special_tokens={name: token}...
    """
    common = {"clean_up_tokenization_spaces": False, "model_max_length": 2048, **tokens}
    if not published:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **common).save_pretrained(folder)
        return
    tokenizer.save(str(folder / "tokenizer.json"))
    added = json.loads(tokenizer.to_str())["added_tokens"]
    listed = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added}
    config = {"added_tokens_decoder": listed, "tokenizer_class": kind}
    if template is not None:
        config["chat_template"] = template
    write_json(folder / "tokenizer_config.json", config | common)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A colourful RGB picture: a gradient, a disc, a bar and a little noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = random.integers(80, 256, 3)
    rgb = np.stack([x * red / max(width - 1, 1), y * green / max(height - 1, 1), (x + y) * 7 % blue], -1)
    middle = random.uniform(0.3, 0.7, 2)
    disc = (x - width * middle[0]) ** 2 + (y - height * middle[1]) ** 2 < (min(width, height) * 0.3) ** 2
    rgb[disc] = random.integers(0, 256, 3)
    rgb[height // 4 : height // 2, width * 5 // 8 : width * 7 // 8] = random.integers(0, 256, 3)
    return Image.fromarray(np.clip(rgb + random.normal(0, 6, rgb.shape), 0, 255).astype(np.uint8))
