"""Evaluations, benchmarks and bundles with known figures for the report's tests, and a reader of its page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from edgevlm.bundle.manifest import MANIFEST, open_bundle
from edgevlm.evaluation.statistics import summary
from edgevlm.report.gather import Member

EVIL = "<script>alert('1')</script>&\"'\x00\udcff</style><img src=//x>"
STAGES = {"preprocess": 0.01, "encode": 0.5, "prefill": 0.25, "decode": 0.05}


class Page(HTMLParser):
    """Elements, attributes and text of a page, as a browser would find them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def check_page(source: str) -> Page:
    """Well nested, self-contained, without script."""
    found = Page(source)
    assert found.open == []
    assert not {"script", "iframe", "object", "embed", "link", "base", "form", "foreignobject"} & set(found.tags)
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        if (tag, name) == ("a", "href"):
            assert re.fullmatch(r"#[a-z]+", value) and f'id="{value[1:]}"' in source, value
        elif name in ("src", "href", "action", "xlink:href", "srcset", "poster"):
            assert (tag, name) == ("img", "src") and value.startswith("data:image/jpeg;base64,"), value[:60]
        elif name == "style":
            assert re.fullmatch(r"--least:\d+rem", value), value
    assert not re.search(r"url\(|@import", source)
    source.encode("utf-8")
    return found


def figure(*values: float) -> dict[str, Any]:
    ordered = sorted(values)
    return {"median": ordered[len(ordered) // 2], "min": ordered[0], "max": ordered[-1], "values": list(values)}


def subject(
    bundle: str, runtime: str = "onnxruntime", factors: Sequence[float] = (1.0,), name: str = ""
) -> dict[str, Any]:
    """A bundle of a benchmark, whose turns took `factors` times what `STAGES` says."""
    stages = {stage: figure(*(factor * value for factor in factors)) for stage, value in STAGES.items()}
    return {
        "name": name or f"{Path(bundle).name} on {runtime}", "bundle": bundle, "runtime": runtime, "engine": "CPU",
        "cold": stages, "warm": stages, "answer_tokens": 11, "image_tokens": 64, "peak_memory": 10**8,
    }  # fmt: skip


def bench_json(*subjects: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": "edgevlm-bench",
        "version": 1,
        "device": {"cpu": "A chip", "load": 0.1, "usable_cores": 4},
        "settings": {"tokens": 11, "repeat": 5},
        "subjects": list(subjects),
    }


def eval_json(
    bundle: str, runtime: str = "onnxruntime", *, suite: str = "scenes", **scores: Mapping[str, float]
) -> dict[str, Any]:
    """What `edgevlm eval` writes of these scores, {question: score} by skill."""
    every = [score for skill in scores.values() for score in skill.values()]
    whole = summary(every)
    return {
        "bundle": bundle, "suite": suite, "runtime": runtime, "questions": len(every),
        "score": whole["score"], "low": whole["low"], "high": whole["high"],
        "skills": {skill: summary(list(each.values())) for skill, each in scores.items()},
        "scores": {skill: dict(each) for skill, each in scores.items()},
    }  # fmt: skip


def answers(count: int, right: int, start: int = 0, prefix: str = "q") -> dict[str, float]:
    """Scores of `count` questions, of which `right` from number `start` on are 1."""
    return {f"{prefix}{i}": float(start <= i < start + right) for i in range(count)}


def report_member(
    tiny_bundle: Path, folder: Path, kind: str = "fp32", runtimes: Sequence[str] = ("onnxruntime",)
) -> Member:
    """A copy of a bundle under the folder's name, said to be of `kind`; one that is not fp32 missed its gate."""
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["recipe"]["quantize"] = kind
    manifest["model"]["name"] = EVIL.replace("\udcff", "")
    passed = kind == "fp32"
    row = {"target": "onnx", "check": EVIL[:20], "note": "", "measured": 0.5, "bound": 0.9, "passed": passed}
    layers = {"vision.layers.0.norm1": 0.001 if passed else 0.05, "decoder.norm": 0.002}
    manifest["gate"] = {"passed": passed, "rows": [row], "layers": {"quantization": layers}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Member(folder.name, open_bundle(folder), tuple(runtimes))
