"""Static rules for CoreML packages that should run on Apple's Neural Engine, each with its source.

Everything here is *predicted* from the program: where an operation really runs is known on a device alone, and even
MLComputePlan has promised more than ran (docs/coreml.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevlm.runtimes.mil.blob import Blob, TensorType, blob_span
from edgevlm.runtimes.mil.file import MilFunction, MilOp, MilPackage, Text, open_package

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle
from edgevlm.bundle.manifest import target_of
from edgevlm.bundle.targets import CoreMLTarget

MAX_RANK = 5
MAX_STATES = 2
STATE_ALIGN = 32
MAX_UPDATE_ROWS = 32
MAX_DIM = 65536
MAX_WEIGHTS = 1 << 30

# From a public, unverified list of CPU-only MIL operations; coreai-torch #116 (argmax); CoreML-LLM's
# MLComputePlan audit (sampling in the graph); coreai-model-zoo's cost notes (topk).
CPU_ONLY = frozenset(
    """topk reduce_argmax reduce_argmin argsort gather gather_nd gather_along_axis scatter scatter_nd
    scatter_along_axis shape select fill fill_like softplus softplus_parametric one_hot cumsum logical_and
    logical_or logical_not logical_xor band_part non_zero non_maximum_suppression range_1d random_uniform
    random_normal random_categorical cond while_loop list_read list_write""".split()  # noqa: SIM905
)
# Rule: (level, source).
SOURCES = {
    "package-size": ("warning", "Anemll docs/convert.md; CoreML-LLM docs/DECODE_STATE_LAYOUTS.md section 2"),
    "dynamic-shape": ("error", "coremltools #2370, #2548, #2600"),
    "state-count": ("error", "field reports of run-time error 0x1d, see docs/coreml.md"),
    "state-alignment": ("error", "coremltools #2631"),
    "state-rank": ("warning", "coremltools #2275, #2278; Anemll's unified state"),
    "state-type": ("error", "the converter of coremltools 9.0: states hold fp16 only"),
    "update-rows": ("warning", "coremltools #2553; Anemll #27"),
    "per-block-weights": ("error", "apple/coreai-models #279, #55; coremltools opt-overview"),
    "palette-scale": ("error", "coremltools #2688, #2777"),
    "palette4-state": ("warning", "coremltools #2716"),
    "cpu-operation": ("warning", "unverified public list of CPU-only operations; coreai-torch #116"),
    "infinite-constant": ("error", "ml-ane-transformers; apple/coreai-models neural_engine_rules.md"),
    "rank": ("error", "Core ML tensors have rank 5 at most"),
    "large-axis": ("warning", "maderix/ANE #26"),
    "fp32-island": ("warning", "coreai-model-zoo knowledge/ane-region-count-and-fp32-ops.md"),
    "square-overflow": ("error", "docs/coreml.md: all outputs become zero at |x| of 400"),
    "padded-axis": ("note", "Apple, Deploying Transformers on the Apple Neural Engine"),
}
_CONSTANT = ("const", "constexpr")


@dataclass(frozen=True)
class Finding:
    """level: "error" (wrong or refused on a device), "warning" (leaves the Neural Engine), "note"."""

    level: str
    rule: str
    where: str  # function and operation
    message: str
    source: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.message} [{self.rule}; {self.source}]"


@dataclass(frozen=True)
class FunctionLint:
    """Predictions for one function; of an encoder, a "token" is a tile.

    operations: "ane" or "cpu" by the name of each computing operation.
    """

    name: str
    operations: dict[str, str]
    weight_bytes: int
    state_bytes: int  # that one call reads
    rows: int  # positions per call; 1 where lengths are flexible

    @property
    def predicted_ane(self) -> float:
        """Share of operations predicted on the Neural Engine."""
        return sum(unit == "ane" for unit in self.operations.values()) / max(1, len(self.operations))

    @property
    def bytes_per_token(self) -> float:
        return (self.weight_bytes + self.state_bytes) / self.rows


@dataclass(frozen=True)
class LintReport:
    """What to expect of one package on the Neural Engine. Predicted, not measured."""

    package: str
    findings: tuple[Finding, ...]
    functions: tuple[FunctionLint, ...]

    @property
    def passed(self) -> bool:
        return not any(finding.level == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        functions = {
            f.name: {
                "predicted_ane": f.predicted_ane,
                "bytes_per_token": f.bytes_per_token,
                "weight_bytes": f.weight_bytes,
                "state_bytes": f.state_bytes,
                "predicted_unit": f.operations,
            }
            for f in self.functions
        }
        return {
            "package": self.package,
            "predicted": True,
            "passed": self.passed,
            "findings": [asdict(finding) for finding in self.findings],
            "functions": functions,
        }


Rule = Callable[[MilPackage, MilFunction], Iterator[Finding]]


def find(rule: str, where: str, message: str) -> Finding:
    level, source = SOURCES[rule]
    return Finding(level, rule, where, message, source)


def lint_bundle(bundle: Bundle) -> tuple[LintReport, ...]:
    """Both packages of a bundle's CoreML target. Raises EdgeVLMError where one is missing or damaged."""
    target = target_of(bundle, CoreMLTarget)
    files = [target.vision.file, target.decoder.file]
    return tuple(lint_package(bundle.package(file)) for file in files)


