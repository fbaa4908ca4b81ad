"""Videos made here: which frames, how large and with which words, against transformers' own video code."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
from transformers.video_utils import VideoMetadata, read_video_pyav

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny.videos import video_class, write_video

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.cli import main
from edgevlm.errors import EdgeVLMError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.generate.loop import Pipeline, Prompt
from edgevlm.generate.videos import with_videos
from edgevlm.inputs import video_file
from edgevlm.inputs.frame_rules import NativeFrames
from edgevlm.inputs.preprocess import normalize
from edgevlm.inputs.rules import TilesThenWhole
from edgevlm.inputs.video import VideoSpec, in_words
from edgevlm.inputs.video_file import open_video
from edgevlm.runtimes import open_runtime

av = pytest.importorskip("av")
QUESTION = "What happens?"
INTERNVL, ONEVISION = ("internvl", "InternVLVideoProcessor"), ("llava_onevision", "LlavaOnevisionVideoProcessor")
MINICPM = ("minicpmv4_6", "MiniCPMV4_6VideoProcessor")
GLM4V, GLM46V = ("glm4v", "Glm4vVideoProcessor"), ("glm46v", "Glm46VVideoProcessor")
QWEN2, QWEN3 = ("qwen2_vl", "Qwen2VLVideoProcessor"), ("qwen3_vl", "Qwen3VLVideoProcessor")
RULE = TilesThenWhole(64, 256, 4096, 2, False)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 5000),
    st.sampled_from([1.0, 10.0, 23.976, 24.0, 29.97, 60.0]),
    st.sampled_from([0.3, 1.0, 2.0, 5.0]),
    st.integers(1, 64),
)
def test_the_frames_are_transformers(total: int, rate: float, fps: float, most: int) -> None:
    metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
    expected = SmolVLMVideoProcessor.sample_frames(SimpleNamespace(num_frames=most, fps=fps), metadata)
    spec = VideoSpec(fps, most, RULE, "lanczos", "", skip=1)
    np.testing.assert_array_equal(spec.frames(total, rate), expected)


SAMPLED = st.tuples(
    st.integers(4, 20000),
    st.sampled_from([1.0, 10.0, 23.976, 24.0, 29.97, 30.0, 60.0]),
    st.sampled_from([0.3, 1.0, 2.0, 5.0]),
    st.integers(4, 768),
)


def _metadata(total: int, rate: float) -> VideoMetadata:
    return VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)


def _near(ours: Any, theirs: Any, exact: Any) -> None:
    """Equal, but beside a whole number, where torch.arange's float32 may round to the other side of it."""
    theirs = np.asarray(theirs)[: len(ours)]  # by rounding, torch.arange may have one more, behind the last frame
    off = np.flatnonzero(ours != theirs)
    assert len(ours) == len(theirs) and (np.abs(ours[off] - theirs[off]) == 1).all()
    assert np.abs(exact[off] - np.round(exact[off])).max(initial=0) < 2e-3


@settings(max_examples=300, deadline=None)
@given(SAMPLED)
def test_the_frames_of_pairs_are_transformers(case: tuple[int, float, float, int]) -> None:
    (total, rate, fps, most), qwen2, qwen3 = case, video_class(*QWEN2), video_class(*QWEN3)
    given = {"fps": fps, "most": most, "rule": RULE, "resample": "bicubic", "open": "", "least": 4, "group": 2}
    ours = VideoSpec(**given, spread="starts").frames(total, rate)
    theirs = qwen2(max_frames=most).sample_frames(_metadata(total, rate), fps=fps)
    _near(ours, theirs, np.arange(len(ours)) * total / len(ours))
    theirs = qwen3(max_frames=most).sample_frames(_metadata(total, rate), fps=fps)
    np.testing.assert_array_equal(VideoSpec(**given, spread="nearest").frames(total, rate), theirs)


