"""EdgeVLM's GGUF files on its own llama.cpp runtime."""

from __future__ import annotations

from functools import partial

from edgevlm_onnx import load, prepare
from protocol import serve

if __name__ == "__main__":
    serve(partial(prepare, target="gguf"), partial(load, runtime="llama.cpp"))