def lint_package(folder: Path) -> LintReport:
    """All rules over one `.mlpackage`."""
    package = open_package(folder)
    findings = list(_package_rules(package))
    functions = []
    for function in package.functions.values():
        seen = [finding for rule in RULES for finding in rule(package, function)]
        findings.extend(seen)
        functions.append(_predict(package, function, seen))
    return LintReport(folder.name, tuple(findings), tuple(functions))


def _package_rules(package: MilPackage) -> Iterator[Finding]:
    size = package.weight_file.stat().st_size if package.weight_file else 0
    if size > MAX_WEIGHTS:
        message = f"{size / 2**30:.2f} GiB of weights in one package fall to the GPU silently: split it into chunks"
        yield find("package-size", package.folder.name, message)


def _dynamic_shapes(package: MilPackage, function: MilFunction) -> Iterator[Finding]:
    for name, kind in function.inputs.items():
        if None in kind.shape:
            message = "a flexible length keeps a stateful model off the Neural Engine: export the profile 'ane'"
            yield find("dynamic-shape", f"{function.name}/{name}", message)


def _states(package: MilPackage, function: MilFunction) -> Iterator[Finding]:
    if (count := len(function.states)) > MAX_STATES:
        yield find("state-count", function.name, f"{count} states; more than {MAX_STATES} fail at run time")
    for name, kind in function.states.items():
        where = f"{function.name}/{name}"
        if kind.shape and (kind.shape[-1] or 0) % STATE_ALIGN:
            message = f"the state's last axis is {kind.shape[-1]}, no multiple of {STATE_ALIGN}"
            yield find("state-alignment", where, message)
        if len(kind.shape) != 4:
            message = f"the state has rank {len(kind.shape)}; rank 4 is what is known to work"
            yield find("state-rank", where, message)
        if kind.dtype != "fp16":
            yield find("state-type", where, f"the state is {kind.dtype}")


def _updates(package: MilPackage, function: MilFunction) -> Iterator[Finding]:
    kinds = _types(function)
    for op in function.ops:
        if op.type != "slice_update":
            continue
        update = kinds.get(str(op.inputs["update"][0]))
        rows = update.shape[-2] if update and len(update.shape) > 1 else None
        if rows is not None and rows > MAX_UPDATE_ROWS:
            message = f"writes {rows} rows of a state at once; 16 and 32 are known to work, 128 to fail"
            yield find("update-rows", f"{function.name}/{op.name}", message)


def _constexpr(package: MilPackage, function: MilFunction) -> Iterator[Finding]:
    makers = {name: op for op in function.ops for name, _ in op.outputs}
    for op in function.ops:
        where = f"{function.name}/{op.name}"
        if op.type == "constexpr_blockwise_shift_scale":
            data, scale = op.inputs["data"][0], op.inputs["scale"][0]
            source = makers.get(data) if isinstance(data, str) else None
            if source is not None and source.type == "constexpr_lut_to_dense":
                yield find("palette-scale", where, "a per-channel scale on a palette crashes on macOS 26")
            blocks = math.prod(_literal_shape(scale)[1:])
            if blocks > 1:
                message = (
                    f"{blocks} scales per row: per-block weights are a GPU form, wrong or crashing on the "
                    "Neural Engine: use int8 per channel"
                )
                yield find("per-block-weights", where, message)
        if op.type == "constexpr_lut_to_dense" and function.states:
            entries = _literal_shape(op.inputs["lut"][0])[-2:-1]
            if entries == (16,):
                message = "4-bit palettes with states crashed or were wrong with coremltools 9.0"
                yield find("palette4-state", where, message)


