"""Figures of a bundle on this machine: arithmetic with known numbers, processes of their own, a report to pool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgevlm.bench import worker as bench_worker
from edgevlm.bench.device_card import card_line, device_card
from edgevlm.bench.measure import BenchOptions, Subject, bench, paired_ratios, read_bench, runtime_bytes, statistic
from edgevlm.bench.worker import STAGES, Worker
from edgevlm.bundle.manifest import open_bundle
from edgevlm.cli import main
from edgevlm.commands.bench import _other, describe
from edgevlm.errors import EdgeVLMError
from edgevlm.generate.loop import GenerateOptions, Pipeline
from edgevlm.io.processor import peak_memory
from edgevlm.runtimes import open_runtime

ROOT = Path(__file__).parents[2]


# --- arithmetic --------------------------------------------------------------------------------------------


def test_ratios_are_paired_and_above_one_when_the_first_is_faster() -> None:
    """The machine is ten times as slow in the second turn, and thrice in the third: the pairs do not notice."""
    first = [{"encode": e, "prefill": 1.0, "decode": 0.5} for e in (1.0, 10.0, 3.0)]
    other = [{"encode": e, "prefill": 0.5, "decode": d} for e, d in ((2.0, 0.5), (30.0, 1.0), (12.0, 2.0))]
    found = paired_ratios(first, other)
    assert found["ratios"] == {"encode": 3.0, "prefill": 0.5, "decode": 2.0}
    assert found["spread"] == {"encode": [2.0, 4.0], "prefill": [0.5, 0.5], "decode": [1.0, 4.0]}
    assert found["pairs"] == 3
    # A ratio of medians would say 12 / 3 = 4.
    none = [{"encode": 0.0, "prefill": 1.0, "decode": 1.0}]
    assert paired_ratios(none, none)["ratios"] == {"encode": None, "prefill": 1.0, "decode": 1.0}


def test_statistic() -> None:
    assert statistic([3.0, 1.0, 2.0, 10.0]) == {
        "median": 2.5,
        "min": 1.0,
        "max": 10.0,
        "values": [3.0, 1.0, 2.0, 10.0],
    }


class FakeWorker:
    """Tells when it ran; each subject's stages are its own number of seconds."""

    log: list[str]

    def __init__(self, task: dict[str, Any]) -> None:
        self.name = Path(task["bundle"]).name
        FakeWorker.log.append(f"start {self.name}")
        self.loaded = {"load": 0.25, "start": 0.5, "runtime": "fake", "device": "none"}

    def ask(self) -> dict[str, Any]:
        FakeWorker.log.append(self.name)
        factor = {"one": 1.0, "two": 4.0}[self.name]
        stages = dict(zip(STAGES, (1 * factor, 2 * factor, 3 * factor, 0.1 * factor), strict=True))
        return {**stages, "image_tokens": 16, "prompt_tokens": 20, "answer_tokens": 8, "peak_memory": 10**8, "ids": [1]}

    def close(self) -> None:
        FakeWorker.log.append(f"close {self.name}")


