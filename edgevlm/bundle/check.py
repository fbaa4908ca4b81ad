"""What a bundle's JSON files must say beyond their types: within limits, and in agreement with each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevlm.bundle.qtensor import KINDS
from edgevlm.bundle.targets import CoreMLTarget, TargetEntry
from edgevlm.errors import BundleError
from edgevlm.inputs.rules import OverlappingTiles
from edgevlm.inputs.spec import ImageSpec, PromptSpec
from edgevlm.inputs.views import ResizeTo, View
from edgevlm.io import limits
from edgevlm.models.model import ModelSpec
from edgevlm.models.towers.sheet_vit import SheetVit
from edgevlm.models.towers.vit import Vit

AGAIN = "export or copy the bundle again"
_FORMS = ("vision", "projector", "decoder", "embed", "prefill")


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """The form of each component, which the gate and the runtimes ask for."""
    for name in _FORMS:
        form = recipe.get(name)
        if form is None and name == "prefill":
            continue
        if not isinstance(form, dict) or form.get("kind") not in KINDS or not isinstance(form.get("dynamic"), bool):
            raise _wrong(f"recipe.{name}", form, f"an object with a kind ({', '.join(KINDS)}) and dynamic")


def check_gate(gate: Mapping[str, Any]) -> None:
    """What is shown of a gate: its verdict, its rows and the divergence by layer."""
    rows = gate.get("rows")
    if not isinstance(gate.get("passed"), bool) or not isinstance(rows, list):
        raise _wrong("gate", gate, "an object with passed and rows")
    for number, row in enumerate(rows):
        if not (
            isinstance(row, dict)
            and all(isinstance(row.get(name), str) for name in ("target", "check", "note"))
            and all(row.get(name) is None or _is_number(row[name]) for name in ("measured", "bound"))
            and isinstance(row.get("passed"), bool)
        ):
            raise _wrong(f"gate.rows[{number}]", row, "a row with target, check, note, measured, bound and passed")
    layers = gate.get("layers", {})
    if not isinstance(layers, dict):
        raise _wrong("gate.layers", layers, "an object")
    for name, values in layers.items():
        if not isinstance(values, dict) or not all(v is None or _is_number(v) for v in values.values()):
            raise _wrong(f"gate.layers.{name[:80]}", values, "numbers by layer")


def check_target(target: TargetEntry, spec: ModelSpec) -> None:
    """The numbers that a runtime allocates by."""
    if not isinstance(target, CoreMLTarget):
        return
    if not target.decoder.functions:
        raise _wrong("targets.coreml.decoder.functions", {}, "at least one")
    for name, function in target.decoder.functions.items():
        if not 1 <= function.rows <= function.context <= limits.CONTEXT:
            raise _wrong(f"targets.coreml.decoder.functions.{name}", function, "rows within a context within limits")
    text, second = spec.decoder, target.per_layer_embedding
    rows = text.vocab_size
    for name, found, wanted in (
        ("embedding", target.embedding.shape, [rows, text.hidden_size]),
        ("per_layer_embedding", second.shape if second else (), [rows, text.per_layer_width] if text.per_layer else []),
    ):
        if list(found) != wanted:
            raise _wrong(f"targets.coreml.{name}.shape", found, f"{wanted} of spec")


def check_image(image: ImageSpec, spec: ModelSpec) -> None:
    """Every view of preprocess.json is one that the manifest's model takes, and stands for as many tokens."""
    video = image.video
    rules = [rule for rule in (image.rule, image.several, video and video.rule) if rule is not None]
    if isinstance(spec.vision, Vit):
        side = spec.vision.image_size
        good = all(getattr(rule, "side", None) == side for rule in rules)
        expected = f"views of the {side} pixels of the tower"
    elif isinstance(spec.vision, SheetVit):
        rule, side, margin = image.rule, spec.vision.side, spec.vision.margin * spec.vision.patch_size
        good = isinstance(rule, OverlappingTiles) and (rule.side, rule.margin) == (side, margin)
        expected = f"squares of {side} pixels with margins of {margin}"
    else:
        side = spec.vision.patch_size * spec.vision.unit
        good = all(unit is not None and unit % side == 0 for unit in (getattr(rule, "unit", None) for rule in rules))
        expected = f"views of any number of units of {side} pixels"
    if not good:
        raise _disagree("preprocess.json", f"the rule {image.rule}", expected)
    if video and video.group != (frames := getattr(spec.vision, "frames", 1)):
        raise _disagree("preprocess.json", f"{video.group} frames in a view of a video", f"{frames}")
    if video and video.pooled and not spec.newline:
        raise _disagree("preprocess.json", "a video that ends in a newline", "none")
    tokens, ours = image.token_grid(View((ResizeTo(side, side),))), spec.token_grid(side, side)
    if tokens != ours:
        raise _disagree("preprocess.json", f"{tokens} image tokens in {side} x {side} pixels", f"{ours}")
    for name, has in (
        ("newline", spec.newline),
        ("begin", spec.framed),
        ("end", spec.framed),
        ("separator", spec.separator),
    ):
        row = getattr(image.packing, name) if image.packing else ()
        if len(row) != (width := spec.decoder.feature_width * has):
            raise _disagree("preprocess.json", f"a {name} of {len(row)} values", f"{width}")
    if (image.packing is not None and image.packing.framed) != spec.framed:
        raise _disagree("preprocess.json", f"packing.framed {not spec.framed}", f"{spec.framed}")


def check_prompt(prompt: PromptSpec, spec: ModelSpec) -> None:
    """Every token of prompt.json is one of the manifest's model."""
    if prompt.image_token_id != spec.image_token_id:
        raise _disagree("prompt.json", f"image_token_id {prompt.image_token_id}", f"{spec.image_token_id}")
    if bool(prompt.canvas) != (spec.decoder.places == "canvas"):
        raise _disagree(
            "prompt.json", f"a canvas of the tokens {prompt.canvas}", f"one for places {spec.decoder.places!r}"
        )
    found = {marker.token_id: len(marker.row) for marker in prompt.markers}
    if found != dict.fromkeys(spec.markers, spec.decoder.hidden_size):
        raise _disagree("prompt.json", f"rows for the tokens {sorted(found)}", f"whole ones for {sorted(spec.markers)}")
    if spec.region is None and (asked := [name for name, role in prompt.chat.roles.items() if role.places]):
        raise _disagree("prompt.json", f"the role {asked[0][:80]!r} that asks for places", "a region head for it")
    for token in (*prompt.stop_ids, *([prompt.bos_id] if prompt.add_bos else [])):
        if token is not None and token >= spec.decoder.vocab_size:
            raise _disagree("prompt.json", f"the token {token}", f"ids below {spec.decoder.vocab_size}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= limits.REAL


def _wrong(where: str, found: Any, expected: str) -> BundleError:
    return BundleError(f"manifest.json: {where} is {repr(found)[:100]}, expected {expected}: {AGAIN}.")


def _disagree(file: str, found: str, expected: str) -> BundleError:
    return BundleError(f"{file} and manifest.json disagree: {found}, expected {expected}; {AGAIN}.")
