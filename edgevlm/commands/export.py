"""`edgevlm export`: a checkpoint to a bundle, checked by the gate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgevlm.commands.arguments import check_model, check_questions, given, nearest
from edgevlm.commands.calibration_table import calibration_table
from edgevlm.commands.gate_table import gate_table, read_bounds
from edgevlm.commands.optimum_flags import replaced
from edgevlm.errors import EdgeVLMError, GateError
from edgevlm.io.console import note, progress_bar, size, table, write
from edgevlm.io.text import printable, shell_word

if TYPE_CHECKING:
    from edgevlm.export.calibrate.plan import CalibrationOptions

KINDS = "[fp32|fp16|int8|int4|palette6|palette4]"
MOST_PLAIN = 0.1  # a larger number without its % may be meant as a percentage


@click.command()
@click.argument("model", required=False)
@click.argument("out", required=False)
@click.option("-m", "--model", "model_flag", metavar="MODEL", help="The same as the first argument.")
@click.option("-o", "--out", "out_flag", metavar="DIR", help="The same as the second argument.")
@click.option(
    "--target",
    multiple=True,
    default=("onnx",),
    show_default=True,
    metavar="T[,T...]",
    help="onnx, gguf, coreml; may be repeated.",
)
@click.option("--quantize", metavar=KINDS, help="How weights are stored.  [default: int4]")
@click.option(
    "--preset",
    metavar="[size|balanced|latency]",
    help="What a quantized bundle trades for: bytes, a good mix, or speed.  [default: balanced]",
)
@click.option("--vision", metavar=KINDS, help="Override the preset for the image encoder.")
@click.option("--projector", metavar=KINDS, help="... for the projector.")
@click.option("--decoder", metavar=KINDS, help="... for the decoder.")
@click.option("--embed", metavar=KINDS, help="... for the embedding table (and a tied head).")
@click.option("--kv-cache", metavar="[float32|int8]", help="How ONNX keeps keys and values.  [default: float32]")
@click.option(
    "--calibrate",
    metavar="WHERE",
    help="Choose codes and scales by what flows: a folder of pictures, a JSONL file, or 'default'.",
)
@click.option("--method", metavar="[rtn|search|awq|gptq|awq+gptq]", help="How, with --calibrate.  [default: gptq]")
@click.option("--budget", metavar="SIZE", help="Choose bits per component: least loss within SIZE, as in 150MB.")
@click.option("--max-loss", metavar="SHARE", help="... or fewest bytes within a rise of perplexity, as in 1%.")
@click.option(
    "--coreml-profile",
    default="gpu",
    show_default=True,
    metavar="[gpu|ane]",
    help="Flexible shapes for the GPU, or fixed ones for the Neural Engine.",
)
@click.option(
    "--context",
    "contexts",
    multiple=True,
    type=int,
    metavar="N",
    help="Positions of CoreML's KV cache, a multiple of 32; once per length with the profile 'ane'.",
)
@click.option(
    "--image-side",
    type=int,
    default=448,
    show_default=True,
    metavar="PIXELS",
    help="Square that an 'ane' encoder of any picture size has room for.",
)
@click.option("--adapter", metavar="FOLDER", help="A LoRA adapter to merge on the way.")
@click.option("--processor", metavar="BASE", help="Take tokenizer and processor from here, for weights saved alone.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hub model.")
@click.option("--cache-dir", "--cache_dir", metavar="DIR", help="Where Hub downloads are kept.")
@click.option("--force", is_flag=True, help="Replace a bundle at DIR, once the new one is complete.")
@click.option("--no-gate", is_flag=True, help="Do not compare the bundle with the original.")
@click.option("--answers", metavar="SET", help="Let the gate ask questions too: scenes, or a folder of them.")
@click.option("--questions", type=int, default=100, show_default=True, metavar="N", help="How many of them.")
@click.option(
    "--bound", multiple=True, metavar="NAME=X", help="Let the gate judge by X, as in onnx.kl=0.1 or loss.kl=0.2."
)
@click.option("--strict", is_flag=True, help="Let the gate judge everything, and fail on what it cannot.")
@click.option("--dtype", metavar="[fp32|fp16]", help="optimum-cli's name for --quantize.")
@click.option("--task", hidden=True)
@click.option("--device", hidden=True)
@click.option("--framework", hidden=True)
@replaced
def export(
    model: str | None,
    out: str | None,
    model_flag: str | None,
    out_flag: str | None,
    target: tuple[str, ...],
    quantize: str | None,
    preset: str | None,
    vision: str | None,
    projector: str | None,
    decoder: str | None,
    embed: str | None,
    kv_cache: str | None,
    calibrate: str | None,
    method: str | None,
    budget: str | None,
    max_loss: str | None,
    coreml_profile: str,
    contexts: tuple[int, ...],
    image_side: int,
    adapter: str | None,
    processor: str | None,
    revision: str | None,
    cache_dir: str | None,
    force: bool,
    no_gate: bool,
    answers: str | None,
    questions: int,
    bound: tuple[str, ...],
    strict: bool,
    dtype: str | None,
    task: str | None,
    device: str | None,
    framework: str | None,
) -> None:
    """Turn MODEL into the bundle OUT and prove that the two agree.

    MODEL is a checkpoint folder, a Hub id (owner/name), or 'default', the model shipped with edgevlm. A LoRA adapter
    is merged into the base model that it names.
    The gate compares every exported component with the original; if a bound is missed, its table is shown and
    the exit code is 1. The folder of the finished bundle is the only line on standard output.

    With --calibrate the codes and scales of int4 and int8 weights are fitted to what flows through the model over
    pictures and questions; --budget and --max-loss also choose the bits of every component, and calibrate on 'default'
    where nothing else is said. The loss is measured on pictures that were not calibrated on.
    """
    from edgevlm.checkpoint.opening import resolve
    from edgevlm.export.coreml_.options import CoreMLOptions

    source, folder, first = _places([p for p in (model, out) if p], model_flag, out_flag)
    _check_optimum(task, device, framework)
    check_model(source, revision)
    overrides = {"vision": vision, "projector": projector, "decoder": decoder, "embed": embed}
    targets, kind = _targets(first or ",".join(target)), _kind(quantize, dtype)
    if preset and kind in ("fp32", "fp16") and not any(overrides.values()):
        raise EdgeVLMError(f"--preset chooses among quantized forms, and {kind} is none: leave one of the two out.")
    if "coreml" not in targets and (named := given("coreml_profile", "contexts", "image_side")):
        raise EdgeVLMError(f"{named[0]} is for CoreML, and no target is: add --target coreml, or leave it out.")
    if no_gate and (named := given("answers", "bound", "strict")):
        raise EdgeVLMError(f"{named[0]} is for the gate, and --no-gate runs none: leave one of the two out.")
    check_questions(answers)
    hub_cache = Path(cache_dir) if cache_dir else None
    if said := resolve(source, adapter, revision=revision, cache_dir=hub_cache).said:
        note(printable(said))
    bundle = export_bundle(
        source,
        folder,
        targets=targets,
        quantize=kind,
        preset=preset or "balanced",
        kv_cache=kv_cache or "float32",
        components={name: kind for name, kind in overrides.items() if kind},
        calibration=_calibration(calibrate, method, budget, max_loss, [n for n, kind in overrides.items() if kind]),
        coreml=CoreMLOptions(coreml_profile, contexts, image_side),
        adapter=adapter,
        processor=processor,
        revision=revision,
        cache_dir=hub_cache,
        force=force,
        gate=not no_gate,
        answers=answers,
        questions=questions,
        bounds=read_bounds(bound),
        strict=strict,
    )
    note(f'\nNext: edgevlm run {shell_word(str(bundle))} photo.jpg "What is in the picture?"')
    write(str(bundle))


def export_bundle(model: str, out: str, **options: Any) -> Path:
    """Export with a progress bar, show the gate's table and the sizes on standard error; the bundle's folder.

    `options` are those of edgevlm.export.pipeline.ExportOptions. Raises GateError after the table is shown.
    """
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.bundle.targets import GgufTarget
    from edgevlm.export.pipeline import ExportOptions, export_model

    try:
        with progress_bar() as progress:
            result = export_model(ExportOptions(model=model, out=Path(out), **options), progress=progress)
    except GateError as error:
        note(gate_table(error.report.to_dict()))
        raise
    if result.calibration:
        note(calibration_table(result.calibration) + "\n")
    if result.report:
        note(gate_table(result.report.to_dict()))
    note()
    manifest = open_bundle(result.folder).manifest
    note(_sizes({name: file.size for name, file in manifest.files.items()}))
    for entry in manifest.targets.values():
        if isinstance(entry, GgufTarget) and (said := entry.no_pictures or entry.alone):
            note(f"\n{said}")
    return result.folder


def _sizes(files: dict[str, int]) -> str:
    """The files that matter, largest first, the rest in one line, and the sum."""
    total = sum(files.values())
    rows = sorted(((count, name) for name, count in files.items() if count >= total / 100), reverse=True)
    rest = total - sum(count for count, _ in rows)
    rows += [(rest, f"{len(files) - len(rows)} smaller files"), (total, "total")]
    return table([(name, size(count)) for count, name in rows])


def _places(positional: list[str], model: str | None, out: str | None) -> tuple[str, str, str | None]:
    """Model, output folder, and the target where optimum's word order (`onnx -m MODEL OUT`) names it."""
    from edgevlm.export.targets import TARGETS

    target = None
    if model is not None and len(positional) == 2 and positional[0].lower() in TARGETS:
        target = positional.pop(0)
    if model is None:
        if not positional:
            raise EdgeVLMError("No model was given: name a checkpoint folder, a Hub id or 'default'.")
        model = positional.pop(0)
    if len(positional) + (out is not None) > 1:
        raise EdgeVLMError(f"Two output folders were given ('{positional[0]}' and '{out or positional[1]}'): give one.")
    folder = out if out is not None else (positional or [""])[0]
    if not folder:
        raise EdgeVLMError(
            f"No output folder was given: add one, as in `edgevlm export {shell_word(model)} -o bundle`."
        )
    return model, folder, target


