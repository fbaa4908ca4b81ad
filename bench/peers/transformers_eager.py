"""transformers on torch, float32 on the CPU, as `from_pretrained` gives it; `transformers_compiled` compiles it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from protocol import F32, OneByOne, rows, serve


def prepare(checkpoint: Path, folder: Path) -> None:
    (folder / "checkpoint").write_text(str(checkpoint.resolve()))


def load(folder: Path, threads: int, compiled: bool = False) -> Transformers:
    return Transformers(Path((folder / "checkpoint").read_text()), threads, compiled)


def as_processed(config: Any, pixels: Any) -> dict[str, Any]:
    """Normalized pixels (3, S, S) as the model's own processor lays them out."""
    import torch

    if config.model_type in ("smolvlm", "idefics3"):
        mask = torch.ones(1, 1, *pixels.shape[1:], dtype=torch.bool)
        return {"pixel_values": pixels[None, None], "pixel_attention_mask": mask}
    vision = config.vision_config
    patch = vision.patch_size
    grid = [edge // patch for edge in pixels.shape[1:]]
    if config.model_type == "lfm2_vl":
        cut = pixels.reshape(3, grid[0], patch, grid[1], patch).permute(1, 3, 2, 4, 0).reshape(1, grid[0] * grid[1], -1)
        mask = torch.ones(cut.shape[:2], dtype=torch.long)
        return {"pixel_values": cut, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor([grid])}
    if config.model_type == "qwen3_vl":
        merge, frames = vision.spatial_merge_size, vision.temporal_patch_size
        cut = pixels.reshape(3, grid[0] // merge, merge, patch, grid[1] // merge, merge, patch)
        cut = cut.permute(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, frames, -1, -1)
        return {"pixel_values": cut.reshape(grid[0] * grid[1], -1), "image_grid_thw": torch.tensor([[1, *grid]])}
    raise NotImplementedError(f"no layout of pictures is written here for {config.model_type}")


class Transformers(OneByOne):
    def __init__(self, checkpoint: Path, threads: int, compiled: bool) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.features: Any = self.model.model.get_image_features
        if compiled:
            self.features = torch.compile(self.features)
            self.model.forward = torch.compile(self.model.forward, dynamic=True)
        self.past: Any = None

    def encode(self, tile: npt.NDArray[np.uint8]) -> F32:
        pixels = self.torch.from_numpy(tile).permute(2, 0, 1).float() / 127.5 - 1
        found = self.features(**as_processed(self.model.config, pixels))
        main = getattr(found, "pooler_output", found)[0]  # of a list or of a tensor
        levels = [level[0] for level in getattr(found, "deepstack_features", None) or ()]
        both = self.torch.cat([main, *levels], dim=-1).numpy()
        return rows(both, both.shape[-1])

    def restart(self) -> None:
        self.past = None

    def append(self, ids: list[int]) -> int:
        given = self.torch.tensor([ids])
        out = self.model(input_ids=given, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return int(out.logits[0, -1].argmax())


if __name__ == "__main__":
    serve(prepare, load)
