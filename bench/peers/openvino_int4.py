"""OpenVINO with NNCF: encoder in int8, calibrated; decoder with int4 weights in groups of 64."""

from __future__ import annotations

from functools import partial

from openvino_int8 import prepare
from openvino_runtime import load
from protocol import serve

if __name__ == "__main__":
    serve(partial(prepare, bits="INT4_SYM"), load)