def _targets(names: str) -> tuple[str, ...]:
    from edgevlm.export.targets import TARGETS

    targets = tuple(dict.fromkeys(name for name in re.split(r"[,\s]+", names.lower()) if name))
    for name in targets:
        if name not in TARGETS:
            raise EdgeVLMError(f"Target '{name}' does not exist: {nearest(name, tuple(TARGETS))}")
    if not targets:
        raise EdgeVLMError(f"No target was given: choose from {', '.join(TARGETS)}.")
    return targets


def _calibration(
    where: str | None, method: str | None, budget: str | None, max_loss: str | None, overrides: list[str]
) -> CalibrationOptions | None:
    if not (where or budget or max_loss):
        if method is not None:
            raise EdgeVLMError(f"--method {method} needs pictures: add --calibrate default, or a folder of your own.")
        return None
    from edgevlm.export.calibrate.plan import DEFAULT_METHOD, CalibrationOptions

    if (budget or max_loss) and overrides:
        limit = "--budget" if budget else "--max-loss"
        raise EdgeVLMError(f"{limit} chooses the bits of every component: leave --{overrides[0]} out.")
    return CalibrationOptions(
        where or "default",
        method or DEFAULT_METHOD,
        None if budget is None else _bytes(budget),
        None if max_loss is None else _share(max_loss),
    )


