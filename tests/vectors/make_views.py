"""Write the golden vectors of how pictures become views, by each family's own PIL image processor.

    python tests/vectors/make_views.py          (re)writes views.json, rgb_raw.json and edgevlm/assets/views.json
    python tests/vectors/make_views.py --check  exits with 1 if one would change

Sizes, grids, tile counts and pixels come from transformers' PIL image processors and Pillow >= 13; nanoVLM's, which has
none there, from tests/tiny/nanovlm.py after its own code, LFM2-VL's and Phi-4-multimodal's from their
own code over Pillow's resizes. Nothing
here imports edgevlm. README.md describes the files and the picture.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil, get_min_tile_covering_grid
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import PaddleOCRVLImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import lfm2_vl, minicpmv4_6, moondream, nanovlm, phi4_multimodal

HERE = Path(__file__).parent
U8 = npt.NDArray[np.uint8]

PROCESSORS = {
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "DeepseekVLImageProcessor": DeepseekVLImageProcessorPil,
    "Gemma4ImageProcessor": Gemma4ImageProcessorPil,
    "Glm4vImageProcessor": Glm4vImageProcessorPil,
    "GotOcr2ImageProcessor": GotOcr2ImageProcessorPil,
    "Idefics3ImageProcessor": Idefics3ImageProcessorPil,
    "LlavaImageProcessor": LlavaImageProcessorPil,
    "LlavaOnevisionImageProcessor": LlavaOnevisionImageProcessorPil,
    "Ovis2ImageProcessor": Ovis2ImageProcessorPil,
    "PixtralImageProcessor": PixtralImageProcessorPil,
    "PaddleOCRVLImageProcessor": PaddleOCRVLImageProcessorPil,
    "Qwen2VLImageProcessor": Qwen2VLImageProcessorPil,
    "SiglipImageProcessor": SiglipImageProcessorPil,
}
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def crop(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": square(side)}


def padded(side: int) -> dict[str, Any]:
    return {"do_pad": True, "do_center_crop": False, "size": square(side), "image_mean": CLIP_MEAN}


def tiles(side: int, most: int) -> dict[str, Any]:
    return {"size": square(side), "crop_to_patches": True, "min_patches": 1, "max_patches": most}


def native(patch: int, least: int, most: int) -> dict[str, Any]:
    return {"patch_size": patch, "merge_size": 2, "size": {"shortest_edge": least, "longest_edge": most}}


def grids(side: int, offered: list[tuple[int, int]]) -> dict[str, Any]:
    return {"size": square(side), "image_grid_pinpoints": [[rows * side, cols * side] for rows, cols in offered]}


def within(unit: int, longest: int) -> dict[str, Any]:
    return {"size": {"longest_edge": longest}, "patch_size": square(unit)}


def split(side: int, longest: int) -> dict[str, Any]:
    limits = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": side}}
    return {"do_image_splitting": True, "do_pad": False, **limits}


GRIDS = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3), (3, 3)]
# name: processor, its settings, image tokens of one view (None: a quarter of the patches, which are merged 2x2)
SPECS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "clip_crop": ("CLIPImageProcessor", crop(336), 576),
    "clip_crop_small": ("CLIPImageProcessor", crop(48), 36),
    "llava_pad": ("LlavaImageProcessor", padded(336), 576),
    "llava_pad_small": ("LlavaImageProcessor", padded(48), 36),
    "internvl": ("GotOcr2ImageProcessor", tiles(448, 12), 256),
    "internvl_small": ("GotOcr2ImageProcessor", tiles(48, 6), 9),
    "qwen2_5_vl": ("Qwen2VLImageProcessor", native(14, 56 * 56, 28 * 28 * 1280), None),
    "qwen3_vl": ("Qwen2VLImageProcessor", native(16, 65536, 16777216), None),
    "qwen_small": ("Qwen2VLImageProcessor", native(8, 4 * 256, 40 * 256), None),
    "paddleocr_vl": ("PaddleOCRVLImageProcessor", native(14, 384 * 384, 1536 * 1536), None),
    "paddleocr_vl_small": ("PaddleOCRVLImageProcessor", native(8, 4 * 256, 40 * 256), None),
    "gemma4": ("Gemma4ImageProcessor", {"patch_size": 16, "max_soft_tokens": 280}, None),
    "gemma4_small": ("Gemma4ImageProcessor", {"patch_size": 4, "max_soft_tokens": 70}, None),
    "glm4v": ("Glm4vImageProcessor", native(14, 112 * 112, 28 * 28 * 15000), None),
    "glm4v_small": ("Glm4vImageProcessor", native(8, 2 * 4 * 256, 2 * 40 * 256), None),
    "deepseek_vl": ("DeepseekVLImageProcessor", {"size": square(384), "image_mean": [0.5] * 3}, 576),
    "deepseek_vl_small": ("DeepseekVLImageProcessor", {"size": square(48), "image_mean": CLIP_MEAN}, 36),
    "idefics3": ("Idefics3ImageProcessor", split(364, 1456), 169),
    "idefics3_small": ("Idefics3ImageProcessor", split(48, 192), 9),
    "llava_onevision": ("LlavaOnevisionImageProcessor", grids(384, GRIDS), 729),
    "llava_onevision_small": ("LlavaOnevisionImageProcessor", grids(48, GRIDS), 36),
    "ovis2": ("Ovis2ImageProcessor", tiles(448, 12), 256),
    "ovis2_small": ("Ovis2ImageProcessor", tiles(48, 6), 9),
    "mistral3": ("PixtralImageProcessor", within(28, 1540), None),
    "pixtral_small": ("PixtralImageProcessor", within(16, 512), None),
    "siglip": ("SiglipImageProcessor", {"size": square(384)}, 729),
    "siglip_small": ("SiglipImageProcessor", {"size": square(48)}, 36),
}
SIZES = [
    *[(1, 1), (1, 2), (2, 1), (3, 3), (1, 97), (97, 1), (3, 50), (50, 3), (2, 400), (400, 2), (2, 402), (13, 7)],
    *[(14, 14), (28, 28), (48, 48), (49, 48), (48, 49), (96, 48), (48, 144), (56, 84), (42, 70), (61, 43), (43, 61)],
    *[(64, 64), (101, 103), (127, 211), (336, 336), (384, 384), (448, 448), (449, 448), (512, 341), (640, 480)],
    *[(480, 640), (896, 448), (448, 896), (997, 601), (1080, 1920), (1344, 896), (1457, 1456), (1601, 37), (31, 1499)],
]


def picture(width: int, height: int) -> U8:
    """(height, width, 3): smooth in places, rough in others, and simple integer arithmetic (README.md)."""
    y, x, c = np.meshgrid(*(np.arange(n, dtype=np.uint32) for n in (height, width, 3)), indexing="ij")
    smooth = (x * x * (1 + c) + y * y * (3 - c) + 64 * x + 32 * y) >> np.uint32(6)
    rough = ((x * np.uint32(73856093)) ^ (y * np.uint32(19349663)) ^ (c * np.uint32(83492791))) >> np.uint32(27)
    rgb: U8 = ((smooth + rough) & np.uint32(255)).astype(np.uint8)
    return rgb


def case(name: str, width: int, height: int) -> dict[str, Any]:
    """What the processor of SPECS[name] makes of the picture: its views before rescaling and normalization."""
    kind, settings, tokens = SPECS[name]
    options: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": None}
    if kind == "Idefics3ImageProcessor":
        options["return_row_col_info"] = True
    found: dict[str, Any] = {"spec": name, "width": width, "height": height}
    try:
        out = PROCESSORS[kind](**settings)(Image.fromarray(picture(width, height)), **options)
    except ValueError as error:
        return found | {"refused": str(error).split(",")[0]}
    if kind in ("Qwen2VLImageProcessor", "Glm4vImageProcessor"):
        _, rows, columns = (int(n) for n in out["image_grid_thw"][0])
        views = unpatchify(np.asarray(out["pixel_values"]), rows, columns, settings["patch_size"])[None]
        found |= {"patches": [rows, columns]}
        tokens = rows * columns // 4
    elif kind == "PixtralImageProcessor":
        views = np.asarray(out["pixel_values"])
        tokens = views.shape[2] * views.shape[3] // settings["patch_size"]["height"] ** 2
    elif kind == "Gemma4ImageProcessor":
        columns, rows = (int(n) + 1 for n in np.asarray(out["image_position_ids"][0]).max(0))
        patch, count = settings["patch_size"], rows * columns
        cells = np.asarray(out["pixel_values"][0])[:count].reshape(rows, columns, patch, patch, 3)
        views = cells.transpose(4, 0, 2, 1, 3).reshape(1, 3, rows * patch, columns * patch)
        tokens = count // 9
    elif kind == "PaddleOCRVLImageProcessor":
        _, rows, columns = (int(n) for n in out["image_grid_thw"][0])
        patch = settings["patch_size"]
        cells = np.asarray(out["pixel_values"]).reshape(rows, columns, 3, patch, patch)
        views = cells.transpose(2, 0, 3, 1, 4).reshape(1, 3, rows * patch, columns * patch)
        found |= {"patches": [rows, columns]}
        tokens = rows * columns // 4
    else:
        nested = kind == "Idefics3ImageProcessor"
        views = np.stack(out["pixel_values"][0] if nested or kind.startswith("LlavaO") else out["pixel_values"])
        if nested:
            found["tiles"] = [int(out["rows"][0][0]), int(out["cols"][0][0])]
        elif kind == "GotOcr2ImageProcessor":
            canvas = (settings["min_patches"], settings["max_patches"])
            columns, rows = get_optimal_tiled_canvas((height, width), views.shape[-2:], *canvas)
            assert len(views) == rows * columns + (rows * columns > 1)
            found["tiles"] = [rows, columns]
        elif kind == "Ovis2ImageProcessor":
            columns, rows = get_min_tile_covering_grid((height, width), views.shape[-1], settings["max_patches"])
            assert len(views) == rows * columns + (rows * columns > 1)
            found["tiles"] = [rows, columns]
    assert tokens is not None
    pixels = views.transpose(0, 2, 3, 1)
    data = np.ascontiguousarray(pixels).astype(np.uint8)
    assert np.array_equal(data, pixels), "the views are not bytes"
    return found | {
        "views": len(data),
        "size": [data.shape[2], data.shape[1]],
        "tokens": tokens * len(data),
        "sha256": hashlib.sha256(data.tobytes()).hexdigest(),
    }


def nanovlm_case(width: int, height: int) -> dict[str, Any]:
    """What nanoVLM makes of the picture. It has no processor in transformers: see tests/tiny/nanovlm.py.

    `whole`: which view is the whole picture, where there are tiles; it is made in floating point, and not in `sha256`.
    """
    views, grid = nanovlm.split(Image.fromarray(picture(width, height)))
    pixels = (views * 255).round().numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    several = len(pixels) > 1
    return {"spec": "nanovlm", "width": width, "height": height, "tiles": list(grid)} | {
        "views": len(pixels),
        **({"whole": 0} if several else {}),
        "size": [nanovlm.TILE, nanovlm.TILE],
        "tokens": nanovlm.TOKENS * len(pixels),
        "sha256": hashlib.sha256(pixels[int(several) :].tobytes()).hexdigest(),
    }


def lfm2_case(width: int, height: int) -> dict[str, Any]:
    """What LFM2-VL's processor makes of the picture, with Pillow's resizes: see tests/tiny/lfm2_vl.py."""
    settings = {**lfm2_vl.PICTURES, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    out = lfm2_vl.image_processor()(**settings)([Image.fromarray(picture(width, height))], return_row_col_info=True)
    found = lfm2_vl.views({name: np.asarray(out[name]) for name in ("pixel_values", "spatial_shapes")})
    pixels = [(view * 255).round().astype(np.uint8).transpose(1, 2, 0) for view in found]
    sizes = [[view.shape[1], view.shape[0]] for view in pixels]
    grid = [int(out["image_rows"][0]), int(out["image_cols"][0])]
    return {"spec": "lfm2_vl", "width": width, "height": height, "tiles": grid, "views": len(pixels)} | {
        "sizes": sizes,
        "tokens": sum(wide * high // 256 for wide, high in sizes),
        "sha256": hashlib.sha256(b"".join(view.tobytes() for view in pixels)).hexdigest(),
    }


def slices_case(width: int, height: int) -> dict[str, Any]:
    """What MiniCPM-V 4.6's processor makes of the picture: views of sizes of their own."""
    settings = {"patch_size": minicpmv4_6.PATCH, "scale_resolution": minicpmv4_6.SIDE, "max_slice_nums": 6}
    plain = {"do_rescale": False, "do_normalize": False}
    out = MiniCPMV4_6ImageProcessorPil(**settings)(Image.fromarray(picture(width, height)), **plain)
    pixels = [np.asarray(view).astype(np.uint8).transpose(1, 2, 0) for view in minicpmv4_6.views(out)]
    sizes = [[view.shape[1], view.shape[0]] for view in pixels]
    found = {"spec": "minicpmv4_6", "width": width, "height": height, "tiles": list(out["grids"][0])}
    return found | {
        "views": len(pixels),
        "sizes": sizes,
        "tokens": sum(wide * high // (4 * minicpmv4_6.PATCH) ** 2 for wide, high in sizes),
        "sha256": hashlib.sha256(b"".join(view.tobytes() for view in pixels)).hexdigest(),
    }


def moondream_case(width: int, height: int) -> dict[str, Any]:
    """What Moondream's code makes of the picture, its squares as one sheet: see tests/tiny/moondream.py."""
    made = moondream.sheet(*moondream.crops(Image.fromarray(picture(width, height))))
    return {"spec": "moondream", "width": width, "height": height, "views": 1} | {
        "size": [made.shape[1], made.shape[0]],
        "tokens": moondream.GRID**2,
        "sha256": hashlib.sha256(np.ascontiguousarray(made).tobytes()).hexdigest(),
    }


def padded_case(width: int, height: int) -> dict[str, Any]:
    """What Phi-4-multimodal's processor makes of the picture, with Pillow's resizes: see tests/tiny/phi4_multimodal.py.

    `whole`: as nanoVLM's.
    """
    side, patch = PADDED["side"], PADDED["patch"]
    settings = {"size": phi4_multimodal.square(side), "patch_size": patch, "dynamic_hd": PADDED["most"]}
    common = {"do_resize": True, "image_mean": [0.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 1 / 255}
    out = phi4_multimodal.image_processor()(**settings, **common)([Image.fromarray(picture(width, height))])
    arrays = {name: np.asarray(value) for name, value in out.items()}
    found = phi4_multimodal.views(arrays, side, patch)
    pixels = [(view * 255).round().astype(np.uint8).transpose(1, 2, 0) for view in found[:-1]]
    sizes = [[view.shape[2], view.shape[1]] for view in found]
    grid = [int(edge) // side for edge in arrays["image_sizes"][0]]
    return {"spec": "phi4_multimodal", "width": width, "height": height, "tiles": grid, "views": len(found)} | {
        "whole": len(found) - 1,
        "sizes": sizes,
        "tokens": sum(-(-wide // (2 * patch)) * -(-high // (2 * patch)) for wide, high in sizes),
        "sha256": hashlib.sha256(b"".join(view.tobytes() for view in pixels)).hexdigest(),
    }


def unpatchify(patches: npt.NDArray[Any], rows: int, columns: int, patch: int) -> npt.NDArray[Any]:
    """(3, height, width) from Qwen's patches: merged 2x2, and each twice, since a still picture is two frames."""
    cells = patches.reshape(rows // 2, columns // 2, 2, 2, 3, 2, patch, patch)
    assert np.array_equal(cells[:, :, :, :, :, 0], cells[:, :, :, :, :, 1])
    return cells[:, :, :, :, :, 0].transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch)


def views() -> dict[str, Any]:
    specs = {
        name: {"processor": kind, "settings": settings, "tokens_per_view": tokens}
        for name, (kind, settings, tokens) in SPECS.items()
    }
    samples = [[w, h, hashlib.sha256(picture(w, h).tobytes()).hexdigest()] for w, h in SIZES]
    return {"specs": specs, "pictures": samples, "cases": [case(name, *size) for name in SPECS for size in SIZES]}


# The rules of preprocess.json (docs/preprocessing.md, section 3) that say what these processors do.
RULES: dict[str, dict[str, Any]] = {
    "siglip_small": {"kind": "stretch", "side": 48},
    "clip_crop_small": {"kind": "crop", "shortest": 48, "side": 48},
    "llava_pad_small": {"kind": "pad", "side": 48, "color": [122, 116, 104]},
    "deepseek_vl_small": {"kind": "fit", "side": 48, "least": 14, "color": [122, 116, 104]},
    "idefics3_small": {
        "kind": "tiles_then_whole", "side": 48, "longest_edge": 192, "max_edge": 4096, "short_edge_multiple": 2,
        "split": True,
    },
    "internvl_small": {"kind": "ratio_tiles", "side": 48, "least": 1, "most": 6, "thumbnail": True},
    "llava_onevision_small": {"kind": "best_grid", "side": 48, "grids": GRIDS},
    "ovis2_small": {"kind": "covering_tiles", "side": 48, "most": 6},
    "pixtral_small": {"kind": "within", "unit": 16, "longest": 512},
    "qwen_small": {"kind": "native", "unit": 16, "least": 1024, "most": 10240},
    "paddleocr_vl_small": {"kind": "native_grown", "unit": 16, "least": 1024, "most": 10240},
    "gemma4_small": {"kind": "filled", "unit": 12, "tokens": 70},
    "glm4v_small": {"kind": "native_scaled", "unit": 16, "least": 1024, "most": 10240},
}  # fmt: skip
NANOVLM = {
    "kind": "whole_then_tiles", "side": nanovlm.TILE, "longest_edge": nanovlm.MAX_EDGE, "enlarge": False,
    "whole_resample": "bilinear",
}  # fmt: skip
LFM2_VL = {
    "kind": "native_or_tiles", "patch": 8, "unit": 16, "least": 1024, "most": 3072, "large": 6144, "side": 48,
    "fewest": 2, "count": 6, "thumbnail": True,
}  # fmt: skip
SLICES = {"kind": "whole_then_slices", "unit": 32, "side": 48, "most": 6}
MOONDREAM = {
    "kind": "overlapping_tiles", "side": moondream.SIDE, "margin": moondream.MARGIN * moondream.PATCH,
    "most": moondream.CROPS,
}  # fmt: skip
PADDED = {
    "kind": "padded_tiles", "side": 48, "patch": 4, "unit": 8, "most": 6, "color": [255, 255, 255],
    "whole_resample": "bicubic_plain",
}  # fmt: skip
WITNESSED = [(1, 1), (1, 97), (50, 3), (61, 43), (96, 48), (101, 103), (127, 211), (449, 448), (997, 601)]


def witness() -> dict[str, Any]:
    """What the gate of a bundle replays: for each kind of rule, some of the cases."""
    whole_then_tiles = {"rule": NANOVLM, "resample": "bicubic", "cases": [nanovlm_case(*size) for size in WITNESSED]}
    near = {"rule": LFM2_VL, "resample": "bilinear", "cases": [lfm2_case(*size) for size in WITNESSED]}
    sliced = {"rule": SLICES, "resample": "bicubic", "cases": [slices_case(*size) for size in WITNESSED]}
    sheets = {"rule": MOONDREAM, "resample": "lanczos", "cases": [moondream_case(*size) for size in WITNESSED]}
    usual = [size for size in WITNESSED if 10 * min(size) > max(size) > 1]  # it refuses those that come out thin
    padded_ = {"rule": PADDED, "resample": "bilinear", "cases": [padded_case(*size) for size in usual]}
    apart = {NANOVLM["kind"]: whole_then_tiles, LFM2_VL["kind"]: near, SLICES["kind"]: sliced}
    return (
        apart
        | {MOONDREAM["kind"]: sheets, PADDED["kind"]: padded_}
        | {
            rule["kind"]: {
                "rule": rule,
                "resample": "lanczos" if SPECS[name][0] == "Idefics3ImageProcessor" else "bicubic",
                "cases": [case(name, *size) for size in WITNESSED],
            }
            for name, rule in RULES.items()
        }
    )


def rgb_raw(folder: Path) -> dict[str, Any]:
    """Width, height and sha256 of the raw RGB bytes (rows from the top) of each picture in `folder`."""
    cases = []
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            rgb = np.asarray(image)
        assert rgb.dtype == np.uint8 and rgb.shape[2] == 3
        digest = hashlib.sha256(rgb.tobytes()).hexdigest()
        cases.append({"file": path.name, "width": rgb.shape[1], "height": rgb.shape[0], "sha256": digest})
    return {"cases": cases}


def to_json(data: dict[str, Any]) -> str:
    """One entry a line."""

    def block(value: dict[str, Any] | list[Any]) -> str:
        if isinstance(value, dict):
            return "{\n  " + ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n }"
        return "[\n  " + ",\n  ".join(json.dumps(entry) for entry in value) + "\n ]"

    return "{\n" + ",\n".join(f" {json.dumps(key)}: {block(value)}" for key, value in data.items()) + "\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file would change")
    check = parser.parse_args().check
    logging.set_verbosity_error()  # one pixel's channel order is said to be ambiguous, and is read right
    stale = []
    shipped = HERE.parents[1] / "edgevlm" / "assets" / "views.json"
    files = {HERE / "views.json": views(), HERE / "rgb_raw.json": rgb_raw(HERE / "rgb"), shipped: witness()}
    for path, data in files.items():
        text, name = to_json(data), path.name
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, "utf-8")
    if check:
        print("\n".join(stale) or "the vectors are as the processors say")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
