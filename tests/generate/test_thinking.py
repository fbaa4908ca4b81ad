"""`--thinking` and `--no-thinking` change what asks for the answer, where a template has the switch."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from edgevlm.cli import main
from edgevlm.export.pipeline import ExportOptions, export_model


def test_a_switch_of_thinking(builder: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = builder.build_tiny(tmp_path / "model")
    path = folder / "chat_template.jinja"
    told = "{% if enable_thinking is defined and enable_thinking is false %} <think></think>{% endif %}"
    path.write_text(path.read_text().replace("'Assistant:' }}", f"'Assistant:' }}}}{told}"))
    out = export_model(ExportOptions(str(folder), tmp_path / "out", quantize="fp32", gate=False)).folder
    lengths = []
    for more in ([], ["--thinking"], ["--no-thinking"]):
        with pytest.raises(SystemExit) as ended:
            main(["run", str(out), "Hello", "--max-tokens", "2", "--json", *more])
        assert not ended.value.code
        lengths.append(json.loads(capsys.readouterr().out)["prompt_tokens"])
    assert lengths[0] == lengths[1] < lengths[2]


def test_a_model_without_it(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tiny_bundle), "Hello", "--no-thinking"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "Error: This model has no switch for thinking: leave it as it is.\n"
