"""`edgevlm info`: what a bundle holds, what can be made of a model, and what this machine can run."""

from __future__ import annotations

import json
import os
import platform
from typing import TYPE_CHECKING, Any

import click

from edgevlm.commands.arguments import bundle_folder, is_model
from edgevlm.commands.gate_table import gate_table
from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import note, size, table, write, write_json
from edgevlm.io.console import seconds as duration
from edgevlm.io.hub import is_hub_id
from edgevlm.io.processor import processor_line

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle
    from edgevlm.export.survey import Survey
    from edgevlm.inputs.spec import ImageSpec


@click.command()
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Write it as JSON: for a bundle, its manifest.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub.")
@click.option("--devices", is_flag=True, help="List the engines of this machine and what they can run on.")
def info(model: str | None, as_json: bool, revision: str | None, devices: bool) -> None:
    """Show what MODEL is.

    A bundle: model, quantization, files, gate. A checkpoint or a Hub id: family, parts and sizes, the targets that can
    hold it, why others cannot, and the bytes of each quantization. Of a model or a bundle on the Hub, the small files
    and the headers of the weights are read, nothing more.
    """
    if model is None and not devices:
        raise EdgeVLMError("Nothing to show: name a bundle or a model, or add --devices for this machine's engines.")
    if model is not None and devices:
        raise EdgeVLMError("--devices shows this machine, not a bundle or a model: give one of them.")
    if model is None:
        from edgevlm.runtimes.devices import list_devices

        engines: Any = list_devices()
        shown, text = engines, _engines_text(engines)
    elif bundle := _bundle(model, revision):
        from edgevlm.bundle.manifest import MANIFEST

        shown, text = json.loads(bundle.folder.joinpath(MANIFEST).read_text(encoding="utf-8")), describe(bundle)
    else:
        from edgevlm.checkpoint.opening import open_headers, resolve
        from edgevlm.export.survey import survey

        if said := resolve(model, revision=revision).said:
            note(said)
        surveyed = survey(open_headers(model, revision=revision))
        shown, text = surveyed.to_dict(), _survey_text(surveyed)
    if as_json:
        write_json(shown, indent=2)
    else:
        write(text)


def _bundle(model: str, revision: str | None) -> Bundle | None:
    """The bundle that is named; None for a model. Of a bundle on the Hub the small files are here, and no weights."""
    from edgevlm.bundle.manifest import Bundle, open_bundle, read_manifest

    if not is_model(model):
        return open_bundle(bundle_folder(model))
    if os.path.exists(model) or not is_hub_id(model):
        return None
    from edgevlm.checkpoint.checkpoint import find_folder
    from edgevlm.checkpoint.opening import is_bundle

    folder = find_folder(model, "model", revision, None, weights=False)
    return Bundle(folder, read_manifest(folder)) if is_bundle(folder) else None


def _picture(image: ImageSpec) -> str:
    """The preprocessing of a picture of 640 x 480 pixels."""
    from edgevlm.inputs.preprocess import plan

    views = plan(640, 480, image)
    tokens = sum(view.rows * view.cols for view in image.view_tokens(views, (640, 480)))
    sizes = " and ".join(sorted({f"{view.size[0]} x {view.size[1]}" for view in views}))
    count = f"{len(views)} view{'s' * (len(views) > 1)} of {sizes} px, {tokens} image tokens"
    return f"{image.rule.kind}: 640 x 480 px become {count}"


