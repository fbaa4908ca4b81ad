"""bench/export.py: what it says of programs that export and of one that cannot."""

import importlib.util
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "export.py"


def test_a_program_that_fails_is_listed_with_its_own_error(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("bench_export", SCRIPT)
    assert spec is not None and spec.loader is not None
    bench = sys.modules["bench_export"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    makes = "import pathlib; p = pathlib.Path('{out}'); p.mkdir(); (p / 'x').write_bytes(bytes(2_000_000))"
    fails = "import sys; sys.exit('no such architecture')"
    results = {}
    for name, code in (("edgevlm-no-gate", makes), ("optimum-onnx", fails)):
        exporter = bench.Exporter(name, name, (sys.executable, "-c", code))
        out = tmp_path / name
        results[name] = [bench.measure(exporter, lambda part, out=out: part.replace("{out}", str(out)), out)]
    made = results["edgevlm-no-gate"][0]
    assert made["size"] == 2_000_000 and made["peak"] > 1 << 20 and made["seconds"] > 0
    shown = bench.table(results)
    assert "| EdgeVLM, three targets, int4 |" in shown and "| 2 MB |" in shown
    assert "- optimum-onnx 0.1.0, ONNX: no such architecture" in shown
