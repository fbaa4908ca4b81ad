"""Values inside a bundle's ONNX graphs, by the names that the reference gives them, to find where one departs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevlm.runtimes.base import F32
from edgevlm.runtimes.ort import import_onnxruntime
from edgevlm.runtimes.ort_products import session_options, signed_saturates

if TYPE_CHECKING:
    from edgevlm.bundle import Bundle

_NORMS = ("norm", "post_norm")


def trace_onnx(bundle: Bundle, tile: F32, embeds: F32) -> dict[str, F32]:
    """The results of norms and of attention, (rows, channels), of one tile (1, 3, S, S) and one prompt (S, D).

    Needs the package onnx, which the extra [export] has: raises ModuleNotFoundError without it.
    """
    graphs, spec = bundle.manifest.targets["onnx"]["graphs"], bundle.manifest.spec
    size, text = spec.vision.image_size, spec.decoder
    mask = np.ones((1, 1, size, size), np.bool_)
    feeds: dict[str, Any] = {"pixel_values": tile[None], "pixel_attention_mask": mask}
    found = _run(bundle.path(graphs["vision_encoder"]["file"]), feeds)
    empty = np.zeros((1, text.num_kv_heads, 0, text.head_dim), np.float32)
    past = {f"past_key_values.{i}.{side}": empty for i in range(text.num_layers) for side in ("key", "value")}
    feeds = {"inputs_embeds": embeds[None], "attention_mask": np.ones((1, len(embeds)), np.int64), **past}
    reader = graphs.get("decoder_prefill", graphs["decoder"])
    return found | _run(bundle.path(reader["file"]), feeds)


def _run(path: Path, feeds: dict[str, Any]) -> dict[str, F32]:
    """Run a graph whose named values became outputs; its weights are read from where they lie."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    values = _values(model.graph)
    known = {output.name for output in model.graph.output}
    for value in values.values():
        if value not in known:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(value))
    ort = import_onnxruntime()
    options = session_options(ort, signed_saturates(ort))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = session.run(list(values.values()), feeds)
    return {name: out.reshape(-1, out.shape[-1]) for name, out in zip(values, outputs, strict=True)}


def _values(graph: Any) -> dict[str, str]:
    """Name in the reference -> name in the graph, in the order of the graph."""
    found: dict[str, str] = {}
    vision = 0
    for node in graph.node:
        weights = [name.removesuffix(".weight") for name in node.input if name.endswith(".weight")]
        norms = [name for name in weights if name.rpartition(".")[2].startswith(_NORMS)]
        if norms:
            found[norms[0]] = node.output[0]
        elif node.op_type == "GroupQueryAttention":
            found[f"decoder.layers.{node.output[0].rpartition('.')[2]}.attention"] = node.output[0]
        elif node.op_type == "Attention":
            found[f"vision.layers.{vision}.attention"] = node.output[0]
            vision += 1
    return found