def test_subjects_take_turns_forwards_and_backwards(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevlm.bench.measure.Worker", FakeWorker)
    FakeWorker.log = []
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(tiny_bundle)
    told: list[tuple[int, int]] = []
    report = bench(
        [Subject(tmp_path / "one"), Subject(tmp_path / "two")],
        BenchOptions(repeat=3, cold=2),
        progress=lambda what, done, total: told.append((done, total)),
    )
    cold = "start one, one, start two, two, close two, start two, two, close one, start one, one"
    warm = "one, two, two, one, one, two"
    assert FakeWorker.log == f"{cold}, {warm}, close two, close one".split(", ")
    assert told == [(i + 1, 10) for i in range(10)]
    assert report["ratios"] == report["vs"][0]["ratios"] == {"encode": 4.0, "prefill": 4.0, "decode": 4.0}
    one = report["subjects"][0]
    assert one["warm"]["prefill"] == {"median": 3.0, "min": 3.0, "max": 3.0, "values": [3.0] * 3}
    assert len(one["cold"]["encode"]["values"]) == len(one["load"]["values"]) == 2
    assert read_bench(json.loads(json.dumps(report)), "r.json") == json.loads(json.dumps(report))
    text = describe(report)
    assert "two on fake against" in text and "4.00x" in text and "10.0 per second" in text


# --- the real thing ----------------------------------------------------------------------------------------


def test_the_command_measures_writes_and_compares(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    words = [str(tiny_bundle), "--vs", "eager", "--repeat", "2", "--cold", "1", "--tokens", "4", "--tiles", "1"]
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", *words, "--threads", "1", "--json", str(out)])
    printed, said = capfd.readouterr()
    assert exit_info.value.code == 0, said
    for word in (*STAGES, "peak memory", "on disk", "eager against tiny-fp32 on onnxruntime, 2 pairs"):
        assert word in printed
    report = read_bench(json.loads(out.read_text()), str(out))
    assert [s["name"] for s in report["subjects"]] == ["tiny-fp32 on onnxruntime", "tiny-fp32 on eager"]
    for subject in report["subjects"]:
        assert subject["answer_tokens"] == 4, "stop tokens do not cut a measured answer"
        assert subject["image_tokens"] == 16 < subject["prompt_tokens"]
        assert len(subject["warm"]["decode"]["values"]) == 2 and subject["warm"]["decode"]["median"] > 0
        assert subject["bytes"]["runtime"] == sum(
            f.stat().st_size for f in tiny_bundle.rglob("*") if f.is_file() and f.name != "manifest.json"
        )
        assert sys.platform != "linux" or 20e6 < subject["peak_memory"] < 2e9
    assert report["subjects"][0]["ids"] == report["subjects"][1]["ids"], "the same question was asked"
    assert set(report["ratios"]) == {"encode", "prefill", "decode"}
    assert report["device"]["versions"]["onnxruntime"] and report["device"]["cores"] == os.cpu_count()
    assert report["settings"]["threads"] == 1 and report["settings"]["picture"] == "coffee.jpg"
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", *words, "--json", str(out)])
    assert exit_info.value.code == 2 and "already exists" in capfd.readouterr().err
    assert json.loads(out.read_text()) == report


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM")
def test_a_childs_peak_is_its_own() -> None:
    """ru_maxrss of a small child of a large parent is the parent's; this must not be."""
    code = "from edgevlm.io.processor import peak_memory; print(peak_memory())"
    big = f"x = bytearray(400_000_000); import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", big], capture_output=True, text=True, check=True, env=environment)
    assert 5e6 < int(done.stdout) < 300e6
    mine = peak_memory()
    assert mine is not None and mine > 5e6


