"""The gate on where patches and tokens stand: recordings of transformers' own functions, replayed.

Reference and engines share these inputs, so that no cosine would show a fault in them. Recorded by
tests/vectors/make_places.py, which knows nothing of edgevlm: assets/places.json.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.inputs.layout import Layout, Span, merge, positions
from edgevlm.inputs.packing import Packing
from edgevlm.models.blocks import rope_inputs
from edgevlm.models.model import ModelSpec
from edgevlm.models.spec import Decoder
from edgevlm.models.towers.placed_vit import PlacedVit
from edgevlm.models.towers.qwen_vit import QwenVit
from edgevlm.types import F32, I64
from edgevlm.verify.report import Row

Bits = npt.NDArray[np.bool_]

_NEAR = 2e-5  # of cosines and shares: both are float32
_TURNED = "rows and columns exchanged"


def check_places(spec: ModelSpec) -> Iterator[Row]:
    """What the model's tower and decoder are told of places, and what a prompt takes of its pictures' features."""
    recorded = json.loads((importlib.resources.files("edgevlm") / "assets" / "places.json").read_text(encoding="utf-8"))
    tower, decoder = spec.vision, spec.decoder
    if isinstance(tower, QwenVit) and tower.merge == recorded["merge"]:
        halved = "halved_" if tower.unit > tower.merge else ""
        yield _row("grids", "patches", recorded[f"{halved}patches"], lambda case: _patches(tower, case))
        if tower.table and tower.resample != "none":
            side = replace(tower, table=recorded["side"])
            yield _row("grids", "table of positions", recorded[f"{halved}tables"], lambda case: _table(side, case))
    if isinstance(tower, PlacedVit):
        asked = replace(tower, table=recorded["side"], places=8)
        yield _row("grids", "places of patches", recorded["asked"], lambda case: _asked(asked, case))
    if decoder.places == "number":
        cases = [case for case in recorded["number"] if len(case["places"]) == decoder.axes]
        yield _row("prompts", "positions of tokens", cases, _numbered)
    elif decoder.axes == 3 and decoder.places != "line":
        cases = recorded["tokens" if decoder.places == "grid" else decoder.places]
        yield _row("prompts", "positions of tokens", cases, lambda case: _tokens(case, decoder.places))
    what = "levels of features" if decoder.deepstack else "features"
    yield _row("prompts", what, recorded["tokens"], lambda case: _levels(decoder, case))


def _row(of: str, what: str, cases: list[dict[str, Any]], fault: Callable[[dict[str, Any]], str]) -> Row:
    wrong = [said for case in cases if (said := fault(case))]
    where = f"{what}: {wrong[0]}" if wrong else ""
    note = where or f"{len(cases)} {of}"
    return Row("inputs", f"{of} whose {what} are not transformers'", len(wrong), 0, not wrong, note, "numbers", where)


def _patches(tower: QwenVit, case: dict[str, Any]) -> str:
    """Patches hold their own number: those of each token, in reading order, and the angles that go with them."""
    (rows, cols), p, group = case["grid"], tower.patch_size, tower.unit**2
    places = np.array(case["places"])
    numbers = np.arange(rows * cols, dtype=np.float32).reshape(rows, cols)
    feeds = tower.feeds(np.broadcast_to(np.kron(numbers, np.ones((p, p), np.float32)), (3, rows * p, cols * p)))
    order = feeds.get("order", np.arange(rows * cols // group))
    held = feeds["patches"][0, :, 0].reshape(-1, group)[order].reshape(-1).astype(np.int64)
    wanted = places[:, 0] * cols + places[:, 1]
    if not np.array_equal(held, wanted):
        return "tokens in another order" if np.array_equal(np.sort(held), np.sort(wanted)) else "other patches"
    angles = zip(rope_inputs("patches"), (np.cos, np.sin), strict=True) if tower.attention.rope else ()
    for name, function in angles:
        found = feeds[name].reshape(-1, group, feeds[name].shape[-1])[order].reshape(len(places), -1)
        if not _close(found, function(_angles(tower, places))):
            return _TURNED if _close(found, function(_angles(tower, places[:, ::-1]))) else "other angles"
    return _windows(tower, feeds, cols)


def _angles(tower: QwenVit, places: I64) -> F32:
    quarter = tower.attention.head_dim // 4
    between = np.array([[0.0], [0.5 * tower.staggered]])  # of a row, of a column
    frequencies = tower.theta ** (-(np.arange(quarter) + between) / quarter)
    return np.asarray(places[:, :, None] * frequencies, np.float32).reshape(len(places), -1)


def _windows(tower: QwenVit, feeds: dict[str, Any], cols: int) -> str:
    """Patches of one window are of one square of the grid, and padding is what its mask hides."""
    if tower.window is None:
        return ""
    real = feeds["window_mask"].reshape(-1, tower.window**2)
    number = feeds["patches"][0, :, 0].reshape(real.shape).astype(np.int64)
    windows = number // cols // tower.window * cols + number % cols // tower.window
    whole = np.all(np.where(real, windows, windows[:, :1]) == windows[:, :1])
    hidden = np.array_equal(feeds["mask"].reshape(-1), real.reshape(-1))
    counted = np.array_equal(np.sort(number[real]), np.arange(real.sum())) and real.sum() == number.max() + 1
    return "" if whole and hidden and counted else "windows that hold or hide others' patches"


def _table(tower: QwenVit, case: dict[str, Any]) -> str:
    (rows, cols), p = case["grid"], tower.patch_size
    feeds = tower.feeds(np.zeros((3, rows * p, cols * p), np.float32))
    group = tower.unit**2
    order = feeds.get("order", np.arange(rows * cols // group))
    shares, lines = feeds["table_shares"], feeds.get("table_rows", np.arange(tower.table**2)[None])
    wanted, table = np.array(case[tower.resample]), np.sin(np.arange(tower.table**2)).reshape(tower.table, -1)
    for values, said in ((table, ""), (table.T, _TURNED)):
        found = (values.reshape(-1)[lines] * shares).sum(1).reshape(-1, group)[order].reshape(-1)
        if _close(found, wanted):
            return said
    return "other rows or shares"


def _asked(tower: PlacedVit, case: dict[str, Any]) -> str:
    (rows, cols), p = case["grid"], tower.patch_size
    numbers = np.kron(np.arange(rows * cols, dtype=np.float32).reshape(rows, cols), np.ones((p, p), np.float32))
    feeds = tower.feeds(np.broadcast_to(numbers, (3, *numbers.shape)))
    if not np.array_equal(feeds["patches"][0, :, 0], np.arange(rows * cols)):
        return "patches in another order"
    values = np.sin(np.arange(tower.table**2))
    if not _close((values[feeds["table_rows"]] * feeds["table_shares"]).sum(1), np.array(case["bucketed"])):
        return "other rows or shares"
    found, wanted = feeds["places"][0], np.array(case["waves"])
    if _close(found, wanted):
        return ""
    return _TURNED if _close(np.roll(found, 4, axis=1), wanted) else "other waves"


def _tokens(case: dict[str, Any], places: str) -> str:
    found, wanted = positions(_layout(case), 3, places=places), np.array(case["places"])
    if np.array_equal(found, wanted):
        return ""
    return _TURNED if np.array_equal(found[[0, 2, 1]], wanted) else "other positions"


def _numbered(case: dict[str, Any]) -> str:
    packed = (Packing(framed=True).plan((1, 1), [], [(rows, cols)]) for _, rows, cols in case["spans"])
    spans = [Span(span[0], (1, each.tokens), each) for span, each in zip(case["spans"], packed, strict=True)]
    found, wanted = (
        positions(Layout(case["length"], tuple(spans)), len(case["places"]), places="number"),
        case["places"],
    )
    return "" if np.array_equal(found, wanted) else "other positions"


def _levels(decoder: Decoder, case: dict[str, Any]) -> str:
    """Numbered features: every value of a view's rows is in the prompt, at its tokens, and nothing anywhere else."""
    return next(filter(None, (_merged(decoder, *_tokens_of(case, gap)) for gap in (0, 1))), "")


