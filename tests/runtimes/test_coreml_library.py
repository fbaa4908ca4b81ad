"""coremltools comes alone: an export imports none of the libraries whose models it could convert."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgevlm.runtimes.coreml.library import hidden

OTHERS = ("torch", "transformers", "tensorflow", "sklearn", "xgboost", "scipy")
ALONE = f"""
import sys
sys.path.insert(0, sys.argv[1])
from edgevlm.runtimes.coreml.library import import_coremltools
ct = import_coremltools()
import coremltools.converters.mil.backend.mil.load  # what writes a package
assert not {set(OTHERS)!r} & sys.modules.keys()
import torch  # is found again
print(ct.__version__, torch.there)
"""


def test_nothing_else_is_imported_and_all_of_it_can_be_afterwards(tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed (pip install '.[coreml]')")
    for name in OTHERS:
        (tmp_path / f"{name}.py").write_text("there, __version__ = 'yes', '2.0.0'\n")
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith(" yes\n"), done.stderr


def test_what_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "not_yet_there.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="inside"), hidden("json", "not_yet_there"):
        import json as again

        assert again is sys.modules["json"]
        with pytest.raises(ImportError):
            import not_yet_there  # type: ignore[import-not-found]
        raise RuntimeError("inside")
    import not_yet_there

    assert not_yet_there is sys.modules.pop("not_yet_there")
