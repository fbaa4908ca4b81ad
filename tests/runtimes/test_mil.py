"""The MIL evaluator: operations against torch, the file reader against coremltools' protobuf classes."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes.mil import ops as mil_ops
from edgevlm.runtimes.mil.blob import Blob, unpack
from edgevlm.runtimes.mil.evaluator import MilEvaluator
from edgevlm.runtimes.mil.file import open_package
from edgevlm.runtimes.mil.overflow import OverflowObserver

F = torch.nn.functional
RNG = np.random.default_rng(0)


def array(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def same(ours: Any, theirs: torch.Tensor, tolerance: float = 2e-6) -> None:
    assert ours.shape == tuple(theirs.shape)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=tolerance, rtol=tolerance)


# Operations against torch


@pytest.mark.parametrize("mask", [False, True])
def test_attention(mask: bool) -> None:
    q, k, v, m = array(2, 3, 5, 8), array(2, 3, 7, 8), array(2, 3, 7, 8), array(1, 1, 5, 7)
    inputs = {"query": q, "key": k, "value": v, **({"attn_mask": m} if mask else {})}
    t = [torch.from_numpy(x) for x in (q, k, v)]
    same(
        mil_ops.attention(inputs),
        F.scaled_dot_product_attention(*t, attn_mask=torch.from_numpy(m) if mask else None),
    )


def test_attention_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = array(1, 2, 33, 8), array(1, 2, 9, 8), array(1, 2, 9, 8)
    whole = mil_ops.attention({"query": q, "key": k, "value": v})
    monkeypatch.setattr(mil_ops, "_SCORES", 40)
    np.testing.assert_allclose(mil_ops.attention({"query": q, "key": k, "value": v}), whole, atol=1e-6)


@pytest.mark.parametrize("bool_mask", [np.tril(np.ones((4, 4), bool))])
def test_attention_with_a_boolean_mask(bool_mask: np.ndarray[Any, Any]) -> None:
    q = array(1, 1, 4, 8)
    t = torch.from_numpy(q)
    expected = F.scaled_dot_product_attention(t, t, t, attn_mask=torch.from_numpy(bool_mask))
    same(mil_ops.attention({"query": q, "key": q, "value": q, "attn_mask": bool_mask}), expected)


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 4), kernel=st.integers(1, 3), stride=st.integers(1, 3), pad=st.integers(0, 2),
    groups=st.sampled_from([1, 2]),
)  # fmt: skip
def test_conv(size: int, kernel: int, stride: int, pad: int, groups: int) -> None:
    x, weight, bias = array(1, 4, size + 4, size + 3), array(6, 4 // groups, kernel, kernel), array(6)
    inputs = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "strides": np.array([stride, stride]),
        "groups": np.int32(groups),
    }
    inputs |= {"pad_type": "custom", "pad": np.array([pad] * 4)} if pad else {"pad_type": "valid"}
    t = [torch.from_numpy(a) for a in (x, weight, bias)]
    same(mil_ops.conv(inputs), F.conv2d(*t, stride=stride, padding=pad, groups=groups), 1e-5)


def test_layer_norm_over_either_axis() -> None:
    x, gamma, beta = array(1, 6, 1, 4), array(6), array(6)
    got = mil_ops.layer_norm({"x": x, "axes": np.array([1]), "gamma": gamma, "beta": beta, "epsilon": np.float32(1e-3)})
    t = torch.from_numpy(x).permute(0, 2, 3, 1)
    expected = F.layer_norm(t, (6,), torch.from_numpy(gamma), torch.from_numpy(beta), 1e-3).permute(0, 3, 1, 2)
    same(got, expected)


def test_quick_gelu() -> None:
    x = np.linspace(-8, 8, 999, dtype=np.float32)
    t = torch.from_numpy(x)
    same(mil_ops.gelu({"x": x, "mode": "SIGMOID_APPROXIMATION"}), t * torch.sigmoid(1.702 * t))


@pytest.mark.parametrize("axis", [1, 3])
def test_gather(axis: int) -> None:
    x, index = array(2, 5, 3, 7), np.array([4, 0, 0, 2], np.int32)
    got = mil_ops.OPS["gather"]({"x": x, "indices": index, "axis": np.int32(axis)})
    same(got, torch.index_select(torch.from_numpy(x), axis, torch.from_numpy(index)))


@pytest.mark.parametrize(("mode", "approximate"), [("EXACT", "none"), ("TANH_APPROXIMATION", "tanh")])
def test_gelu(mode: str, approximate: str) -> None:
    x = np.linspace(-8, 8, 999, dtype=np.float32)
    same(mil_ops.gelu({"x": x, "mode": mode}), F.gelu(torch.from_numpy(x), approximate=approximate))


def test_erf_is_near_the_definition() -> None:
    x = np.linspace(-5, 5, 2001, dtype=np.float32)
    assert np.abs(mil_ops.erf(x) - [math.erf(v) for v in x]).max() < 3e-7


@pytest.mark.parametrize(
    ("name", "function"), [("silu", F.silu), ("sigmoid", torch.sigmoid), ("relu", F.relu), ("tanh", torch.tanh)]
)
def test_activations(name: str, function: Any) -> None:
    x = array(3, 50) * 5
    same(mil_ops.OPS[name]({"x": x}), function(torch.from_numpy(x)))


def test_softmax_and_matmul() -> None:
    x, y = array(2, 3, 4), array(2, 5, 4)
    got = mil_ops.OPS["softmax"]({"x": mil_ops.matmul({"x": x, "y": y, "transpose_y": np.bool_(True)}), "axis": -1})
    same(got, torch.softmax(torch.from_numpy(x) @ torch.from_numpy(y).mT, -1))


def test_slices_follow_the_masks() -> None:
    x = array(3, 4, 5)
    got = mil_ops.slice_by_index(
        {
            "x": x,
            "begin": np.array([1, 0, -2]),
            "end": np.array([0, 3, 0]),
            "end_mask": np.array([0, 0, 1], bool),
            "squeeze_mask": np.array([1, 0, 0], bool),
        }
    )
    np.testing.assert_array_equal(got, x[1, :3, -2:])
    with pytest.raises(IndexError):
        mil_ops.slice_by_index({"x": x, "begin": np.array([0, 0, 0]), "end": np.array([3, 4, 6])})


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 3), size=st.sampled_from([1, 4, 32]))
def test_blockwise_shift_scale(rows: int, blocks: int, size: int) -> None:
    data = RNG.integers(-8, 8, (rows, blocks * size)).astype(np.int8)
    scale, offset = array(rows, blocks), RNG.integers(-8, 8, (rows, blocks)).astype(np.int8)
    got = mil_ops.blockwise_shift_scale({"data": data, "scale": scale, "offset": offset})
    for r in range(rows):
        for c in range(blocks * size):
            b = c // size
            assert got[r, c] == np.float32(scale[r, b]) * (int(data[r, c]) - int(offset[r, b]))


@settings(max_examples=20, deadline=None)
@given(codes=st.lists(st.integers(-8, 7), min_size=2, max_size=64).filter(lambda c: len(c) % 2 == 0))
def test_unpack_int4(codes: list[int]) -> None:
    nibbles = np.array(codes, np.int8).view(np.uint8) & 15
    packed = nibbles[::2] | nibbles[1::2] << 4
    np.testing.assert_array_equal(unpack(packed, "int4", len(codes)), codes)


# Packages, authored and saved by coremltools itself


@pytest.fixture(scope="module")
def ct() -> Any:
    return pytest.importorskip("coremltools", reason="coremltools is not installed (pip install '.[coreml]')")


@pytest.fixture(scope="module")
def stateful(ct: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = w @ x with int4 w, added to row `position` of a state; out: the state's sum, y and a cast of
    both."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    codes = np.random.default_rng(1).integers(-8, 8, (64, 64)).astype(np.int8)

    @mb.program(
        input_specs=[
            mb.TensorSpec((1, 64), dtype=types.fp16),
            mb.TensorSpec((1,), dtype=types.int32),
            mb.StateTensorSpec((4, 64), dtype=types.fp16),
        ],
        opset_version=ct.target.iOS18,
    )
    def program(x: Any, position: Any, cache: Any) -> Any:
        weight = mb.constexpr_blockwise_shift_scale(
            data=codes.astype(types.np_int4_dtype), scale=np.full((64, 2), 0.125, np.float16), name="w"
        )
        y = mb.linear(x=x, weight=weight, name="y")
        begin = mb.concat(values=[position, np.array([0], np.int32)], axis=0)
        end = mb.concat(values=[mb.add(x=position, y=np.array([1], np.int32)), np.array([64], np.int32)], axis=0)
        new = mb.slice_update(x=mb.read_state(input=cache), update=y, begin=begin, end=end)
        held = mb.coreml_update_state(state=cache, value=new)
        return mb.reduce_sum(x=held, axes=[0], name="total"), y

    path: Path = tmp_path_factory.mktemp("mil") / "stateful.mlpackage"
    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    model.save(str(path))
    np.save(path.parent / "codes.npy", codes)
    return path


def test_reader_agrees_with_protobuf(ct: Any, stateful: Path) -> None:
    package, spec = open_package(stateful), ct.utils.load_spec(str(stateful))
    assert package.specification_version == spec.specificationVersion
    for name, function in spec.mlProgram.functions.items():
        ours = package.functions[name]
        block = function.block_specializations[function.opset]
        assert [op.type for op in ours.ops] == [op.type for op in block.operations]
        assert list(ours.outputs) == list(block.outputs)
        assert {*ours.inputs, *ours.states} == {item.name for item in function.inputs}
        for a, b in zip(ours.ops, block.operations, strict=True):
            assert [name for name, _ in a.outputs] == [out.name for out in b.outputs]
            assert set(a.inputs) == set(b.inputs)
            for key, argument in b.inputs.items():
                for x, y in zip(a.inputs[key], argument.arguments, strict=True):
                    if y.WhichOneof("binding") == "name":
                        assert x == y.name
                    elif y.value.WhichOneof("value") == "blobFileValue":
                        assert isinstance(x, Blob) and x.offset == y.value.blobFileValue.offset


def test_weights_are_what_was_written(stateful: Path) -> None:
    package = open_package(stateful)
    op = next(op for op in package.functions["main"].ops if op.type.startswith("constexpr"))
    codes = package.read_blob(op.inputs["data"][0])
    np.testing.assert_array_equal(codes, np.load(stateful.parent / "codes.npy"))


def test_state_is_kept_between_calls(stateful: Path) -> None:
    evaluator = MilEvaluator(stateful)
    weight = np.load(stateful.parent / "codes.npy").astype(np.float32) * np.float32(0.125)
    state, total = evaluator.make_state(), np.zeros(64, np.float32)
    for position in (2, 0, 2):
        x = np.round(array(1, 64), 2).astype(np.float16).astype(np.float32)
        out = evaluator.run({"x": x, "position": np.array([position])}, state)
        row = (x @ weight.T)[0].astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(out["y"][0], row)
        total = row if position == 2 else total + row
        np.testing.assert_array_equal(state["cache"][position], row)
    assert not state["cache"][1].any()


def test_update_in_place_equals_a_copy(stateful: Path) -> None:
    fast, slow = MilEvaluator(stateful), MilEvaluator(stateful)
    states = fast.make_state(), slow.make_state()
    for position in (0, 1):
        inputs = {"x": array(1, 64), "position": np.array([position])}
        first = fast.run(inputs, states[0])
        plan = fast._plans["main"]
        assert plan.updates_in_place and plan.written_in_place
        slow.run(inputs, slow.make_state())
        slow._plans["main"].updates_in_place = set()
        slow._plans["main"].written_in_place = set()
        second = slow.run(inputs, states[1])
        np.testing.assert_array_equal(first["total"], second["total"])
        np.testing.assert_array_equal(states[0]["cache"], states[1]["cache"])


def test_fp16_storage_rounds_and_fp32_does_not(stateful: Path) -> None:
    inputs = {"x": array(1, 64), "position": np.array([0])}
    half, full = (MilEvaluator(stateful, storage) for storage in ("fp16", "fp32"))
    a, b = (e.run(inputs, e.make_state())["y"] for e in (half, full))
    np.testing.assert_array_equal(a, a.astype(np.float16).astype(np.float32))
    assert 0 < np.abs(a - b).max() < 0.02


def test_wrong_inputs_are_named(stateful: Path) -> None:
    evaluator = MilEvaluator(stateful)
    good = {"x": array(1, 64), "position": np.array([0])}
    with pytest.raises(EdgeVLMError, match=r"'x' of 'main' has shape \(1, 63\)"):
        evaluator.run({**good, "x": array(1, 63)}, evaluator.make_state())
    with pytest.raises(EdgeVLMError, match="needs the input 'position'"):
        evaluator.run({"x": array(1, 64)}, evaluator.make_state())
    with pytest.raises(EdgeVLMError, match="needs the state 'cache'"):
        evaluator.run(good)
    with pytest.raises(EdgeVLMError, match="no function 'other'"):
        evaluator.run(good, function="other")
    with pytest.raises(EdgeVLMError, match="slice end 10 is outside"):
        evaluator.run({**good, "position": np.array([9])}, evaluator.make_state())
    with pytest.raises(EdgeVLMError, match="Storage 'fp8'"):
        MilEvaluator(stateful, "fp8")


# Damaged and hostile packages


@pytest.fixture
def copy(stateful: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stateful, tmp_path / "copy.mlpackage"))


def _inner(folder: Path) -> Path:
    return folder / "Data" / "com.apple.CoreML"


@pytest.mark.parametrize("keep", [0, 1, 7, 100, 1000])
def test_truncated_program(copy: Path, keep: int) -> None:
    model = _inner(copy) / "model.mlmodel"
    model.write_bytes(model.read_bytes()[:keep])
    with pytest.raises(EdgeVLMError, match="not a valid CoreML package"):
        open_package(copy)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_changed_bytes_never_crash(
    stateful: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "f.mlpackage"
    shutil.copytree(stateful, folder)
    model = _inner(folder) / "model.mlmodel"
    content = bytearray(model.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    model.write_bytes(content)
    with contextlib.suppress(EdgeVLMError):
        open_package(folder)


def test_a_zero_near_the_start_never_crashes(copy: Path) -> None:
    """Among these are a function without a block and inputs without a type."""
    model = _inner(copy) / "model.mlmodel"
    content = model.read_bytes()
    for place in range(min(len(content), 500)):
        model.write_bytes(content[:place] + b"\0" + content[place + 1 :])
        with contextlib.suppress(EdgeVLMError):
            open_package(copy)


def test_truncated_weights(copy: Path) -> None:
    weights = _inner(copy) / "weights" / "weight.bin"
    weights.write_bytes(weights.read_bytes()[:-600])
    evaluator = MilEvaluator(copy)
    with pytest.raises(EdgeVLMError, match="weight file"):
        evaluator.run({"x": array(1, 64), "position": np.array([0])}, evaluator.make_state())


def test_missing_parts(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeVLMError, match="no CoreML package"):
        open_package(tmp_path / "nothing.mlpackage")
    (_inner(copy) / "weights" / "weight.bin").unlink()
    evaluator = MilEvaluator(copy)
    with pytest.raises(EdgeVLMError, match="weight file that it lacks"):
        evaluator.run({"x": array(1, 64), "position": np.array([0])}, evaluator.make_state())


def test_manifest_cannot_point_outside(copy: Path) -> None:
    manifest = json.loads((copy / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../secret"
    (copy / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EdgeVLMError, match="points outside"):
        open_package(copy)


def test_weights_elsewhere_are_refused(copy: Path) -> None:
    model = _inner(copy) / "model.mlmodel"
    model.write_bytes(model.read_bytes().replace(b"@model_path/weights/weight.bin", b"@model_path/../../../secret.bi"))
    with pytest.raises(EdgeVLMError, match="weights in another file"):
        open_package(copy)


# fp16 overflow


def _norm_package(folder: Path, safe: bool) -> Path:
    from edgevlm.export.coreml_.mil_ops import MilOps
    from edgevlm.export.coreml_.package import load_coremltools, save_package
    from edgevlm.export.coreml_.store import WeightStore
    from edgevlm.models.spec import Norm

    class Ones:
        def read(self, name: str) -> Any:
            return np.ones(64, np.float32)

        def __contains__(self, name: object) -> bool:
            return str(name).endswith(".weight")

    mil = load_coremltools()
    mb = mil.mb
    placeholder = mb.placeholder((1, 4, 64), dtype=mil.types.fp16)
    with mil.Function({"x": placeholder}, opset_version=mil.ct.target.iOS18) as function:
        x = function.inputs["x"]
        if safe:
            out = MilOps(mil, WeightStore(Ones(), lambda name: None)).norm(x, "norm", Norm("rms", 1e-5))  # type: ignore[arg-type]
        else:
            mean = mb.reduce_mean(x=mb.square(x=x, name="norm_square"), axes=[-1], keep_dims=True, name="norm_mean")
            out = mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float16(1e-5)), name="norm")
        function.set_outputs([out])
    path = folder / f"{'safe' if safe else 'plain'}.mlpackage"
    save_package(mil, {"main": function}, path)
    return path


def test_hand_written_rms_norm_overflows_and_is_found(ct: Any, tmp_path: Path) -> None:
    x = array(1, 4, 64) * 400
    expected = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)
    observer = OverflowObserver()
    plain = MilEvaluator(_norm_package(tmp_path, safe=False)).run({"x": x}, observer=observer)["norm"]
    assert not plain.any(), "fp16 makes mean(x^2) infinite and the result zero"
    assert observer.problems[0].name == "norm_square" and observer.problems[0].overflows
    assert observer.problems[0].nonfinite > 0 and observer.problems[0].peak > 65504
    exact = MilEvaluator(tmp_path / "plain.mlpackage", "fp32").run({"x": x})["norm"]
    np.testing.assert_allclose(exact, expected, rtol=1e-5)

    observer = OverflowObserver()
    safe = MilEvaluator(_norm_package(tmp_path, safe=True)).run({"x": x}, observer=observer)["norm"]
    np.testing.assert_allclose(safe, expected, rtol=2e-3, atol=1e-5)
    assert observer.problems == ()


def test_flushing_is_reported(ct: Any, tmp_path: Path) -> None:
    from edgevlm.export.coreml_.package import load_coremltools, save_package

    mil = load_coremltools()
    with mil.Function(
        {"x": mil.mb.placeholder((1, 8), dtype=mil.types.fp16)}, opset_version=mil.ct.target.iOS18
    ) as function:
        function.set_outputs([mil.mb.mul(x=function.inputs["x"], y=np.float16(1e-4), name="tiny")])
    save_package(mil, {"main": function}, tmp_path / "tiny.mlpackage")
    observer = OverflowObserver()
    MilEvaluator(tmp_path / "tiny.mlpackage").run({"x": np.full((1, 8), 1e-4, np.float32)}, observer=observer)
    assert [row.name for row in observer.problems] == ["tiny"] and observer.problems[0].flushed == 1.0
