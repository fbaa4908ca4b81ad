"""EdgeVLM's bundle with the preset `latency`: a second decoder graph reads prompts in int8 products."""

from __future__ import annotations

from functools import partial

from edgevlm_onnx import load, prepare
from protocol import serve

if __name__ == "__main__":
    serve(partial(prepare, preset="latency"), load)
