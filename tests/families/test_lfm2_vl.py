"""LFM2-VL: a table of positions resampled to any grid, tiles and thumbnail, convolutions with a state."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import lfm2_vl

sys.path.insert(0, str(Path(__file__).parent))
from harness import SIZES, QuantizedFamilyTests, Variant

# Beside the usual ones: 200 to 1 and more, above 4096 pixels, and around the size from which on a picture is cut. The
# processor fails on what is cut and 90 times as long as wide: its thumbnail has more patches than tiles are padded to.
VARIANTS = {
    layout: Variant(
        layout,
        partial(lfm2_vl.build, layout=layout),
        lfm2_vl.load_processor,
        lfm2_vl.views,
        [*SIZES, (1, 300), (200, 1), (4100, 400), (78, 78), (79, 79), (72, 88)],
    )
    for layout in ("hub", "saved", "memory")
}


class TestLfm2Vl(QuantizedFamilyTests):
    variants = VARIANTS
    passing = VARIANTS["hub"]


def test_the_grid_is_the_processors_own() -> None:
    """For every shape at the published settings: tiles, whole views and their order."""
    from edgevlm.inputs.rules import NativeOrTiles

    theirs, area = lfm2_vl.image_processor()(), 32**2
    rule = NativeOrTiles(16, 32, 64 * area, 256 * area, 512 * area, 512, 2, 10, True)
    random = np.random.default_rng(0)
    for width, height in [
        *np.exp(random.uniform(0, 9, (400, 2))).astype(int).tolist(),
        (1, 1),
        (1, 65536),
        (512, 1024),
    ]:
        settings = {"downsample_factor": 2, "encoder_patch_size": 16, "max_image_tokens": 256}
        large = theirs._is_image_too_large(height, width, max_pixels_tolerance=2.0, **settings)
        whole = theirs.smart_resize(height, width, min_image_tokens=64, **settings)
        ours = rule.views(width, height)
        assert ours[-1].size == whole and ours[-1].place is None, (width, height)
        cols, rows = theirs._get_grid_layout(height, width, 2, 10, 512)[:2] if large else (0, 0)
        wanted = [(row + 1, col + 1) for row in range(rows) for col in range(cols)]
        assert [view.place for view in ours[:-1]] == wanted, (width, height)
        assert all(view.size == (512, 512) for view in ours[:-1])
