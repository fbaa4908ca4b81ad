"""The gate on what goes into a model: pictures to views and questions to ids, against independent sources.

Reference and runtimes share one preprocessing, so a fault in it moves both alike and no cosine shows it. Hence four
independent checks: the original's own processor files, read again; the recorded output of the families' own processors
for pictures of many sizes (assets/views.json); Pillow and plain string building; and, for a bundle alone, the results
recorded at export.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from edgevlm.bundle.manifest import Bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.preprocess import normalize, plan, preprocess
from edgevlm.inputs.prompt import Prompter, Views
from edgevlm.inputs.resample import PLAIN, resize_image
from edgevlm.inputs.spec import ImageSpec, PromptSpec, ViewTokens, tiled
from edgevlm.inputs.tokenizer import load_tokenizer
from edgevlm.inputs.views import PadTo, ResizeTo, Sheet, Step
from edgevlm.io.json import read_json
from edgevlm.io.processor import processor_line
from edgevlm.types import F32
from edgevlm.verify.packing import check_packing
from edgevlm.verify.places import check_places
from edgevlm.verify.reference import Reference, cosine
from edgevlm.verify.report import Row, at_least
from edgevlm.verify.runtime import Case
from edgevlm.verify.views import check_views

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
            "lanczos": Image.Resampling.LANCZOS}  # fmt: skip
_TOLERANCE = 1e-5  # between float32 orders of rescaling and normalizing; a wrong std is 1e-2 and more
GRIDS = (((0, 0),), ((3, 4),), ((0, 0), (2, 1)))  # rows and columns of tiles of each picture; 0 x 0: the whole only
_TARGET = "inputs"


@dataclass(frozen=True)
class Source:
    """The rules of the original, read again from its own files."""

    image: ImageSpec
    prompt: PromptSpec
    tokenizer: Path


def check_inputs(bundle: Bundle, source: Source | None, picture: Image.Image, question: str) -> Iterator[Row]:
    """picture: RGB, large enough for several tiles. Without `source` the bundle's own rules are the measure."""
    image, prompt = bundle.image_spec, bundle.prompt_spec
    wrong = _upstream_differences(bundle.folder, image)
    if source is not None:
        wrong = _differences(image, source.image) + wrong
    yield _rules("image rules that differ from the original's", wrong, "preprocess.json", "numbers")
    yield check_views(image)
    if image.packing is not None:
        yield check_packing(image.packing)
    yield from check_places(bundle.manifest.spec)
    yield _check_tiles(image, source.image if source else image, picture)
    if source is not None:
        yield _rules(
            "prompt rules that differ from the original's", _differences(prompt, source.prompt), "prompt.json", "tokens"
        )
    prompter = bundle.prompter()
    measure = source.prompt if source else prompt
    tokenizer = load_tokenizer(source.tokenizer if source else bundle.path("tokenizer.json"))
    tokenizer.encode_special_tokens = False
    (rows, cols) = image.token_grid(plan(*picture.size, image, max_tiles=1)[0])
    for grids in (grids for grids in GRIDS if len(grids) <= (measure.chat.pictures or len(grids))):
        pictures = [views_of_grid(*grid, rows, cols) for grid in grids]
        name = " and ".join(f"{grid[0]} x {grid[1]}" if grid[0] else "one tile" for grid in grids)
        yield _check_ids(prompter, measure, tokenizer, question, pictures, name)


def views_of_grid(rows: int, cols: int, token_rows: int, token_cols: int) -> list[ViewTokens]:
    """A grid of tiles and the whole picture, or that alone."""
    places = ((row, col) for row in range(1, rows + 1) for col in range(1, cols + 1))
    return [ViewTokens(place, token_rows, token_cols) for place in (*places, None)]


def _rules(check: str, wrong: list[tuple[str, str]], file: str, level: str) -> Row:
    note = f"{wrong[0][0]}: {wrong[0][1]}" if wrong else ""
    return Row(_TARGET, check, len(wrong), 0, not wrong, note, level, f"{file}: {wrong[0][0]}" if wrong else "")


def _differences(ours: ImageSpec | PromptSpec, theirs: ImageSpec | PromptSpec) -> list[tuple[str, str]]:
    """(field, found and expected value) where two specs differ."""
    found, wanted = _fields(ours), _fields(theirs)
    return [
        (name, f"{repr(found.get(name))[:80]} instead of {repr(wanted.get(name))[:80]}")
        for name in found | wanted
        if found.get(name) != wanted.get(name)
    ]


def _fields(spec: Any, inside: str = "") -> dict[str, Any]:
    """Every value of a spec by its place, as in "picture.row_close"."""
    if not dataclasses.is_dataclass(spec):
        return {inside: spec}
    names = [field.name for field in dataclasses.fields(spec)]
    parts = (_fields(getattr(spec, name), f"{inside}.{name}".removeprefix(".")) for name in names)
    return {name: value for part in parts for name, value in part.items()}