@settings(max_examples=300, deadline=None)
@given(SAMPLED)
def test_the_frames_of_parts_are_transformers(case: tuple[int, float, float, int]) -> None:
    total, rate, _, most = case
    count, internvl, onevision = min(most, total), video_class(*INTERNVL), video_class(*ONEVISION)
    given = {"fps": None, "most": most, "rule": RULE, "resample": "bicubic", "open": ""}
    ours = VideoSpec(**given, spread="starts").frames(total, rate)
    theirs = onevision().sample_frames(_metadata(total, rate), num_frames=count)
    np.testing.assert_array_equal(ours, theirs)
    ours = VideoSpec(**given, spread="middles").frames(total, rate)
    theirs = internvl().sample_frames(_metadata(total, rate), num_frames=count)
    _near(ours, theirs, (2 * np.arange(count) + 1) * total / (2 * count))


@settings(max_examples=200, deadline=None)
@given(SAMPLED)
def test_the_frames_of_times_are_transformers(case: tuple[int, float, float, int]) -> None:
    (total, rate, fps, _), seen = case, _metadata(case[0], case[1])
    given = {"most": 768, "rule": RULE, "resample": "bicubic", "open": "", "group": 2}
    if fps <= 2:  # more than `most` otherwise
        ours = VideoSpec(fps, **given, spread="steps", longest=300.0).frames(total, rate)
        np.testing.assert_array_equal(ours, video_class(*GLM4V)().sample_frames(seen, fps=fps))
    given |= {"most": 640, "spread": "walk", "longest": 2400.0, "slower": ((30.0, 2.0), (300.0, 1.0))}
    ours, theirs = VideoSpec(6.0, **given).frames(total, rate), video_class(*GLM46V)().sample_frames(seen)
    np.testing.assert_array_equal(ours, theirs if len(theirs) else [0, 0])  # none of less than a sixth of a second


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2000), st.sampled_from([0.4, 1.0, 7.0, 10.0, 23.976, 29.97, 60.0]), st.sampled_from([3, 16, 128]))
def test_the_frames_of_seconds_are_transformers(total: int, rate: float, most: int) -> None:
    ours = VideoSpec(1.0, most, RULE, "bicubic", "", spread="seconds").frames(total, rate)
    theirs = video_class(*MINICPM)().sample_frames(_metadata(total, rate), max_num_frames=most)
    np.testing.assert_array_equal(ours, theirs)


def test_a_frame_that_lasts_is_taken_several_times(tmp_path: Path) -> None:
    with open_video(write_video(tmp_path / "clip.mp4", 3)) as video:
        pictures = [np.asarray(picture) for picture in video.frames(np.array([0, 1, 1, 2, 2]))]
    assert len(pictures) == 5
    assert [np.array_equal(a, b) for a, b in pairwise(pictures)] == [False, True, False, True]


def test_fewer_frames_than_there_are_times_for() -> None:
    spec = VideoSpec(2.0, 5, RULE, "bicubic", "", spread="steps", longest=300.0, group=2)
    assert spec.frames(100, 10.0).tolist() == [0, 25, 50, 75, 99, 99]  # the first and the last, and between them
    assert replace(spec, spread="walk").frames(100, 10.0).tolist() == [0, 24, 49, 74, 99, 99]
    assert replace(spec, most=1).frames(100, 10.0).tolist() == [0, 0]