def describe(bundle: Bundle) -> str:
    """The manifest for people."""
    manifest = bundle.manifest
    spec, model, recipe = manifest.spec, manifest.model, manifest.recipe
    decoder = spec.decoder
    kept = ", keys and values of 8 bits" if decoder.cache == "int8" else ""
    facts = [
        ("model", f"{model.name} ({spec.family}) from {model.source}"),
        ("revision", model.revision or "none"),
        ("weights", f"sha256 {model.weights_sha256[:16]}"),
        ("adapter", model.adapter or "none"),
        ("quantization", f"{recipe.get('quantize')}, preset {recipe.get('preset')}: {_forms(recipe)}"),
        ("targets", ", ".join(manifest.targets)),
        ("image", _picture(bundle.image_spec)),
        ("decoder", f"{decoder.num_layers} layers of {decoder.hidden_size}, {decoder.vocab_size} tokens, "
                    f"context {decoder.context_length}{kept}"),
        ("judged on", processor_line((manifest.gate or {}).get("processor")) or "not recorded"),
        ("written by", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
        ("size", size(sum(file.size for file in manifest.files.values()))),
    ]  # fmt: skip
    files = table([(name, size(file.size)) for name, file in manifest.files.items()])
    gate = gate_table(manifest.gate) if manifest.gate else "  not run: try `edgevlm verify`"
    return f"{table(facts)}\n\nFiles\n{files}\n\nGate\n{gate}"


def _survey_text(found: Survey) -> str:
    """A model for people."""
    total = sum(found.parameters.values())
    facts = [
        ("model", found.spec.name),
        ("family", found.title),
        *found.parts.items(),
        ("image", _picture(found.image) if found.image else "its processor's files are refused"),
        ("parameters", f"{_count(total)}: " + ", ".join(f"{n} {_count(c)}" for n, c in found.parameters.items() if c)),
        ("stored", ", ".join(f"{size(count)} {kind}" for kind, count in found.stored.items())),
    ]
    holdings = {}
    for name, holding in found.targets.items():
        holdings[name] = holding
        holdings |= {f"{name} {profile}": other for profile, other in (holding.profiles or {}).items()}
    kinds = ("fp16", "int8", "int4")
    rows = [
        (name, *(size(held.sizes[kind]) if held.sizes and kind in held.sizes else "no" for kind in kinds))
        for name, held in holdings.items()
    ]
    sizes = table(rows, head=("target", *kinds))
    notes = [
        f"  {name}: {held.refusal or f'{held.no_pictures}; the onnx target encodes them'}"
        for name, held in holdings.items()
        if held.refusal or held.no_pictures
    ]
    problems = [f"  {problem}" for problem in found.problems]
    parts = [table(facts), "", "Estimated size, with the files that a device needs", sizes, *notes, *problems]
    return "\n".join([*parts, *_stages_text(found)])


def _stages_text(found: Survey) -> list[str]:
    """What a picture costs, and what that should take on two devices."""
    from edgevlm.bench.estimate import DEVICES, seconds

    if not found.stages:
        return []
    shown = [DEVICES["pi5"], DEVICES["phone"]]
    rows = []
    for name, stage in found.stages.items():
        guesses = (duration(seconds(stage.work, stage.weights["int4"], device)) for device in shown)
        reads = (size(stage.weights[kind]) for kind in ("int8", "int4"))
        rows.append((name, _count(stage.work.operations), *reads, size(4 * stage.work.kept), *guesses))
    head = ("stage", "operations", "reads int8", "int4", "keys and values", *(f"int4 on {d.name}" for d in shown))
    title = "A picture of 640 x 480 px: encoded, its image tokens read, one token said; seconds are an estimate"
    return ["", title, table(rows, head=head)]


def _count(number: int) -> str:
    """Parameters or operations, with three figures."""
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
    scale, unit = next((each for each in units if number >= each[0]), units[-1])
    return f"{number / scale:.3g}{unit}"


def _forms(recipe: dict[str, Any]) -> str:
    forms = {name: form for name, form in recipe.items() if isinstance(form, dict) and "kind" in form}
    return ", ".join(
        f"{name} {form['kind']}{' dynamic' if form.get('dynamic') else ''}" for name, form in forms.items()
    )


def _engines_text(engines: list[dict[str, Any]]) -> str:
    rows = [("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")]
    for engine in engines:
        devices = ", ".join(f"{device['name']} ({device['kind']})" for device in engine.get("devices", []))
        rows.append((engine["engine"], engine.get("error") or f"{engine['version']}: {devices}"))
    return table(rows)