def test_a_dead_process_and_a_bad_bundle_are_sentences(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = BenchOptions(tokens=2)
    task = {"bundle": str(tiny_bundle), "runtime": None, "picture": str(options.picture), "device": "cpu",
            "threads": None, "tiles": 1, "tokens": 2, "question": "q"}  # fmt: skip
    with pytest.raises(EdgeVLMError, match="Runtime 'nope' does not exist"):
        Worker({**task, "runtime": "nope"})
    worker = Worker(task)
    worker._process.kill()
    with pytest.raises(EdgeVLMError, match=r"died \(signal SIGKILL\) without an answer"):
        worker.ask()
    worker.close()
    worker.close()


def test_engines_see_a_changed_picture_every_time() -> None:
    """And only values that pixels have."""
    import numpy as np

    seen = []

    class Engine:
        name, device = "engine", "none"

        def encode(self, views: Any) -> None:
            seen.append(np.stack(views))

    encoder = bench_worker._Uncached(Engine())
    assert encoder.name == "engine"
    picture = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    for _ in range(4):
        encoder.encode(list(picture.copy()))
    assert len({views.tobytes() for views in [picture, *seen]}) == 5
    assert all(views.dtype == np.uint8 and sorted(views.ravel()) == sorted(picture.ravel()) for views in seen)


def test_ignore_stop_goes_on_to_the_last_token(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    runtime = open_runtime(bundle)
    pipeline = Pipeline(bundle, runtime)
    first = pipeline.answer([], "Hello", GenerateOptions(max_tokens=6, ignore_stop=True)).ids
    object.__setattr__(bundle.prompt_spec, "stop_ids", (first[1],))
    assert pipeline.answer([], "Hello", GenerateOptions(max_tokens=6)).ids == first[: first.index(first[1]) + 1]
    assert pipeline.answer([], "Hello", GenerateOptions(max_tokens=6, ignore_stop=True)).ids == first
    runtime.close()


# --- the device --------------------------------------------------------------------------------------------


def test_boards_name_themselves(tmp_path: Path) -> None:
    """Files as a Raspberry Pi 5 and a Jetson have them."""
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc/device-tree/model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:        8256000 kB\nMemFree: 1 kB\n")
    (tmp_path / "etc/os-release").write_text('NAME="x"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    card = device_card(tmp_path)
    assert card["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert card["cpu"] == "Arm implementer 0x41 part 0xd0b"
    assert card["memory"] == 8256000 * 1024 and card["governor"] is None
    assert "Raspberry Pi 5" in card_line(card) and "8.5 GB" in card_line(card)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.0, GCID: 1, BOARD: generic\n")
    assert device_card(tmp_path)["board"] == "NVIDIA Jetson Orin Nano Developer Kit, L4T R36 (release)"
    json.dumps(card)
    assert device_card(tmp_path / "none")["memory"] is None
    assert card_line({}) == ""


# --- mistakes ----------------------------------------------------------------------------------------------


def test_what_vs_may_name(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Subject(tiny_bundle, "onnxruntime")
    assert _other("llama.cpp", first) == Subject(tiny_bundle, "llama.cpp")
    assert _other("ort+llama", first) == Subject(tiny_bundle, "ort+llama")
    assert _other(str(tmp_path), first) == Subject(tmp_path, "onnxruntime")
    assert _other(f"{tmp_path}@eager", first) == Subject(tmp_path, "eager")
    with pytest.raises(EdgeVLMError, match="'lama' is neither a bundle nor a runtime"):
        _other("lama", first)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"repeat": 0}, "repeat is 0: give a whole number from 1 to 10000."),
        ({"tokens": 1}, "tokens is 1: give a whole number from 2"),
        ({"tiles": -1}, "tiles is -1"),
        ({"picture": Path("none.png")}, "There is no picture 'none.png'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EdgeVLMError, match=sentence):
        BenchOptions(**options)


@pytest.mark.parametrize(
    "data",
    [[], {}, {"format": "edgevlm-bench", "version": 1, "subjects": [{}]}, {"format": "edgevlm-bench", "subjects": 3},
     {"format": "edgevlm-bench", "version": 1, "subjects": [{"name": "x", "warm": 3, "cold": {}}]},
     {"format": "edgevlm-bench", "version": 2, "subjects": []}],
)  # fmt: skip
def test_json_that_is_no_benchmark(data: Any) -> None:
    with pytest.raises(EdgeVLMError, match=r"'x\.json'"):
        read_bench(data, "x.json")


def test_bytes_are_those_an_engine_reads(gguf_bundle: Any) -> None:
    bundle = gguf_bundle("fp16")
    sizes = {name: info.size for name, info in bundle.manifest.files.items()}
    onnx = sum(size for name, size in sizes.items() if name.startswith("onnx/"))
    gguf = sum(size for name, size in sizes.items() if name.startswith("gguf/"))
    whole = sum(sizes.values())
    assert onnx and gguf
    assert runtime_bytes(bundle, "onnxruntime") == {"bundle": whole, "runtime": whole - gguf}
    assert runtime_bytes(bundle, "llama.cpp") == {"bundle": whole, "runtime": whole - onnx}
    assert runtime_bytes(bundle, "onnxruntime+llama.cpp")["runtime"] == whole
