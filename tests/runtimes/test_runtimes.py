"""The engines behind the protocol: same numbers, one cache, and sentences for what a user can cause."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import types

import numpy as np
import pytest

from edgevlm.bundle.manifest import open_bundle
from edgevlm.bundle.weights import ShippedWeights
from edgevlm.errors import EdgeVLMError
from edgevlm.export.pipeline import ExportOptions, export_model
from edgevlm.export.quantize import recipe
from edgevlm.runtimes import PROVIDERS, open_runtime
from edgevlm.runtimes.eager import EagerDecoder, eager_runtime
from edgevlm.runtimes.ort import session as ort

KINDS = ["onnxruntime", "portable", "eager"]


def open_kind(bundle, kind):
    if kind == "portable":
        return open_runtime(bundle, "onnxruntime", threads=1, portable=True)
    return open_runtime(bundle, kind, threads=1)


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def latency_bundle(tiny_checkpoint, tmp_path_factory):
    """int4 decoder, dynamic int8 encoder, and the second decoder graph for prompts."""
    out = tmp_path_factory.mktemp("bundle") / "latency"
    options = ExportOptions(str(tiny_checkpoint), out, quantize="int4", preset="latency", gate=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "NARROW", 0)  # otherwise an encoder this small is not dynamic
        return open_bundle(export_model(options).folder)


@pytest.fixture(params=KINDS)
def runtime(request, bundle):
    runtime = open_kind(bundle, request.param)
    yield runtime
    runtime.close()


@pytest.fixture
def reference(bundle):
    return eager_runtime(bundle, ShippedWeights(bundle))


@pytest.fixture(scope="module")
def embeds():
    return np.random.default_rng(0).normal(0, 0.3, (400, 64)).astype(np.float32)


def close(ours, theirs, atol=2e-4):
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-4)


def cosine(ours, theirs):
    return float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))


def views_of(seed, count):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3)).astype(np.uint8))


@pytest.mark.parametrize("count", [1, 2, 13])
def test_encode(runtime, reference, count):
    views = views_of(count, count)
    features = runtime.encoder.encode(views)
    assert [view.shape for view in features] == [(16, 64)] * count
    close(np.stack(features), np.stack(reference.encoder.encode(views)))


def test_no_views_and_unusual_memory_layouts(runtime, reference):
    assert runtime.encoder.encode([]) == []
    views = [view.transpose(1, 0, 2) for view in views_of(1, 2)]
    expected = reference.encoder.encode([np.ascontiguousarray(view) for view in views])
    close(np.stack(runtime.encoder.encode(views)), np.stack(expected))
    embeds = np.random.default_rng(1).normal(0, 0.3, (64, 20)).astype(np.float32).T
    close(runtime.decoder.forward(embeds), reference.decoder.forward(np.ascontiguousarray(embeds)))


def test_embed_forward_and_step(runtime, reference):
    ids = np.array([1, 5, 300, 511, 0, 7], np.int64)
    close(runtime.decoder.embed(ids), reference.decoder.embed(ids), 1e-6)
    close(runtime.decoder.forward(runtime.decoder.embed(ids)), reference.decoder.forward(reference.decoder.embed(ids)))
    for token in (3, 400, 3):
        close(runtime.decoder.step(token), reference.decoder.step(token))
    assert runtime.decoder.position == reference.decoder.position == 9


def test_a_prompt_in_parts_is_the_prompt_at_once(runtime, reference, embeds):
    whole = reference.decoder.forward(embeds[:300])
    for part in (embeds[:1], embeds[1:40], embeds[40:41], embeds[41:170], embeds[170:300]):
        logits = runtime.decoder.forward(part)
    close(logits, whole)


@pytest.mark.parametrize("kind", ["onnxruntime", "portable"])
@pytest.mark.parametrize(("count", "parts"), [(256, [256]), (257, [129, 128]), (600, [200] * 3), (1100, [220] * 5)])
def test_long_prompts_are_read_in_parts_of_one_size(bundle, reference, monkeypatch, kind, count, parts):
    read, embeds = [], np.random.default_rng(3).normal(0, 0.3, (count, 64)).astype(np.float32)
    runtime = open_kind(bundle, kind)
    run = runtime.decoder._run
    monkeypatch.setattr(runtime.decoder, "_run", lambda rows, keep: read.append(len(rows)) or run(rows, keep))
    close(runtime.decoder.forward(embeds), reference.decoder.forward(embeds))
    assert read == parts
    with pytest.raises(EdgeVLMError, match="and the model's context holds 2048"):
        runtime.decoder.forward(np.zeros((2000, 64), np.float32))
    assert read == parts and runtime.decoder.position == count  # refused before any of it is read
    runtime.close()


def test_growing_step_by_step_over_every_doubling(runtime, reference, embeds):
    expected = {length: None for length in (127, 128, 129, 130, 256, 257, 258, 300)}
    for length in expected:
        reference.decoder.rewind(0)
        expected[length] = reference.decoder.forward(embeds[:length])
    runtime.decoder.forward(embeds[:120])
    for i in range(120, 300):
        logits = runtime.decoder.forward(embeds[i : i + 1])
        assert runtime.decoder.position == i + 1
        if i + 1 in expected:
            close(logits, expected[i + 1])


def test_the_shared_buffer_doubles_up_to_the_context_and_not_before(bundle, embeds):
    runtime = open_kind(bundle, "onnxruntime")
    seen = []
    runtime.decoder.forward(embeds[:100])
    seen.append(runtime.decoder._cache.capacity)
    for length in (28, 1, 200, 400, 400, 400, 400):
        runtime.decoder.forward(embeds[:length])
        seen.append(runtime.decoder._cache.capacity)
    assert seen == [128, 128, 256, 512, 1024, 2048, 2048, 2048]
    buffers = runtime.decoder._cache._buffers.values()
    assert sum(buffer.nbytes for buffer in buffers) == 3 * 2 * 2 * 2048 * 16 * 4
    runtime.close()


def test_truncate_then_continue(runtime, reference, embeds):
    runtime.decoder.forward(embeds[:150])
    runtime.decoder.step(9)
    runtime.decoder.rewind(60)
    assert runtime.decoder.position == 60
    runtime.decoder.forward(embeds[200:220])
    reference.decoder.forward(np.concatenate([embeds[:60], embeds[200:220]]))
    close(runtime.decoder.step(4), reference.decoder.step(4))
    runtime.decoder.rewind(1000)
    assert runtime.decoder.position == 81
    runtime.decoder.rewind(0)
    assert runtime.decoder.position == 0
    reference.decoder.rewind(0)
    close(runtime.decoder.forward(embeds[:17]), reference.decoder.forward(embeds[:17]))


def test_the_context_is_the_limit(runtime):
    runtime.decoder.forward(np.zeros((2047, 64), np.float32))
    runtime.decoder.step(1)
    with pytest.raises(EdgeVLMError, match="would take 2049 positions and the model's context holds 2048"):
        runtime.decoder.step(1)
    assert runtime.decoder.position == 2048
    runtime.decoder.rewind(2000)
    runtime.decoder.step(1)
    assert runtime.decoder.position == 2001


def test_results_do_not_change_under_the_callers_hands(runtime, embeds):
    first = runtime.decoder.forward(embeds[:10])
    kept = first.copy()
    runtime.decoder.step(3)
    np.testing.assert_array_equal(first, kept)


def test_close_twice(bundle):
    for kind in KINDS:
        runtime = open_kind(bundle, kind)
        runtime.decoder.forward(np.zeros((3, 64), np.float32))
        runtime.close()
        runtime.close()
        assert runtime.decoder.position == 0


def test_an_interrupt_inside_a_layer_leaves_the_eager_runtime_usable(bundle, reference, embeds):
    class Interrupting(ShippedWeights):
        armed = False

        def read(self, name):
            if self.armed and name == "decoder.layers.1.q.weight":
                raise KeyboardInterrupt
            return super().read(name)

    weights = Interrupting(bundle)
    decoder = EagerDecoder(bundle.manifest.spec.decoder, weights, keep=False)
    decoder.forward(embeds[:5])
    weights.armed = True
    with pytest.raises(KeyboardInterrupt):
        decoder.forward(embeds[5:9])
    weights.armed = False
    assert decoder.position == 5
    close(decoder.forward(embeds[5:9]), reference.decoder.forward(embeds[:9]))


def test_an_interrupt_while_buffers_grow_leaves_the_runtime_usable(bundle, reference, embeds, monkeypatch):
    runtime = open_kind(bundle, "onnxruntime")
    runtime.decoder.forward(embeds[:100])
    real, calls = np.zeros, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(np, "zeros", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runtime.decoder.forward(embeds[100:150])
    monkeypatch.setattr(np, "zeros", real)
    close(runtime.decoder.forward(embeds[100:150]), reference.decoder.forward(embeds[:150]))


def test_features_of_a_tile_do_not_depend_on_its_neighbours(latency_bundle):
    """Activations are quantized by the range of one call, so an outlier tile must not share a call."""
    encoder = open_kind(latency_bundle, "onnxruntime").encoder
    views = views_of(0, 3)
    for i in (0, 2):
        views[i] = views[i] // 32 + 124  # almost grey
    alone, beside = encoder.encode(views), encoder.encode_together(views)
    np.testing.assert_array_equal(alone[0], encoder.encode(views[:1])[0])
    np.testing.assert_array_equal(alone[2], encoder.encode(views[2:])[0])
    assert not np.array_equal(alone[0], beside[0])


def test_prompts_take_the_prefill_graph_and_share_its_cache(bundle, latency_bundle, embeds):
    """Long parts: dynamic int8, near the original. Short ones: the int4 decoder. One cache for both."""
    runtime = open_kind(latency_bundle, "onnxruntime")
    assert len(runtime.decoder._cache._sessions) == 2
    used = []

    class Spy:
        def __init__(self, session, index):
            self.session, self.index = session, index

        def run_with_iobinding(self, binding):
            used.append(self.index)
            self.session.run_with_iobinding(binding)

    runtime.decoder._cache._sessions = [Spy(session, i) for i, session in enumerate(runtime.decoder._cache._sessions)]
    original, shipped = ShippedWeights(bundle), ShippedWeights(latency_bundle)
    mixed = EagerDecoder(bundle.manifest.spec.decoder, original, keep=False)
    for part, weights in ((embeds[:40], original), (embeds[40:55], shipped), (embeds[55:71], original)):
        mixed._weights = weights
        ours, theirs = runtime.decoder.forward(part), mixed.forward(part)
        assert cosine(ours, theirs) > 0.99
    mixed._weights = shipped
    assert cosine(runtime.decoder.step(7), mixed.step(7)) > 0.99
    assert used == [1, 0, 1, 0]


def test_names_and_aliases(bundle):
    for name in (None, "ort", "onnx", "onnxruntime", "eager"):
        expected = "eager" if name == "eager" else "onnxruntime"
        runtime = open_runtime(bundle, name)
        assert runtime.name == expected and "CPU" in runtime.device
        runtime.close()
    assert open_runtime(bundle, threads=2).device == "CPU (2 threads)"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "tflite"}, "Runtime 'tflite' does not exist: choose one of onnxruntime, llama.cpp, coreml, eager"),
        ({"device": "tpu"}, "Device 'tpu' does not exist: choose one of cpu, gpu, npu."),
        ({"threads": 0}, "threads is 0: give a whole number from 1 to 256."),
        ({"threads": 2.0}, "threads is 2.0: give a whole number, or None."),
        ({"threads": 10**9}, "threads is 1000000000: give a whole number from 1 to 256."),
        ({"name": "eager", "device": "gpu"}, "Runtime 'eager' has no GPU: it is plain numpy"),
    ],
)
def test_wrong_choices_are_one_sentence(bundle, options, sentence):
    with pytest.raises(EdgeVLMError) as caught:
        open_runtime(bundle, **options)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("name", ["onnxruntime", "llama.cpp", "eager", "onnxruntime+eager"])
def test_what_is_read_beside_is_read_once_and_its_error_is_raised(name, gguf_bundle):
    if name == "llama.cpp":
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (pip install '.[llama]')")
    bundle, calls = gguf_bundle("fp32"), []
    open_runtime(bundle, name, threads=1, beside=lambda: calls.append(name)).close()
    assert calls == [name]

    def fails():
        raise EdgeVLMError("The tokenizer is damaged: export the bundle again.")

    with pytest.raises(EdgeVLMError, match="The tokenizer is damaged"):
        open_runtime(bundle, name, threads=1, beside=fails)


def test_devices_that_the_installed_engine_lacks_say_what_to_install():
    names = ["CPUExecutionProvider"]
    engine = types.SimpleNamespace(__version__="1.99", get_available_providers=lambda: names)
    with pytest.raises(EdgeVLMError, match=r"1\.99 has no GPU support: .*onnxruntime-gpu .*--device cpu\.$"):
        ort.find_providers(engine, "gpu")
    with pytest.raises(EdgeVLMError, match=r"no NPU support: .*onnxruntime-qnn .*--device cpu\.$"):
        ort.find_providers(engine, "npu")


def test_devices_map_to_the_providers_that_are_there():
    def chosen(device, *names):
        names = [f"{name}ExecutionProvider" for name in (*names, "CPU")]
        engine = types.SimpleNamespace(__version__="1", get_available_providers=lambda: names)
        found = ort.find_providers(engine, device)
        return [(name.removesuffix("ExecutionProvider"), options) for name, options in found]

    assert chosen("cpu", "CUDA") == [("CPU", {})]
    assert chosen("gpu", "Tensorrt", "CUDA") == [("CUDA", {}), ("CPU", {})]
    assert chosen("gpu", "CoreML") == [("CoreML", {"MLComputeUnits": "CPUAndGPU"}), ("CPU", {})]
    assert chosen("npu", "CoreML") == [("CoreML", {"MLComputeUnits": "CPUAndNeuralEngine"}), ("CPU", {})]
    assert chosen("npu", "QNN")[0] == ("QNN", {})


def test_a_provider_that_does_not_start_is_not_silently_the_cpu(bundle):
    class Session:
        def __init__(self, *args, **kwargs):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    real = ort.import_onnxruntime()
    engine = types.SimpleNamespace(
        __version__="1",
        SessionOptions=real.SessionOptions,
        GraphOptimizationLevel=real.GraphOptimizationLevel,
        InferenceSession=Session,
    )
    providers = [("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})]
    with pytest.raises(EdgeVLMError, match="has CUDAExecutionProvider but could not start it"):
        ort.open_session(engine, bundle.folder, providers, None, False)


def test_a_missing_engine_says_how_to_install_it(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EdgeVLMError, match=r"onnxruntime could not be imported .*pip install onnxruntime"):
        open_runtime(bundle)
    open_runtime(bundle, "eager").close()


def test_a_bundle_without_the_target_says_how_to_add_it(bundle):
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, targets={"gguf": {}}))
    with pytest.raises(EdgeVLMError, match=r"holds no ONNX graphs: .*edgevlm export MODEL --target onnx -o"):
        open_runtime(other, "onnxruntime")


@pytest.mark.parametrize("target", [None, {}, {"graphs": 3}, {"graphs": {"decoder": {}}}, {"graphs": {}}, []])
def test_a_manifest_that_does_not_describe_its_graphs(bundle, target):
    manifest = dataclasses.replace(bundle.manifest, targets={"onnx": target})
    with pytest.raises(EdgeVLMError, match="export"):
        open_runtime(dataclasses.replace(bundle, manifest=manifest))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("onnx/vision_encoder.onnx", lambda path: path.write_bytes(path.read_bytes()[:-200])),
        ("onnx/embed_tokens.onnx", lambda path: path.write_bytes(b"")),
        ("onnx/decoder_model_merged.onnx", lambda path: path.write_bytes(b"\x89PNG\r\n" * 500)),
        ("onnx/decoder_model_merged.onnx", lambda path: path.unlink()),
    ],
)
def test_damaged_graphs_are_one_sentence_that_names_the_file(bundle, tmp_path, file, damage):
    copy = open_bundle(shutil.copytree(bundle.folder, tmp_path / "copy"))
    damage(copy.folder / file)
    with pytest.raises(EdgeVLMError) as caught:
        open_runtime(copy)
    text = str(caught.value)
    assert file in text and "\n" not in text and "export it again" in text


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_weights_are_one_sentence(bundle, tmp_path, damage):
    copy = open_bundle(shutil.copytree(bundle.folder, tmp_path / "copy"))
    data = copy.folder / "onnx" / "decoder_model_merged.onnx_data"
    if damage == "missing":
        data.unlink()
    else:
        with data.open("r+b") as stream:
            stream.truncate(data.stat().st_size // 2)
    with pytest.raises(EdgeVLMError) as caught:
        open_runtime(copy)
    assert "decoder_model_merged.onnx" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("device", PROVIDERS)
def test_named_providers_are_used_or_asked_for(device):
    provider = {"qnn": "QNN", "webgpu": "WebGpu", "coreml": "CoreML", "cuda": "CUDA"}.get(device, device.title())
    name = f"{provider}ExecutionProvider"
    engine = types.SimpleNamespace(__version__="1", get_available_providers=lambda: [name, "CPUExecutionProvider"])
    assert ort.find_providers(engine, device)[0][0] == name
    engine.get_available_providers = lambda: ["CPUExecutionProvider"]
    with pytest.raises(EdgeVLMError, match=f"has no {device.upper()} support: replace it with the package"):
        ort.find_providers(engine, device)


def test_the_engine_prints_nothing_of_its_own(bundle, capfd):
    """Its errors are raised; by default it prints them, too, in colour."""
    runtime = open_runtime(bundle, "onnxruntime", threads=1)
    with pytest.raises(Exception, match=r"(?s).+"):
        runtime.decoder.embed(np.array([10**6], np.int64))
    runtime.close()
    assert capfd.readouterr() == ("", "")
