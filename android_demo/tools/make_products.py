"""The graph by which a session finds out whether its processor multiplies exactly: Python's own, for Kotlin.

python android_demo/tools/make_products.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT.parent))

from edgevlm.runtimes.ort.products import _model  # noqa: E402

FILE = ROOT / "edgevlm-onnx/src/main/resources/ai/edgevlm/onnx/products.onnx"


def main() -> None:
    if "--check" in sys.argv[1:]:
        if FILE.read_bytes() != _model():
            sys.exit(f"{FILE.name} is not Python's: run tools/make_products.py.")
        return
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_bytes(_model())


if __name__ == "__main__":
    main()
