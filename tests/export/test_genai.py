"""onnxruntime-genai, a peer with a loop of its own, opens a bundle and gives the same text tokens."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgevlm.bundle.manifest import Bundle, open_bundle
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.ort.session import import_onnxruntime
from edgevlm.scenes import ask, scenes


def test_genai_generates_the_same_tokens(tiny_bundle: Path) -> None:
    import_onnxruntime()  # telemetry off before genai loads the same library
    genai = pytest.importorskip("onnxruntime_genai")
    ids = [1, 20, 33, 44, 55]
    model = genai.Model(str(tiny_bundle))
    assert genai.Tokenizer(model).encode("How many?") is not None
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=len(ids) + 24, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(np.array([ids], np.int32))
    theirs = []
    while not generator.is_done() and len(theirs) < 20:
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))

    decoder = open_runtime(open_bundle(tiny_bundle), "onnxruntime").decoder
    logits, ours = decoder.forward(decoder.embed(np.array(ids))), []
    for _ in theirs:
        ours.append(int(logits.argmax()))
        logits = decoder.step(ours[-1])
    assert theirs == ours and len(ours) > 5


def test_genai_reads_and_writes_the_default_models_tokens(gguf_bundle: Callable[..., Bundle]) -> None:
    """Boxes too, which are added tokens. genai's BPE is its own: it looks a whole word up before it merges."""
    import_onnxruntime()
    genai = pytest.importorskip("onnxruntime_genai")
    bundle = gguf_bundle("int4", "default")
    theirs = genai.Tokenizer(genai.Model(str(bundle.folder)))
    ours = Tokenizer.from_file(str(bundle.path("tokenizer.json")))
    for question in (question for scene in scenes("val", 0, 20) for question in ask(scene)):
        text = f"<|im_start|>User: {question.question}<end_of_utterance>\nAssistant: {question.answer}"
        ids = ours.encode(text).ids
        assert theirs.encode(text).tolist() == ids, text
        said = ours.encode(f" {question.answer}").ids
        assert theirs.decode(said).strip() == question.answer
