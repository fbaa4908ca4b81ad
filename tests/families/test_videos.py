"""Videos in every family that takes them: transformers' own video processors and models, on files made here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases import heavy_but
from transformers import MiniCPMV4_7Processor

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import gemma4, glm4v, internvl, lfm3_vl, linked, minicpmv4_6, qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl
from tiny.common import IMAGENET_MEAN, IMAGENET_STD, picture
from tiny.videos import on_pillow, read, video_class, write_video

sys.path.insert(0, str(Path(__file__).parent))
import test_gemma4

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate.loop import Pipeline
from edgevlm.generate.sampling import GenerateOptions
from edgevlm.inputs.layout import image_tokens, positions
from edgevlm.inputs.preprocess import normalize
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.llama.encoder import LlamaEncoder
from edgevlm.types import F32
from edgevlm.verify.bounds import bound_of

pytest.importorskip("av")
QUESTION = "What happens?"
INTERNVL = video_class("internvl", "InternVLVideoProcessor")
LLAVA_ONEVISION = video_class("llava_onevision", "LlavaOnevisionVideoProcessor")
GEMMA4 = video_class("gemma4", "Gemma4VideoProcessor")
GLM4V, GLM46V = video_class("glm4v", "Glm4vVideoProcessor"), video_class("glm46v", "Glm46VVideoProcessor")
MINICPM = video_class("minicpmv4_6", "MiniCPMV4_6VideoProcessor")
QWEN2, QWEN3 = video_class("qwen2_vl", "Qwen2VLVideoProcessor"), video_class("qwen3_vl", "Qwen3VLVideoProcessor")
OF_VIDEOS = (
    "pixel_values_videos", "video_grid_thw", "video_position_ids", "num_frames_per_video", "target_sizes_videos",
)  # fmt: skip
ONEVISION: dict[str, Any] = {"kind": "llava_onevision", "text": "qwen2"}


@dataclass(frozen=True)
class Family:
    """sampled: what transformers' call is given where its class does not sample by itself, as our defaults are."""

    name: str
    build: Callable[[Path], Any]
    processor: Callable[[Path], Any]
    videos: type
    sampled: dict[str, Any] = field(default_factory=dict)
    patch: int | None = None
    targets: tuple[str, ...] = ("coreml", "gguf")
    views: Callable[[Any], list[F32]] | None = None  # pixels of single frames, where they stand in patches
    system: str | None = None  # a message that transformers has to be given, and edgevlm knows


def averaged(said: dict[str, Any]) -> list[F32]:
    of_pictures = {"pixel_values": said["pixel_values_videos"], "image_position_ids": said["video_position_ids"]}
    return test_gemma4.views(of_pictures)


def sliced(said: dict[str, Any]) -> list[F32]:
    of_pictures = {"pixel_values": said["pixel_values_videos"], "target_sizes": said["target_sizes_videos"]}
    return minicpmv4_6.views(of_pictures)


FAMILIES = {
    family.name: family
    for family in (
        Family("qwen2_vl", qwen2_vl.build, qwen2_vl.load_processor, QWEN2, {"fps": 2.0}, 8),
        Family("qwen2_5_vl", qwen2_5_vl.build, qwen2_5_vl.load_processor, QWEN2, {"fps": 2.0}, 8),
        Family("qwen3_vl", qwen3_vl.build, qwen3_vl.load_processor, QWEN3, {}, 8),
        Family("lfm3_vl", partial(lfm3_vl.build, seed=2), lfm3_vl.load_processor, QWEN3, {}, 8, targets=("coreml",)),
        Family("qwen3_5", qwen3_5.build, qwen3_5.load_processor, QWEN3, {}, 8),
        Family("glm4v", glm4v.build, glm4v.load_processor, GLM4V, {}, 8),
        Family(
            "glm46v", partial(glm4v.build, kind="glm46v"), partial(glm4v.load_processor, kind="glm46v"), GLM46V, {}, 8
        ),
        Family(
            "gemma4", gemma4.build, gemma4.load_processor, GEMMA4, views=averaged,
        ),
        Family(
            "minicpmv4_6", minicpmv4_6.build, partial(minicpmv4_6.load_processor, videos=MINICPM), MINICPM,
            views=sliced,
        ),
        Family(
            "minicpmv4_7", partial(minicpmv4_6.build, version="4_7"),
            partial(minicpmv4_6.load_processor, kind=MiniCPMV4_7Processor, videos=MINICPM), MINICPM, views=sliced,
            targets=("coreml",),
        ),
        Family("internvl", internvl.build, internvl.load_processor, INTERNVL, {"num_frames": 8}),
        Family(
            "internvl_chat", partial(internvl.build, layout="remote"), internvl.load_processor, INTERNVL,
            {"num_frames": 8}, system=internvl.REMOTE_SYSTEM,
        ),
        Family(
            "llava_onevision", partial(linked.build, tower="siglip", layers=-1, **ONEVISION),
            partial(linked.load_processor, tower="siglip", **ONEVISION), LLAVA_ONEVISION,
            {"num_frames": 32},
        ),
    )
}  # fmt: skip