def _upstream_differences(folder: Path, spec: ImageSpec) -> list[tuple[str, str]]:
    """Where `spec` differs from the checkpoint's own processor file, which lies beside preprocess.json.

    Its keys are read plainly here, apart from the exporter's reader, which a fault may lie in.
    """
    found = _upstream(folder)
    wanted: dict[str, Any] = {}
    if found.get("do_normalize", True):
        wanted |= {name: found.get(f"image_{name}") for name in ("mean", "std")}
    if found.get("do_rescale", True):
        wanted["rescale_factor"] = found.get("rescale_factor")
    wanted["split"] = found.get("do_image_splitting")
    side = found.get("max_image_size")
    wanted["side"] = side.get("longest_edge") if isinstance(side, dict) else None
    own: dict[str, Any] = {name: getattr(spec, name, getattr(spec.rule, name, None)) for name in wanted}

    def same(name: str, value: Any) -> bool:
        return tuple(value) == tuple(own[name]) if isinstance(value, list) else bool(value == own[name])

    return [
        (name, f"{own[name]!r} instead of {value!r}")
        for name, value in wanted.items()
        if None not in (value, own[name]) and not same(name, value)
    ]


def _upstream(folder: Path) -> Mapping[str, Any]:
    for name, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        path = folder / name
        if path.is_file():
            data = read_json(path, "export the bundle again", finite=False)
            data = data.get(key) if key and isinstance(data, dict) else data
            if isinstance(data, dict):
                return data
    return {}


def _check_tiles(spec: ImageSpec, wanted: ImageSpec, picture: Image.Image) -> Row:
    """Each view against Pillow's own result of the planned steps, with the original's numbers."""
    spec, wanted = tiled(spec), tiled(wanted)
    views = plan(*picture.size, wanted, max_tiles=7)
    ours = [normalize(view, spec) for view in preprocess(picture, spec, max_tiles=7)]
    theirs = []
    for view in views:
        made = picture
        for step in view.steps:
            made = _by_pillow(made, step, wanted)
        theirs.append(_normalized(made, wanted))
    where = [f"row {v.place[0]}, column {v.place[1]}" if v.place else "whole picture" for v in views]
    wrong = [i for i, tile in enumerate(theirs) if i >= len(ours) or not _same(ours[i], tile)]
    note, place = f"{len(views)} views", ""
    if wrong:
        first = wrong[0]
        place = f"tile {first + 1} ({where[first]})"
        if len(ours) != len(theirs):
            note = f"{len(ours)} tiles, expected {len(theirs)}"
        elif ours[first].shape != theirs[first].shape:
            note = f"{place} is {ours[first].shape}, expected {theirs[first].shape}"
        else:
            other = next((k for k, tile in enumerate(theirs) if _same(ours[first], tile)), None)
            error = float(np.abs(ours[first] - theirs[first]).max())
            said = f"its values are off by up to {error:.3g}" if other is None else f"holds {where[other]}: tile order"
            note = f"{place} {said}"
    check = "tiles that differ from Pillow's"
    return Row(_TARGET, check, len(wrong), 0, not wrong, note, "numbers", place)


def _same(ours: F32, theirs: F32) -> bool:
    return ours.shape == theirs.shape and float(np.abs(ours - theirs).max()) <= _TOLERANCE


def _by_pillow(picture: Image.Image, step: Step, spec: ImageSpec) -> Image.Image:
    if isinstance(step, Sheet):
        canvas = Image.new("RGB", (step.width, step.height))
        for part, place in zip(step.parts, step.places(), strict=True):
            canvas.paste(reduce(lambda made, each: _by_pillow(made, each, spec), part.steps, picture), place)
        return canvas
    if isinstance(step, ResizeTo) and (step.resample or spec.resample) == PLAIN:
        return resize_image(picture, (step.width, step.height), PLAIN)  # which Pillow has not
    if isinstance(step, ResizeTo):
        return picture.resize((step.width, step.height), _FILTERS[step.resample or spec.resample])
    if isinstance(step, PadTo):
        canvas = Image.new("RGB", (step.width, step.height), step.color)
        canvas.paste(picture, (step.left, step.top))
        return canvas
    return picture.crop((step.left, step.top, step.left + step.width, step.top + step.height))


def _normalized(view: Image.Image, spec: ImageSpec) -> F32:
    mean, std = (np.array(v, np.float32) for v in (spec.mean, spec.std))
    values = (np.asarray(view, np.float32) * np.float32(spec.rescale_factor) - mean) / std
    return np.asarray(values.transpose(2, 0, 1), np.float32)


