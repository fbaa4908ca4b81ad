"""The page: what it draws from known figures, what it refuses, and that nothing from outside becomes markup."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_cases import EVIL, answers, bench_json, check_page, eval_json, report_member, subject

from edgevlm.bench.measure import read_bench
from edgevlm.bundle.manifest import MANIFEST, open_bundle
from edgevlm.cli import main
from edgevlm.errors import EdgeVLMError
from edgevlm.report import Findings, ReportOptions, gather, page
from edgevlm.report.asking import GalleryAnswer, GalleryEntry
from edgevlm.report.gather import Member, read_eval


@pytest.fixture
def members(tiny_bundle: Path, tmp_path: Path) -> tuple[Member, ...]:
    """Two bundles with a gate; the second is marked int4, has a missed bound and a name that would be markup."""
    return (
        report_member(tiny_bundle, tmp_path / "plain"),
        report_member(tiny_bundle, tmp_path / "<b>&'x", "int4"),
    )


def everything(members: tuple[Member, ...]) -> Findings:
    names = [str(member.bundle.folder) for member in members]
    asked = GalleryEntry(
        "data:image/jpeg;base64,AA", EVIL, EVIL, None, (GalleryAnswer(EVIL, "one " + EVIL), GalleryAnswer("b", EVIL))
    )
    bench = bench_json(subject(names[0], name=EVIL), subject(names[1], factors=[0.5]))
    bench["vs"] = [{"name": EVIL, "ratios": {"encode": 1.5, "prefill": None, "decode": 2.0}}]
    evals = (
        eval_json(names[0], colour=answers(100, 80), count_to_5=answers(100, 80, prefix="c")),
        eval_json(names[1], colour=answers(100, 50), count_to_5=answers(100, 79, prefix="c")),
    )
    return Findings(members, (bench,), evals, (asked,), (EVIL,))


def test_a_page_with_everything(members: tuple[Member, ...]) -> None:
    source = page(everything(members))
    found = check_page(source)
    words = found.text()
    assert "alert('1')" in words and "<b>&'x" in words, "hostile text is shown as text"
    titles = ("Summary", "Scores by skill", "Time by stage", "Answers", "Divergence by layer", "Gate", "Left out")
    places = [source.index(f"<h2>{title}</h2>") for title in titles]
    assert places == sorted(places)
    assert found.tags.count("svg") > 8
    assert "80.0%" in words and "\u221230.0" in words, "scores of the best bundle, differences of the others"
    assert "over 100 questions" in source and "cannot be told apart with 100 questions" in source
    assert "760 ms" in words and "380 ms" in words, "time to the first token: preprocess, encode, prefill"
    assert "1 of 1 bounds missed" in words and "gate passed, 1 checks" in words
    assert "1.50x" in words and "vision.layers.0.norm1" in words
    assert "busy before the first run" not in words
    assert 'http-equiv="Content-Security-Policy"' in source


def test_a_busy_machine_is_named_where_times_are_compared_and_where_they_stand(members: tuple[Member, ...]) -> None:
    found = everything(members)
    found.benches[0]["device"]["load"] = 2.5
    assert page(found).count("busy before the first run (load 2.5)") == 2


def test_one_quantity_has_one_scale(members: tuple[Member, ...]) -> None:
    """Bars of two benchmarks, and of a column, are as long as their figures, whichever block they stand in."""
    names = [str(member.bundle.folder) for member in members]
    benches = (bench_json(subject(names[0])), bench_json(subject(names[1], factors=[0.25])))
    source = page(Findings(members, benches, (), ()))
    times = source[source.index('id="times"') : source.index('id="answers"')]
    bars = re.findall(r'<rect class="part c\d" x="[\d.]+%" width="([\d.]+)%"', times)
    assert [float(bar) for bar in bars[:4]] == pytest.approx([4 * float(bar) for bar in bars[4:]], abs=0.03)
    assert sum(map(float, bars[:4])) == pytest.approx(100, abs=0.05)
    top = source[: source.index('id="skills"')]
    tokens = re.findall(r'data-label="Tokens a second".*?class="part c\d" width="([\d.]+)%"', top)
    assert [float(bar) for bar in tokens] == [25.0, 100.0]
    assert "Times are of several benchmarks" in top


def test_runs_over_different_questions_are_said_to_be(members: tuple[Member, ...]) -> None:
    names = [str(member.bundle.folder) for member in members]
    few = eval_json(names[1], colour=answers(60, 60))
    words = check_page(page(Findings(members, (), (eval_json(names[0], colour=answers(200, 100)), few), ()))).text()
    assert "were not asked the same questions (plain 200, <b>&'x 60): scores are compared over" in words
    assert "These runs were not asked the same questions (plain 200, <b>&'x 60): marks show each run's own." in words
    del few["scores"]
    words = check_page(page(Findings(members, (), (eval_json(names[0], colour=answers(200, 100)), few), ()))).text()
    assert "A file of an earlier edgevlm does not say which questions were asked: its run is not compared." in words
    same = (eval_json(names[0], colour=answers(60, 30)), eval_json(names[1], colour=answers(60, 31)))
    assert "same questions (" not in check_page(page(Findings(members, (), same, ()))).text()


def test_every_mark_is_in_a_legend(members: tuple[Member, ...]) -> None:
    """Engines have shapes: with two of them, each series of a chart is named with the mark that it has there."""
    names = [str(member.bundle.folder) for member in members]
    evals = (
        eval_json(names[0], colour=answers(60, 30)),
        eval_json(names[1], "llama.cpp", colour=answers(60, 30)),
        eval_json("/elsewhere/other", "coreml", colour=answers(60, 30)),
    )
    source = page(Findings(members, (), evals, ()))
    section = source[source.index('id="skills"') : source.index('id="times"')]
    legend, chart = section[section.index('class="legend"') :].split("</ul>", 1)
    drawn = re.compile(r'<(circle|path)[^>]*class="mark (c\d)"')
    assert set(drawn.findall(legend)) == set(drawn.findall(chart)) and len(set(drawn.findall(chart))) == 3
    assert "95% interval" in legend


def test_tables_and_charts_can_be_heard(members: tuple[Member, ...]) -> None:
    """Drawings in cells are hidden from screen readers, because the text beside them has their figures."""
    found = check_page(page(everything(members)))
    source = page(everything(members))
    for opening in re.findall(r"<svg [^>]*>", source):
        inner = 'overflow="visible"' in opening or "preserveAspectRatio" in opening
        assert inner or "aria-hidden" in opening or ("aria-label" in opening and 'role="img"' in opening), opening
    for opening in re.findall(r'<div class="scroll"[^>]*>', source):
        assert 'tabindex="0"' in opening and re.search(r'aria-label="[^"]+"', opening)
    assert len(re.findall(r"<img [^>]*alt=\"[^\"]+\"", source)) == found.tags.count("img")
    assert source.count("<tr") == source.count('scope="row"') + source.count("<thead")


def test_a_page_with_nothing_says_what_is_missing(tiny_bundle: Path) -> None:
    words = check_page(page(Findings((Member("x", open_bundle(tiny_bundle), ()),), (), (), ()))).text()
    for sentence in (
        "One bundle, x:",
        "No score: run",
        "Not recorded: export with the gate",
        "Not measured: give",
        "the gate was not run",
        "No engine of this machine",
    ):
        assert sentence in words


def test_a_hostile_gate_in_a_manifest_does_no_harm(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "b"))
    manifest = json.loads((folder / MANIFEST).read_text())
    evil = EVIL.replace("\udcff", "")  # half of a surrogate pair, which opening refuses
    row = dict.fromkeys(("target", "check", "note"), evil) | {"measured": 1e18, "bound": None, "passed": False}
    manifest["gate"] = {"passed": False, "rows": [row], "layers": {"quantization": {evil: None, "b": -1e18}}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    check_page(page(Findings((Member("x", open_bundle(folder), ()),), (), (), ())))


def test_the_command_measures_what_is_missing(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "<i>.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(picture)
    out, score = tmp_path / "page.html", tmp_path / "eval.json"
    score.write_text(json.dumps(eval_json("elsewhere/tiny-fp32", colour=answers(10, 5))))
    words = ["report", str(tiny_bundle), "-o", str(out), "--eval", str(score), "--picture", str(picture)]
    with pytest.raises(SystemExit) as exit_info:
        main([*words, "--question", "Is it <red>?", "--repeat", "1", "--tiles", "1", "--threads", "1"])
    printed, said = capfd.readouterr()
    assert exit_info.value.code == 0, said
    assert printed == f"{out}\n"
    found = check_page(out.read_text(encoding="utf-8"))
    shown = " ".join(found.words)
    assert "Is it <red>?" in shown and "<i>.png" in shown and "tiny-fp32" in shown and "50.0%" in shown
    before = out.read_bytes()
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == 2 and "already exists" in capfd.readouterr().err
    assert out.read_bytes() == before


def test_files_name_bundles_by_path_or_by_name(members: tuple[Member, ...]) -> None:
    found = Findings(members, (), (), ())
    assert found.member_of(str(members[1].bundle.folder)) is members[1]
    assert found.member_of("/data/elsewhere/plain") is members[0]
    assert found.member_of("other") is None
    assert found.baseline() is members[0] and Findings(members[::-1], (), (), ()).baseline() is members[0]


# --- mistakes ----------------------------------------------------------------------------------------------


GOOD = eval_json("b", colour=answers(4, 2))


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"bundle": 1}, {**GOOD, "score": "high"}, {**GOOD, "score": float("nan")},
     {**GOOD, "skills": {"colour": 3}}, {**GOOD, "skills": {"colour": {"score": 1.0}}}, {**GOOD, "scores": [1]},
     {**GOOD, "scores": {"colour": [1.0]}}, {**GOOD, "scores": {"colour": {"q": "1"}}},
     {**GOOD, "scores": {"colour": {"q": 1.5}}}],
)  # fmt: skip
def test_json_that_is_no_evaluation(data: Any) -> None:
    with pytest.raises(EdgeVLMError, match=r"'e\.json' is not an evaluation"):
        read_eval(data, "e.json")


ODD = (None, "", {}, [], -1, 1e308, True, "<b>", float("nan"), [None], {"a": []})


def places(value: Any, depth: int = 3) -> list[tuple[Any, ...]]:
    """The keys to everything in a JSON value, of lists the first only."""
    inside = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))[:1]
        if isinstance(value, list)
        else []
    )
    return [(key, *rest) for key, each in inside for rest in ([()] + (places(each, depth - 1) if depth > 1 else []))]


def test_odd_values_in_files_make_a_page_or_a_refusal(members: tuple[Member, ...]) -> None:
    found = everything(members)
    whole: dict[str, Any] = {"eval": found.evals[1], "bench": found.benches[0]}
    drawn = 0
    inner = [place for place in places(whole, 4) if len(place) > 1]
    for turn, place in enumerate(place for place in inner for _ in range(4)):
        changed = json.loads(json.dumps(whole))
        target = changed
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = ODD[turn % len(ODD)]
        try:
            score, bench = read_eval(changed["eval"], "e.json"), read_bench(changed["bench"], "b.json")
        except EdgeVLMError:
            continue
        assert "nan%" not in check_page(page(Findings(members, (bench,), (found.evals[0], score), ()))).text()
        drawn += 1
    assert drawn > 50


def test_mistakes_come_before_any_work(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(EdgeVLMError, match="is not valid JSON"):
        gather([tiny_bundle], ReportOptions(benches=(broken,)))
    broken.write_text("[" * 100_000)
    with pytest.raises(EdgeVLMError, match="is not valid JSON"):
        gather([tiny_bundle], ReportOptions(evals=(broken,)))
    with pytest.raises(EdgeVLMError, match="There is no bundle"):
        gather([tmp_path / "none"], ReportOptions())
    for options, sentence in (
        ({"questions": -1}, "questions is -1"),
        ({"benches": (tmp_path / "none.json",)}, "There is no file"),
        ({"question": "  "}, "The question is empty"),
    ):
        with pytest.raises(EdgeVLMError, match=sentence):
            ReportOptions(**options)  # type: ignore[arg-type]
