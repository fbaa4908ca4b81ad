"""Evaluate a saved CoreML package on any machine: the reference for its results where there is no CoreML.

Every value is stored in the type that the program declares (fp16, as a rule), so that an overflow on the device is an
overflow here; sums are accumulated in float32. `storage="fp32"` stores floats unrounded, which distinguishes a wrong
graph from one that lacks precision. It checks the package (graph, weights, states), not Apple's compilers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes.mil import ops as mil_ops
from edgevlm.runtimes.mil.blob import Blob, broken
from edgevlm.runtimes.mil.file import MilFunction, MilOp, MilPackage, Text, open_package
from edgevlm.types import F32

Array = npt.NDArray[Any]
State = dict[str, F32]
# Called with an operation, the name of its output, and the value before it is rounded for storage.
Observer = Callable[[MilOp, str, Array], None]
STORAGE = ("fp16", "fp32")
# What numpy and dictionaries raise where a program is not one.
_FAILURES = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


class MilEvaluator:
    """One package, ready to run.

    package: a folder or a parsed package. storage: "fp16" stores each value as the program declares it, "fp32" keeps
    float32. Weights are expanded to float32 on first use and kept.
    """

    def __init__(self, package: Path | MilPackage, storage: str = "fp16") -> None:
        if storage not in STORAGE:
            raise EdgeVLMError(f"Storage '{storage}' does not exist: choose one of {', '.join(STORAGE)}.")
        self.package = package if isinstance(package, MilPackage) else open_package(package)
        self.storage = storage
        self._constants: dict[Any, Any] = {}
        self._plans: dict[str, _Plan] = {}

    def function(self, name: str | None = None) -> MilFunction:
        name = name or self.package.default_function
        if name not in self.package.functions:
            raise EdgeVLMError(
                f"{self.package.folder} has no function '{name}': choose one of {', '.join(self.package.functions)}."
            )
        return self.package.functions[name]

    def make_state(self, function: str | None = None) -> State:
        """Zeros for every state of the function, as MLModel.makeState gives."""
        states = self.function(function).states
        try:
            return {name: np.zeros([s or 0 for s in kind.shape], np.float32) for name, kind in states.items()}
        except (MemoryError, ValueError, OverflowError):
            raise EdgeVLMError(
                f"{self.package.folder} keeps states that do not fit into memory: export it with a shorter context."
            ) from None

    def run(
        self,
        inputs: Mapping[str, Array],
        state: State | None = None,
        function: str | None = None,
        observer: Observer | None = None,
    ) -> dict[str, Array]:
        """Outputs by name, floats as float32. `state` is changed in place; functions with states need one."""
        target = self.function(function)
        if target.name not in self._plans:
            try:
                self._plans[target.name] = _Plan(target)
            except _FAILURES as error:
                raise broken(self.package.folder, f"its program lacks a value ({str(error)[:80]})") from None
        plan = self._plans[target.name]
        values = {name: self._input(target, name, inputs) for name in target.inputs}
        for name, kind in target.states.items():
            if state is None or name not in state or state[name].shape != kind.shape:
                raise EdgeVLMError(f"The function '{target.name}' needs the state '{name}': give {kind.shape}.")
        with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
            for index, op in enumerate(target.ops):
                self._run_op(op, index, values, state or {}, plan, observer)
                for name in plan.dead_after.get(index, ()):
                    values.pop(name, None)
        if lacking := [name for name in target.outputs if name not in values]:
            raise broken(self.package.folder, f"its program does not compute its output '{lacking[0][:80]}'")
        return {name: np.array(values[name]) for name in target.outputs}

    def _input(self, target: MilFunction, name: str, inputs: Mapping[str, Array]) -> Array:
        kind = target.inputs[name]
        if name not in inputs:
            raise EdgeVLMError(f"The function '{target.name}' needs the input '{name}': give {kind.shape}.")
        array = np.asarray(inputs[name])
        bounds = target.ranges.get(name, ())
        fits = array.ndim == len(kind.shape) and all(
            size in (None, given) for size, given in zip(kind.shape, array.shape, strict=True)
        )
        if fits and bounds:
            fits = all(
                low <= n <= (high if high >= 0 else n) for n, (low, high) in zip(array.shape, bounds, strict=True)
            )
        if not fits:
            raise EdgeVLMError(
                f"The input '{name}' of '{target.name}' has shape {array.shape}: {kind.shape} "
                f"{f'within {bounds} ' if bounds else ''}was expected."
            )
        return self._store(array, kind.dtype)

    def _store(self, value: Array, dtype: str) -> Array:
        """The value as its storage type would hold it; fp16 is kept widened so that sums need no conversion."""
        if dtype == "fp16":
            value = value if value.dtype == np.float32 else value.astype(np.float32)
            return value.astype(np.float16).astype(np.float32) if self.storage == "fp16" else value
        kinds = {"fp32": np.float32, "int32": np.int32, "bool": np.bool_}
        return value.astype(kinds[dtype]) if dtype in kinds else value

    def _run_op(
        self,
        op: MilOp,
        index: int,
        values: dict[str, Any],
        state: State,
        plan: _Plan,
        observer: Observer | None,
    ) -> None:
        try:
            results = self._compute(op, index, values, state, plan)
        except (*_FAILURES, MemoryError, NotImplementedError) as error:
            raise EdgeVLMError(
                f"The CoreML operation '{op.name}' ({op.type}) failed ({str(error)[:200]}): the package is damaged "
                "or the inputs do not fit it; export the bundle again."
            ) from None
        moved = op.type == "read_state" or op.type.startswith("const") or op.type in mil_ops.MOVES
        exact = moved or index in plan.updates_in_place
        for (name, kind), value in zip(op.outputs, results, strict=True):
            if observer is not None:
                observer(op, name, value)
            values[name] = value if exact else self._store(value, kind.dtype)

    def _compute(self, op: MilOp, index: int, values: dict[str, Any], state: State, plan: _Plan) -> tuple[Any, ...]:
        if op.type == "const":
            return (self._constant(op.attributes["val"]),)
        if op.type in mil_ops.CONSTEXPR:
            return (self._constexpr(op, values),)
        if op.type == "read_state":
            return (state[_state_name(op)],)
        if op.type == "write_state":
            if index not in plan.written_in_place:
                state[_state_name(op)] = np.array(values[op.inputs["data"][0]])  # views of the old value stay valid
            return ()
        if op.type not in mil_ops.OPS:
            raise NotImplementedError(f"'{op.type}' is not known to the evaluator")
        inputs = {name: self._argument(name, args, values) for name, args in op.inputs.items()}
        if index in plan.updates_in_place:
            target = inputs["x"]
            where = mil_ops.slices(inputs)
            target[where] = inputs["update"].reshape(target[where].shape)
            return (target,)
        result = mil_ops.OPS[op.type](inputs)
        return result if isinstance(result, tuple) else (result,)

    def _argument(self, name: str, args: tuple[Any, ...], values: dict[str, Any]) -> Any:
        found = [
            values[arg] if isinstance(arg, str) and not isinstance(arg, Text) else self._constant(arg) for arg in args
        ]
        return found if name == "values" else found[0]

    def _constant(self, value: Any) -> Any:
        if isinstance(value, Blob):
            if value.offset not in self._constants:
                array = self.package.read_blob(value)
                self._constants[value.offset] = array.astype(np.float32) if array.dtype.kind == "f" else array
            return self._constants[value.offset]
        if isinstance(value, np.ndarray) and value.dtype == np.float16:
            return value.astype(np.float32)
        return value

    def _constexpr(self, op: MilOp, values: dict[str, Any]) -> Array:
        """Codes are read, expanded and dropped; equal codes (functions share them) are expanded once."""
        bound = {**op.attributes, **{name: args[0] for name, args in op.inputs.items()}}
        bound.pop("name", None)
        key = (op.type, *((n, v.offset if isinstance(v, Blob) else str(v)) for n, v in sorted(bound.items())))
        if key not in self._constants:
            arrays = {}
            for name, value in bound.items():
                if isinstance(value, Blob):
                    arrays[name] = self.package.read_blob(value)
                else:
                    arrays[name] = values[value] if isinstance(value, str) else value
            self._constants[key] = self._store(mil_ops.CONSTEXPR[op.type](arrays), op.outputs[0][1].dtype)
        found: Array = self._constants[key]
        return found


def _state_name(op: MilOp) -> str:
    return str(op.inputs["input"][0])


class _Plan:
    """What can be known before a run: when values die, and which state updates may happen in place.

    A state of 2048 positions is tens of MB, and copying it for each layer would dominate a decode step. An
    update is done in place where its new value becomes the state and nothing that shares memory with the old
    one is read later.
    """

    def __init__(self, function: MilFunction) -> None:
        self.dead_after: dict[int, list[str]] = {}
        self.updates_in_place: set[int] = set()
        self.written_in_place: set[int] = set()
        born, last, readers = _lifetimes(function)
        for name, index in last.items():
            if name not in function.states:
                self.dead_after.setdefault(index, []).append(name)
        steps: dict[str, list[int]] = {}
        for index, op in enumerate(function.ops):
            if op.type in _STATE_OPS:
                steps.setdefault(_state_name(op), []).append(index)
        for state, members in _sharing(function).items():
            for name in members:
                index = born[name]
                op = function.ops[index]
                if op.type != "slice_update" or len(readers.get(name, ())) != 1 or name in function.outputs:
                    continue
                write, read = readers[name][0], born[str(op.inputs["x"][0])]
                # read, update, write: with nothing else of this state in between, and no older view read
                # later.
                if write not in steps[state] or [i for i in steps[state] if read <= i <= write] != [read, write]:
                    continue
                if (
                    function.ops[read].type == "read_state"
                    and function.ops[write].type == "write_state"
                    and all(last.get(other, -1) <= index for other in members if born[other] < index)
                ):
                    self.updates_in_place.add(index)
                    self.written_in_place.add(write)


_STATE_OPS = ("read_state", "write_state")


def _lifetimes(function: MilFunction) -> tuple[dict[str, int], dict[str, int], dict[str, list[int]]]:
    """By value: the operation that makes it, the last that reads it, and all that read it."""
    born: dict[str, int] = {}
    readers: dict[str, list[int]] = {}
    for index, op in enumerate(function.ops):
        for arg in (arg for args in op.inputs.values() for arg in args):
            if isinstance(arg, str) and not isinstance(arg, Text):
                readers.setdefault(arg, []).append(index)
        for name, _ in op.outputs:
            born[name] = index
    last = {name: indices[-1] for name, indices in readers.items()}
    last.update(dict.fromkeys(function.outputs, len(function.ops)))
    return born, last, readers


def _sharing(function: MilFunction) -> dict[str, list[str]]:
    """By state: the values that may share memory with it, in the order of their making."""
    state_of: dict[str, str] = {}
    for op in function.ops:
        if op.type == "read_state":
            state: str | None = _state_name(op)
        else:
            source = op.inputs["x"][0] if op.type in mil_ops.VIEWS | {"slice_update"} else None
            state = state_of.get(source) if isinstance(source, str) else None
        if state is not None:
            state_of.update(dict.fromkeys((name for name, _ in op.outputs), state))
    members: dict[str, list[str]] = {}
    for name, state in state_of.items():
        members.setdefault(state, []).append(name)
    return members
