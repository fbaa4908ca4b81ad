"""Values inside a bundle's ONNX graphs, by the names that the reference gives them, to find where one departs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevlm.bundle.manifest import target_of
from edgevlm.bundle.targets import OnnxTarget
from edgevlm.inputs.layout import Layout
from edgevlm.models.spec import states
from edgevlm.runtimes.ort.products import session_options, signed_saturates
from edgevlm.runtimes.ort.session import import_onnxruntime
from edgevlm.runtimes.ort.states import empty_states, position_feeds, vision_feeds
from edgevlm.types import F32

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

_NORMS = ("norm", "patch_norm", "pre_norm", "post_norm")


def trace_onnx(bundle: Bundle, view: F32, embeds: F32, layout: Layout) -> dict[str, F32]:
    """The results of norms and of attention, (rows, channels), of one view (3, H, W) and one prompt (S, D).

    Needs the package onnx, which the extra [export] has: raises ModuleNotFoundError without it.
    """
    graphs, spec = target_of(bundle, OnnxTarget).graphs, bundle.manifest.spec
    found = _run(bundle.path(graphs["vision_encoder"].file), vision_feeds(spec, view))
    d = spec.decoder
    feeds: dict[str, Any] = {"inputs_embeds": embeds[None], "attention_mask": np.ones((1, len(embeds)), np.int64)}
    feeds |= position_feeds(d, layout, 0, len(embeds))
    feeds |= {f"past_key_values.{name}": empty for name, empty in empty_states(states(d)).items()}
    reader = graphs.get("decoder_prefill", graphs["decoder"])
    return found | _run(bundle.path(reader.file), feeds)


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
    for node in graph.node:
        weights = [name.removesuffix(".weight") for name in node.input if name.endswith(".weight")]
        norms = [name for name in weights if name.rpartition(".")[2].startswith(_NORMS)]
        if norms:
            found[norms[0]] = node.output[0]
        elif node.output[0].endswith(".attention"):
            found[node.output[0]] = node.output[0]
    return found