def _bytes(text: str) -> int:
    """A size such as "150MB", in decimal units as everywhere here."""
    found = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*([kMG]?)B?\s*", text, re.IGNORECASE)
    if found is None:
        raise EdgeVLMError(f"The budget '{text}' is no size: write it as in --budget 150MB.")
    return int(float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[found[2].lower()])


def _share(text: str) -> float:
    """A share such as "1%" or "0.01"."""
    found = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(%?)\s*", text)
    if found is None:
        raise EdgeVLMError(f"The largest loss '{text}' is no share: write it as in --max-loss 1%.")
    value = float(found[1])
    if not found[2] and value > MOST_PLAIN:
        raise EdgeVLMError(f"--max-loss {found[1]} may mean {value:g} % or {value * 100:g} %: write it with its %.")
    return value / (100 if found[2] else 1)


def _kind(quantize: str | None, dtype: str | None) -> str:
    if dtype == "bf16":
        raise EdgeVLMError("bf16 runs on no edge runtime: use --dtype fp16, or --quantize int8 or int4.")
    if quantize and dtype and quantize != dtype:
        raise EdgeVLMError(f"--quantize {quantize} and --dtype {dtype} contradict each other: give one.")
    return quantize or dtype or "int4"


def _check_optimum(task: str | None, device: str | None, framework: str | None) -> None:
    """Accept optimum's values that match what an export does; refuse any other with advice."""
    if task not in (None, "auto", "image-text-to-text"):
        raise EdgeVLMError(f"Task '{task}' does not exist here: leave --task out (image-text-to-text).")
    if device not in (None, "cpu"):
        raise EdgeVLMError(f"An export runs on the CPU alone, not on '{device}': leave --device out.")
    if framework not in (None, "pt"):
        raise EdgeVLMError("An export reads safetensors and uses no framework: leave --framework out.")