DEFAULT = FAMILIES.keys() - {"glm46v", "minicpmv4_7"}


class Made:
    def __init__(self, family: Family, place: Path) -> None:
        self.family, self.place = family, place
        self.model = family.build(place / "checkpoint")
        self.bundle: Bundle = open_bundle(self.export())
        self.processor = family.processor(place / "checkpoint")
        own = family.system is None  # otherwise the authors' code, which has no such files
        self.processor.video_processor = (
            family.videos.from_pretrained(place / "checkpoint")
            if own
            else family.videos(size={"height": 48, "width": 48}, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
        )

    def export(self, *targets: str) -> Path:
        out = self.place / "-".join(["out", *targets])
        options = ExportOptions(str(self.place / "checkpoint"), out, targets or ("onnx",), quantize="fp32", gate=False)
        return export_model(options).folder

    def inputs(self, path: Path, messages: list[dict[str, Any]], images: Any = None) -> Any:
        """transformers' arrays for a conversation with that video in it, in each of its places."""
        video, metadata = read(path)
        count = str(messages).count("'video'")
        if self.family.system is not None:
            messages = [{"role": "system", "content": [{"type": "text", "text": self.family.system}]}, *messages]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        with on_pillow():
            return self.processor(
                text=[text], images=images, videos=[video.copy() for _ in range(count)], do_sample_frames=True,
                video_metadata=[dict(metadata) for _ in range(count)], return_tensors="pt", **self.family.sampled,
            )  # fmt: skip


@pytest.fixture(scope="module", params=heavy_but(DEFAULT, FAMILIES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


def conversation(path: Path | None = None, **asked: Any) -> list[dict[str, Any]]:
    video = {"type": "video"} | ({"video": str(path), **asked} if path else {})
    return [{"role": "user", "content": [video, {"type": "text", "text": QUESTION}]}]


def pixels(made: Made, inputs: Any) -> list[F32]:
    """transformers' pixels, one array (3 * frames, H, W) for each of our views."""
    if made.family.views is not None:
        return made.family.views({name: value.numpy() for name, value in inputs.items() if torch.is_tensor(value)})
    if made.family.patch is None:
        found = inputs["pixel_values_videos"][0] if "pixel_values_videos" in inputs else inputs["pixel_values"]
        return list(found.numpy())
    (times, rows, cols), p = inputs["video_grid_thw"][0].tolist(), made.family.patch
    cells = inputs["pixel_values_videos"].numpy().reshape(times, rows // 2, cols // 2, 2, 2, 3, 2, p, p)
    return list(cells.transpose(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(times, 6, rows * p, cols * p))


def places(made: Made, said: Any) -> Any:
    """transformers' positions (3, S), and by how much those behind the prompt differ from their number."""
    takes = (
        "mm_token_type_ids", "video_grid_thw", "image_grid_thw", "second_per_grid_ts", "attention_mask", "target_sizes",
        "target_sizes_videos",
    )  # fmt: skip
    found, delta = made.model.model.get_rope_index(said["input_ids"], **{k: said[k] for k in takes if k in said})
    return found[:, 0].numpy(), int(delta)


FILES = {
    "short": {"frames": 33, "rate": 10, "size": (96, 64)},
    "long": {"frames": 250, "rate": 25, "size": (50, 120)},
    "wide": {"frames": 45, "rate": 30, "size": (320, 32)},
}


@pytest.mark.parametrize("file", heavy_but(["short"], FILES))
def test_prompts_and_pixels_are_transformers(made: Made, file: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", **FILES[file])
    said = made.inputs(path, conversation())
    ours = Pipeline(made.bundle, open_runtime(made.bundle)).prepare([], conversation(path))
    assert ours.ids.tolist() == said["input_ids"][0].tolist()
    expected = pixels(made, said)
    assert len(ours.views) == len(expected)
    for view, theirs in zip(ours.views, expected, strict=True):
        np.testing.assert_array_equal(normalize(view, made.bundle.image_spec), theirs)
    if hasattr(made.model.model, "get_rope_index"):
        expected, delta = places(made, said)
        kind = made.bundle.manifest.spec.decoder.places
        np.testing.assert_array_equal(positions(ours.layout, 3, places=kind), expected)
        after = positions(ours.layout, 3, len(ours.ids), len(ours.ids) + 2, kind)
        assert (after == len(ours.ids) + delta + np.arange(2)).all()


@pytest.mark.parametrize("made", heavy_but(DEFAULT - {"glm4v", "gemma4", "minicpmv4_6"}, FAMILIES), indirect=True)
def test_turns_with_pictures_and_videos_are_transformers(made: Made, tmp_path: Path) -> None:
    path, seen = write_video(tmp_path / "clip.mp4", **FILES["short"]), picture(60, 40)
    video, text = {"type": "video"}, {"type": "text", "text": QUESTION}

    def messages(image: dict[str, Any], video: dict[str, Any]) -> list[dict[str, Any]]:
        reply = {"role": "assistant", "content": [{"type": "text", "text": "A square moves."}]}
        return [{"role": "user", "content": [image, video, text]}, reply, {"role": "user", "content": [video, text]}]

    said = made.inputs(path, messages({"type": "image"}, video), [seen])
    asked = messages({"type": "image", "image": seen}, video | {"video": str(path)})
    ours = Pipeline(made.bundle, open_runtime(made.bundle)).prepare([], asked)
    assert ours.ids.tolist() == said["input_ids"][0].tolist()
    if hasattr(made.model.model, "get_rope_index"):
        kind = made.bundle.manifest.spec.decoder.places
        np.testing.assert_array_equal(positions(ours.layout, 3, places=kind), places(made, said)[0])


@torch.no_grad()
def answer(made: Made, inputs: Any, count: int) -> tuple[list[int], list[float]]:
    """transformers' greedy tokens, and by how much each is better than the next best."""
    stops, made.model.generation_config.eos_token_id = made.model.generation_config.eos_token_id, None
    told = {"max_new_tokens": count, "output_logits": True, "return_dict_in_generate": True}
    said = made.model.generate(**inputs, do_sample=False, **told)
    made.model.generation_config.eos_token_id = stops
    best = torch.stack(said.logits)[:, 0].topk(2).values
    return said.sequences[0, inputs["input_ids"].shape[1] :].tolist(), (best[:, 0] - best[:, 1]).tolist()


@torch.no_grad()
@pytest.mark.parametrize("made", heavy_but(["qwen2_vl", "internvl", "gemma4"], FAMILIES), indirect=True)
def test_features_and_tokens_are_transformers(made: Made, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", **FILES["short"])
    said = made.inputs(path, conversation())
    takes = {name: said[name] for name in OF_VIDEOS if name in said}
    of = made.model.model
    found = of.get_video_features(**takes) if takes else of.get_image_features(said["pixel_values"])
    levels = [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]
    rows = [torch.cat([r.reshape(-1, r.shape[-1]) for r in level]).numpy() for level in levels]
    features = np.concatenate(rows, axis=-1)
    tokens, _ = answer(made, said, 64)
    with closing(open_runtime(made.bundle)) as runtime:
        pipeline = Pipeline(made.bundle, runtime)
        prompt = pipeline.prepare([], conversation(path))
        ours = np.concatenate(image_tokens(prompt.layout, runtime.encoder.encode(prompt.views)))
        assert ours.shape == features.shape
        cosine = (ours * features).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(features, axis=-1)
        assert cosine.min() >= 0.99999
        options = GenerateOptions(max_tokens=64, ignore_stop=True)
        assert list(pipeline.answer([], conversation(path), options).ids) == tokens


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("target", "engine", "count"), [("coreml", "coreml", 32), ("gguf", "onnxruntime+llama.cpp", 64)]
)
def test_tokens_of_other_targets_are_transformers(
    made: Made, target: str, engine: str, count: int, tmp_path: Path
) -> None:
    """Up to a tie that the target's floats cannot tell."""
    if target not in made.family.targets:
        pytest.skip("llama.cpp has no such decoder")
    path = write_video(tmp_path / "clip.mp4", **FILES["short"])
    tokens, margins = answer(made, made.inputs(path, conversation()), count)
    with closing(open_runtime(open_bundle(made.export("onnx", target)), engine)) as runtime:
        options = GenerateOptions(max_tokens=count, ignore_stop=True)
        ours = list(Pipeline(made.bundle, runtime).answer([], conversation(path), options).ids)
    apart = next((i for i in range(count) if ours[i] != tokens[i]), None)
    assert apart is None or margins[apart] < bound_of(target, "float").near_tie, f"token {apart}"


@pytest.mark.parametrize("made", heavy_but(["qwen2_vl"], FAMILIES), indirect=True)
def test_what_does_not_fit_is_told_before_frames_are_read(made: Made, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", frames=600, rate=2, size=(200, 200))
    pipeline = Pipeline(made.bundle, open_runtime(made.bundle))
    with pytest.raises(EdgeVLMError, match=r"frames .*context holds .*take fewer frames"):
        pipeline.prepare([], conversation(path, max_frames=600))
    assert pipeline.prepare([], conversation(path, max_frames=2)).image_tokens


def test_llama_cpp_says_that_it_encodes_single_pictures(made: Made) -> None:
    if made.family.patch is not None:
        encoder = LlamaEncoder.__new__(LlamaEncoder)
        encoder._files, encoder._spec = SimpleNamespace(mmproj="mmproj.gguf"), made.bundle.manifest.spec
        with pytest.raises(EdgeVLMError, match="two by two: encode them with another engine"):
            encoder.encode([np.zeros((64, 64, 6), np.uint8)])