@pytest.mark.heavy
@settings(max_examples=500, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(2, 768), st.booleans())
def test_sizes_of_frames_are_transformers(width: int, height: int, count: int, capped: bool) -> None:
    kinds = ((QWEN2, False, 28, 128000 * 28**2 * 9 // 10), (QWEN3, True, 32, 768 * 32**2), (GLM4V, True, 28, None))
    for name, together, unit, cap in kinds:
        processor, least, most = video_class(*name)(), 20 * unit**2, 300 * unit**2 * (20 if together else 1)
        wanted = SizeDict(shortest_edge=least, longest_edge=most)
        video = torch.empty(1, count, 3, height, width, device="meta")
        rule = NativeFrames(unit, least, most, together=together, cap=cap if capped else None, count=count)
        given = {"size": wanted, "resample": 3, "factor": unit, "temporal_factor": 2, "cap_pixels_per_frame": capped}
        with mock.patch.object(TorchvisionBackend, "resize", lambda self, image, size, **_: size):
            try:
                asked = processor.resize(video, **given)
            except ValueError:
                with pytest.raises(EdgeVLMError, match="more than 200 times"):
                    rule.views(width, height)
                continue
        (view,) = rule.views(width, height)
        assert view.size == (asked.width, asked.height)


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "avi"])
def test_pixels_are_what_transformers_reads(tmp_path: Path, ending: str) -> None:
    path = write_video(tmp_path / f"clip.{ending}")
    wanted = np.array([0, 7, 13, 29])
    expected, metadata = read_video_pyav(str(path), lambda **given: wanted)
    with open_video(path) as video:
        assert (video.total, video.rate) == (30, 10.0)
        assert ending == "mkv" or (video.total, video.rate) == (metadata.total_num_frames, metadata.fps)
        np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in video.frames(wanted)]), expected)


def test_numbers_in_words() -> None:
    said = {1: "one", 13: "thirteen", 20: "twenty", 21: "twenty-one", 64: "sixty-four", 100: "one hundred"}
    assert {n: in_words(n) for n in said} == said
    assert (in_words(105), in_words(512)) == ("one hundred and five", "five hundred and twelve")
    num2words = pytest.importorskip("num2words").num2words
    assert [in_words(n) for n in range(1, 1000)] == [num2words(n) for n in range(1, 1000)]


@pytest.fixture(scope="module")
def bundle(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny SmolVLM2 with the settings for videos that the Hub's have."""
    place = tmp_path_factory.mktemp("video")
    builder.build_tiny(place / "model")
    path = place / "model" / "preprocessor_config.json"
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 64}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"video_sampling": sampling}))
    return open_bundle(
        export_model(ExportOptions(str(place / "model"), place / "out", quantize="fp32", gate=False)).folder
    )


def prepared(bundle: Bundle, path: Path, **options: Any) -> Prompt:
    content = [{"type": "video", "video": str(path), **options}, {"type": "text", "text": QUESTION}]
    return Pipeline(bundle, open_runtime(bundle)).prepare([], [{"role": "user", "content": content}])


@pytest.mark.parametrize(("frames", "options"), [(30, {}), (145, {}), (145, {"fps": 5.0, "max_frames": 7}), (1, {})])
def test_prompts_are_transformers(
    bundle: Bundle, builder: ModuleType, tmp_path: Path, frames: int, options: Any
) -> None:
    path = write_video(tmp_path / "clip.mp4", frames)
    settings = SimpleNamespace(num_frames=options.get("max_frames", 64), fps=options.get("fps", 1))
    video, metadata = read_video_pyav(
        str(path), lambda metadata: SmolVLMVideoProcessor.sample_frames(settings, metadata)
    )
    # transformers' processor asks for num2words when it is made, and for torchvision: its method alone does not.
    own = SimpleNamespace(
        image_seq_len=16, image_token="<image>", fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
    )  # fmt: skip
    inputs = {"pixel_values": video[None], "video_metadata": [metadata]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", in_words)
        text = SmolVLMProcessor.replace_video_token(own, inputs, 0)
    tokenizer = builder.load_processor(bundle.folder).tokenizer
    expected = tokenizer(f"<|im_start|>User: {text}{QUESTION}<end_of_utterance>\nAssistant:")["input_ids"]
    found = prepared(bundle, path, **options)
    assert found.ids.tolist() == expected
    images = SmolVLMImageProcessorPil.from_pretrained(bundle.folder, do_image_splitting=False)
    pixels = images([Image.fromarray(frame) for frame in video], return_tensors="np")["pixel_values"][0]
    assert len(found.views) == len(pixels) == len(video)
    for view, theirs in zip(found.views, pixels, strict=True):
        np.testing.assert_array_equal(normalize(view, bundle.image_spec), theirs)


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    """As phones write it: the matrix of the track's header says how a frame is shown (ISO/IEC 14496-12, 8.3.2)."""
    path = write_video(tmp_path / "clip.mp4", 3)
    with open_video(path) as video:
        (plain,) = video.frames(np.array([0]))
    content = path.read_bytes()
    place = content.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes
    one = 1 << 16
    assert struct.unpack(">9i", content[place : place + 36]) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    # (x, y) is shown at (-y, x): a quarter turn clockwise.
    matrix = struct.pack(">9i", 0, one, 0, -one, 0, 0, plain.height * one, 0, 1 << 30)
    path.write_bytes(content[:place] + matrix + content[place + 36 :])
    with open_video(path) as video:
        (turned,) = video.frames(np.array([0]))
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(plain), -1))