def _operations(package: MilPackage, function: MilFunction) -> Iterator[Finding]:
    for op in function.ops:
        where = f"{function.name}/{op.name}"
        if op.type in CPU_ONLY:
            yield find("cpu-operation", where, f"'{op.type}' is predicted to run on the CPU")
        if op.type.startswith(_CONSTANT):
            if op.type == "const" and _holds_infinity(package, op):
                message = "holds an infinity; masks should be finite, such as -1e4"
                yield find("infinite-constant", where, message)
            continue
        for name, kind in op.outputs:
            if len(kind.shape) > MAX_RANK:
                yield find("rank", where, f"'{name}' has rank {len(kind.shape)}, more than {MAX_RANK}")
            if any((size or 0) > MAX_DIM for size in kind.shape):
                yield find("large-axis", where, f"'{name}' has an axis above {MAX_DIM}: split the head")
            if kind.dtype == "fp32":
                yield find("fp32-island", where, f"'{name}' is fp32, which the Neural Engine does not compute")


def _rms_norm(package: MilPackage, function: MilFunction) -> Iterator[Finding]:
    makers = {name: op for op in function.ops for name, _ in op.outputs}
    for op in function.ops:
        source = makers.get(str(op.inputs["x"][0])) if op.type == "reduce_mean" else None
        if source is None:
            continue
        itself = source.type == "mul" and source.inputs["x"] == source.inputs["y"]
        if source.type in ("square", "pow") or itself:
            message = "a mean of squares overflows fp16 from |x| = 256 on: use layer_norm of [x, -x]"
            yield find("square-overflow", f"{function.name}/{source.name}", message)


def _single_last_axis(package: MilPackage, function: MilFunction) -> Iterator[Finding]:
    padded = [op for op in function.ops if op.outputs and _is_row(op.outputs[0][1])]
    if padded:
        message = f"{len(padded)} values have a last axis of 1, which is stored in 64 bytes each"
        yield find("padded-axis", function.name, message)


RULES: tuple[Rule, ...] = (
    _dynamic_shapes,
    _states,
    _updates,
    _constexpr,
    _operations,
    _rms_norm,
    _single_last_axis,
)


def _is_row(kind: TensorType) -> bool:
    return len(kind.shape) == 4 and kind.shape[-1] == 1 and (kind.shape[1] or 0) > 1


def _types(function: MilFunction) -> dict[str, TensorType]:
    kinds = {name: kind for op in function.ops for name, kind in op.outputs}
    return {**function.inputs, **function.states, **kinds}


def _literal_shape(value: Any) -> tuple[int, ...]:
    if isinstance(value, Blob):
        return tuple(size or 0 for size in value.type.shape)
    return tuple(value.shape) if isinstance(value, np.ndarray) else ()


def _holds_infinity(package: MilPackage, op: MilOp) -> bool:
    value = op.attributes.get("val")
    if isinstance(value, Blob) and value.type.dtype in ("fp16", "fp32"):
        value = package.read_blob(value)
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and bool(np.isinf(value).any())


def _predict(package: MilPackage, function: MilFunction, findings: list[Finding]) -> FunctionLint:
    rules = ("cpu-operation", "fp32-island", "rank", "large-axis")
    off = {finding.where.partition("/")[2] for finding in findings if finding.rule in rules}
    flexible = any(f.rule == "dynamic-shape" for f in findings)
    operations, spans, state_reads = {}, {}, 0
    for op in function.ops:
        for args in [*op.inputs.values(), *((value,) for value in op.attributes.values())]:
            for value in args:
                if isinstance(value, Blob) and package.weight_file:
                    spans[value.offset] = blob_span(package.weight_file, value)[2]
        if op.type.startswith(_CONSTANT) or not op.outputs:
            continue
        integers = all(kind.dtype not in ("fp16", "fp32") for _, kind in op.outputs)
        operations[op.name] = "cpu" if flexible or integers or op.name in off else "ane"
    for op in function.ops:
        if op.type == "slice_by_index" and _reads_state(function, op):
            state_reads += 2 * math.prod(size or 0 for size in op.outputs[0][1].shape)
    if flexible:  # lengths are open: what one token reads of a full cache
        state_reads = sum(2 * math.prod(size or 0 for size in kind.shape) for kind in function.states.values())
    rows = [kind.shape[-2] or 1 for name, kind in function.inputs.items() if name == "embeddings"]
    return FunctionLint(function.name, operations, sum(spans.values()), state_reads, max([1, *rows]))


def _reads_state(function: MilFunction, op: MilOp) -> bool:
    source = op.inputs["x"][0]
    if isinstance(source, Text) or not isinstance(source, str):
        return False
    return any(o.type == "read_state" and any(name == source for name, _ in o.outputs) for o in function.ops)
