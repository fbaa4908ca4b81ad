"""A small builder for ONNX graphs whose weights live outside the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgevlm import __version__
from edgevlm.export.onnx_.storage import Region
from edgevlm.models.tensor import Tensor

OPSET = 23  # first with Attention, RMSNormalization and RotaryEmbedding
MICROSOFT = "com.microsoft"


class Graph:
    """Nodes, inputs, outputs and initializers under construction."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._options: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._count = 0
        self._contrib = False

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def option(self, name: str, value: int) -> str:
        """A scalar input with a value of its own, which nobody has to feed."""
        self._options.append(helper.make_tensor_value_info(name, TensorProto.INT64, []))
        self._initializers[name] = numpy_helper.from_array(np.array(value, np.int64), name)
        return name

    def output(self, name: str, value: str, dtype: int, shape: Sequence[int | str]) -> None:
        if value != name:
            self._nodes.append(helper.make_node("Identity", [value], [name], name=f"out/{name}"))
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.nodes(op, *inputs, outputs=1, domain=domain, **attributes)[0]

    def nodes(
        self,
        op: str,
        *inputs: str,
        outputs: int | Sequence[str],
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node; `outputs` is a count, or names where "" leaves an optional output out."""
        self._count += 1
        stem = f"{op}_{self._count}"
        names = [f"{stem}.{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self._contrib |= domain == MICROSOFT
        self._nodes.append(helper.make_node(op, list(inputs), names, name=stem, domain=domain, **attributes))
        return names

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """A small value inside the file; equal ones are shared."""
        array = np.asarray(value, dtype=dtype)
        name = f"const/{array.dtype}/{array.shape}/{array.tobytes().hex()}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def external(self, name: str, dtype: int, shape: Sequence[int], region: Region) -> str:
        """An initializer whose bytes lie in a data file."""
        if name not in self._initializers:
            tensor = TensorProto(name=name, data_type=dtype, dims=shape, data_location=TensorProto.EXTERNAL)
            for key, value in (("location", region.location), ("offset", region.offset), ("length", region.length)):
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[name] = tensor
        return name

    def save(self, path: Path) -> None:
        """Write the file and check it, external data included."""
        graph = helper.make_graph(
            self._nodes,
            self.name,
            self._inputs + self._options,
            self._outputs,
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)] + [helper.make_opsetid(MICROSOFT, 1)] * self._contrib
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=11, producer_name="edgevlm", producer_version=__version__
        )
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(path))

    def signature(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs that have to be fed, and outputs, for the manifest."""

        def describe(values: list[onnx.ValueInfoProto]) -> dict[str, Tensor]:
            out = {}
            for value in values:
                tensor = value.type.tensor_type
                shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
                dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
                out[value.name] = Tensor(dtype, shape)
            return out

        return describe(self._inputs), describe(self._outputs)