def _tokens_of(case: dict[str, Any], gap: int) -> tuple[Layout, Bits]:
    """A prompt with so many tokens between two rows of a view, and which of its tokens are the image's."""
    marks: list[bool] = []
    spans, end = [], 0
    for start, rows, cols in case["spans"]:
        marks += [False] * (start - end)
        spans.append(Span(len(marks), (rows, cols), gap=gap))
        for row in range(rows):
            marks += [False] * (gap if row else 0) + [True] * cols
        end = start + rows * cols
    marks += [False] * (case["length"] - end)
    return Layout(len(marks), tuple(spans)), np.array(marks)


def _merged(decoder: Decoder, layout: Layout, image: Bits) -> str:
    width = decoder.embed_width
    features = [1.0 + np.arange(span.tokens * width, dtype=np.float32).reshape(-1, width) for span in layout.spans]
    merged, wanted = (np.zeros((layout.length, width), np.float32) for _ in range(2))
    merged = merge(merged, layout, features)
    if features:
        wanted[image] = np.concatenate(features)  # as transformers' masked_scatter fills them
    if np.array_equal(merged, wanted):
        return ""
    if decoder.deepstack and wanted.any() and not merged[:, decoder.hidden_size :].any():
        return "dropped"
    if merged[~image].any():
        return "in the places of other tokens"
    ours, theirs = (sorted(map(tuple, each.tolist())) for each in (merged, wanted))
    return "rows in another order" if ours == theirs else "other values"


def _layout(case: dict[str, Any]) -> Layout:
    """Of "spans": where a view's tokens begin, rows, columns, and on a canvas its place and what is behind, too."""
    whole = [(*span, None, 0)[:5] for span in case["spans"]]
    spans = (
        Span(start, (rows, cols), place=place and tuple(place), behind=behind)
        for start, rows, cols, place, behind in whole
    )
    return Layout(case["length"], tuple(spans))


def _close(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() < _NEAR)