def test_answers_about_a_video(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_video(tmp_path / "clip.mp4")
    call = ["run", str(bundle.folder), QUESTION, "--video", str(path), "--max-tokens", "4", "--json"]
    for more, frames in (([], 3), (["--fps", "2"], 6), (["--fps", "2", "--max-frames", "4"], 4)):
        with pytest.raises(SystemExit) as ended:
            main([*call, *more])
        assert not ended.value.code
        said = json.loads(capsys.readouterr().out)
        assert said["image_tokens"] == frames * 16 and said["boxes"] == []


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(EdgeVLMError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_video(bundle: Bundle, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_video(tmp_path / "clip.mp4").read_bytes()

    def said(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return refused(lambda: prepared(bundle, tmp_path / name))

    assert "is of a kind that is not read: save it as MP4" in said("a.txt", b"hello")
    assert "is of a kind that is not read" in said("a.mp4", b"")
    assert "is of a kind that is not read" in said("a.m3u8", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    assert "cannot be decoded" in said("a.mp4", whole[:40])
    assert "cannot be decoded" in said("b.mkv", b"\x1a\x45\xdf\xa3" + bytes(500))
    assert "There is no video" in refused(lambda: prepared(bundle, tmp_path / "none.mp4"))
    assert "a folder" in refused(lambda: prepared(bundle, tmp_path))
    assert "The frames per second are nan" in refused(lambda: prepared(bundle, tmp_path / "clip.mp4", fps=float("nan")))
    assert "The most frames are 0" in refused(lambda: prepared(bundle, tmp_path / "clip.mp4", max_frames=0))
    assert "This model takes no videos" in refused(lambda: prepared(open_bundle(tiny_bundle), tmp_path / "clip.mp4"))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    assert "has no pictures" in refused(lambda: prepared(bundle, tmp_path / "sound.mp4"))
    monkeypatch.setattr(video_file.limits, "VIDEO_FRAMES", 10)
    assert "has 30 frames, at most 10 are read" in refused(lambda: prepared(bundle, tmp_path / "clip.mp4"))
    monkeypatch.setitem(sys.modules, "av", None)
    assert "the package av, which is not installed" in refused(lambda: prepared(bundle, tmp_path / "clip.mp4"))


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_damaged_files_are_a_sentence_or_an_answer(bundle: Bundle, tmp_path: Path, ending: str) -> None:
    content = write_video(tmp_path / f"clip.{ending}").read_bytes()
    random = np.random.default_rng(0)
    for number in range(20):
        damaged = bytearray(content[: random.integers(16, len(content) + 1)])
        for place in random.integers(16, len(damaged) + 1, 8):
            damaged[min(place, len(damaged) - 1)] = random.integers(256)
        path = tmp_path / f"{number}.{ending}"
        path.write_bytes(damaged)
        try:
            (message,) = with_videos([{"content": [{"type": "video", "video": path}]}], bundle.image_spec, 8192)
            assert message["content"]
        except EdgeVLMError as error:
            assert "\n" not in str(error)


def test_a_fps_without_a_video(capsys: pytest.CaptureFixture[str], bundle: Bundle) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(bundle.folder), QUESTION, "--fps", "2"])
    assert ended.value.code == 2 and "--fps is of a video: add --video FILE" in capsys.readouterr().err