def _check_ids(
    prompter: Prompter, spec: PromptSpec, tokenizer: Tokenizer, question: str, pictures: Sequence[Views], name: str
) -> Row:
    """The prompt's ids against one string, encoded whole with its special tokens, as transformers does it."""
    ours = prompter.encode(question, pictures)[0].tolist()
    theirs = tokenizer.encode(_text(spec, question, pictures), add_special_tokens=spec.add_bos).ids
    note, where = f"{len(theirs)} ids", ""
    wrong = 0
    if ours != theirs:
        first = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
        first = first or min(len(ours), len(theirs))
        wrong = sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
        found, expected = (_token(tokenizer, ids, first) for ids in (ours, theirs))
        after = _token(tokenizer, theirs, first - 1) if first else "the start"
        where = f"token {first + 1}"
        note = f"{where}, after {after}: {found} instead of {expected}"
    return Row(_TARGET, f"prompt ids that differ, {name}", wrong, 0, not wrong, note, "tokens", where)


def _token(tokenizer: Tokenizer, ids: list[int], place: int) -> str:
    if not 0 <= place < len(ids):
        return "the end"
    return repr(tokenizer.decode([ids[place]], skip_special_tokens=False))


def _text(spec: PromptSpec, question: str, pictures: Sequence[Views]) -> str:
    """The prompt as transformers' processors write it, with every image token spelled out."""
    chat, text = spec.chat, spec.picture
    parts = [chat.prefix, chat.default_system, chat.roles["user"].open_image or ""]
    for number, views in enumerate(pictures):
        parts += [chat.image_before if number else ""]
        parts += [text.number.replace("{index}", str(number)) if len(pictures) > 1 else ""]
        parts += [text.open.replace("{index}", str(number))]
        row = 0
        for place, rows, cols, *_ in views:
            if row and (place is None or place[0] != row):
                parts.append(text.row_close)
            if row and place:
                parts.append(text.tile_join if place[0] == row else text.row_join)
            row = place[0] if place else 0
            name = text.tile.replace("{row}", str(row)).replace("{col}", str(place[1] if place else 0))
            parts.append(name if place else text.whole if len(views) > 1 else text.alone)
            parts.append(text.line_break.join([spec.image_token * cols] * rows))
            parts.append("" if place else text.whole_close)
        parts += [text.row_close if row else "", text.close, chat.image_after, chat.join]
    return "".join([*parts, chat.text_open, question, chat.text_close, chat.roles["user"].close, chat.generation])


def golden(cases: list[Case], reference: Reference) -> dict[str, Any]:
    """What an export computed for its own cases, for `check_golden` on another machine or with a later edgevlm."""
    first = reference.features(cases[0].views[:1])[0][0]
    return {
        "views": {case.name: _views_digest(case, reference.image) for case in cases},
        "ids": {case.name: _digest(case.ids) for case in cases},
        "features": [float(f"{value:.7g}") for value in first],  # of the first image token of the first case
    }


def check_golden(cases: list[Case], reference: Reference, gate: Mapping[str, Any]) -> Iterator[Row]:
    """This machine's inputs and reference against `golden` in the gate of the export."""
    if (recorded := gate.get("golden")) is None:
        return
    try:
        yield from _check_golden(cases, reference, recorded, processor_line(gate.get("processor")))
    except (TypeError, ValueError, KeyError, AttributeError):
        raise EdgeVLMError(
            "manifest.json: what the export recorded for its gate ('golden') is malformed: export the bundle again."
        ) from None


def _check_golden(cases: list[Case], reference: Reference, recorded: Any, made_on: str) -> Iterator[Row]:
    for what, level in (("views", "numbers"), ("ids", "tokens")):
        known = recorded[what]
        found = {c.name: _views_digest(c, reference.image) if what == "views" else _digest(c.ids) for c in cases}
        wrong = [name for name, digest in found.items() if known.get(name) not in (None, digest)]
        note = f"first: {wrong[0]}" if wrong else f"{len(cases)} prompts"
        check = f"{what} other than at the export"
        yield Row(_TARGET, check, len(wrong), 0, not wrong, note, level, wrong[0] if wrong else "")
    features = np.array(recorded["features"], np.float32)
    ours = reference.features(cases[0].views[:1])[0][0]
    low = cosine(ours, features) if ours.shape == features.shape else 0.0
    note = f"recorded on {made_on}" if made_on else ""
    yield at_least(_TARGET, "reference features as at the export, cosine", low, 0.99999, note)


def _views_digest(case: Case, spec: ImageSpec) -> str:
    """Of views as the tower takes them, so that a fault in normalizing shows, too."""
    return _digest(*(normalize(view, spec) for view in case.views))


def _digest(*arrays: np.ndarray[Any, np.dtype[Any]]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()
