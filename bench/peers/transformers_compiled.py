"""transformers under `torch.compile`."""

from __future__ import annotations

from functools import partial

from protocol import serve
from transformers_eager import load, prepare

if __name__ == "__main__":
    serve(prepare, partial(load, compiled=True))
