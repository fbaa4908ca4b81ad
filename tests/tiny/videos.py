"""Videos, and transformers' own video processors on Pillow in the place of torchvision."""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_transforms import normalize, rescale
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import read_video_pyav


def video_class(family: str, name: str) -> Any:
    """A video processor's class; some modules import torchvision for no more than a type, one names a type of it."""
    names = [
        "torchvision",
        "torchvision.transforms",
        "torchvision.transforms.v2",
        "torchvision.transforms.v2.functional",
    ]
    modules = {name: sys.modules.get(name, ModuleType(name)) for name in names}
    with mock.patch.dict(sys.modules, modules), mock.patch.object(builtins, "tvF", _OF_TORCHVISION, create=True):
        return getattr(importlib.import_module(f"transformers.models.{family}.video_processing_{family}"), name)


def write_video(path: Path, frames: int = 30, rate: int = 10, size: tuple[int, int] = (96, 64)) -> Path:
    """A moving square on a ground that brightens, in MPEG-4."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), number * 200 // frames, np.uint8)
            picture[10:30, number % 60 : number % 60 + 20, 0] = 250
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def _resize(self: Any, image: torch.Tensor, size: Any, resample: Any = None, **_: Any) -> torch.Tensor:
    frames = image.reshape(-1, *image.shape[-3:]).permute(0, 2, 3, 1).numpy()
    made = [np.asarray(Image.fromarray(f).resize((size.width, size.height), resample)) for f in frames]
    whole = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
    return whole.reshape(*image.shape[:-2], *whole.shape[-2:])


def _resize_frames(video: torch.Tensor, size: list[int], interpolation: Any, antialias: bool) -> torch.Tensor:
    assert antialias
    return _resize(None, video, SimpleNamespace(height=size[0], width=size[1]), interpolation)


_OF_TORCHVISION = SimpleNamespace(resize=_resize_frames, InterpolationMode=object)


def _numbers(
    self: Any, images: torch.Tensor, do_rescale: bool, rescale_factor: float, do_normalize: bool, mean: Any, std: Any
) -> torch.Tensor:
    frames = images.reshape(-1, *images.shape[-3:]).numpy()
    assert do_rescale and do_normalize
    made = [normalize(rescale(f, rescale_factor, "channels_first"), mean, std, "channels_first") for f in frames]
    return torch.from_numpy(np.stack(made)).reshape(images.shape)


@contextmanager
def on_pillow() -> Iterator[None]:
    """Resizing and normalizing as the Pillow image processors do them."""
    with (
        mock.patch.object(TorchvisionBackend, "resize", _resize),
        mock.patch.object(TorchvisionBackend, "rescale_and_normalize", _numbers),
        mock.patch.object(BaseVideoProcessor, "convert_to_rgb", lambda self, video: video),
        mock.patch.object(builtins, "tvF", _OF_TORCHVISION, create=True),
    ):
        yield


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    """Every frame (T, H, W, 3) and what a video processor is told of the file."""
    video, metadata = read_video_pyav(str(path), lambda metadata: np.arange(metadata.total_num_frames))
    return video, {"total_num_frames": metadata.total_num_frames, "fps": metadata.fps, "duration": metadata.duration}
