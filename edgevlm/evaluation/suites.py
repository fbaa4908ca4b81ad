"""The suites by name: the files of their questions, their prompts, and how answers are scored.

Each reader takes the suite's own published files, or its data set on the Hub as Parquet. Prompts are those that the
suite publishes, else those of Liu et al. 2023 (arXiv 2310.03744, section 3.2), which lmms-eval uses too.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgevlm.errors import EdgeVLMError
from edgevlm.evaluation.files import Pictures, field, only_file, parquet_rows, read_jsonl, suite_json, texts
from edgevlm.evaluation.item import Item, Picture, Result, Scored, Suite
from edgevlm.evaluation.mmmu import DISCIPLINES, SUBJECTS, open_correct, parse_choice
from edgevlm.evaluation.pope import MODES, pope_metrics, said_yes
from edgevlm.evaluation.scenes import SKILLS, read_scenes, scenes_metrics, score_scenes
from edgevlm.evaluation.text import anls, contains_answer, exact, relaxed_accuracy
from edgevlm.evaluation.vqa import textvqa_accuracy, vqa_accuracy

_SHORT = "{question}\nAnswer the question using a single word or phrase."
_LETTER = "{question}\nAnswer with the option's letter from the given choices directly."
_NUMBER = (int, str)


def _read_pope(folder: Path) -> list[Item]:
    items = []
    pictures = Pictures(folder, "val2014", "images", "coco/val2014", "images/val2014")
    for mode in MODES:
        path = only_file(folder, (f"coco_pope_{mode}.json", f"*pope*{mode}*.json"))
        for place, row in read_jsonl(path) if path else ():
            truth = field(row, place, str, "label").lower()
            picture = pictures(field(row, place, str, "image"), place)
            question = field(row, place, str, "text")
            items.append(_pope(f"{mode}-{field(row, place, _NUMBER, 'question_id')}", picture, question, truth, mode))
    for place, row, found in parquet_rows(folder, "test-*.parquet") if not items else ():
        mode = field(row, place, str, "category")
        picture = _picture(found, "image", place)
        if row.get("image_source"):
            picture = Picture(str(row["image_source"]), picture.load)
        truth = field(row, place, str, "answer").lower()
        number = field(row, place, _NUMBER, "question_id", "id")
        items.append(_pope(f"{mode}-{number}", picture, field(row, place, str, "question"), truth, mode))
    return items


def _pope(name: str, picture: Picture, question: str, truth: str, mode: str) -> Item:
    return Item(name, (picture,), question, (truth,), mode, {"mode": mode})


def _score_pope(item: Item, answer: str) -> Scored:
    yes = said_yes(answer.strip())
    return Scored(float(yes == (item.answers[0] == "yes")), {"said_yes": float(yes)})


def _pope_report(results: list[Result]) -> dict[str, float]:
    """POPE's metrics by mode (`random_f1`); names without a mode are the mean of the three, as in the paper."""
    found: dict[str, float] = {}
    modes = [mode for mode in MODES if any(r.item.skill == mode for r in results)]
    for mode in modes:
        of_mode = [r for r in results if r.item.skill == mode]
        values = pope_metrics((r.scored.figures["said_yes"] > 0, r.item.answers[0] == "yes") for r in of_mode)
        found |= {f"{mode}_{name}": value for name, value in values.items()}
        for name, value in values.items():
            found[name] = found.get(name, 0.0) + value / len(modes)
    return found


def _read_vqa(folder: Path) -> list[Item]:
    questions = only_file(folder, ("v2_OpenEnded_mscoco_val*_questions.json", "*OpenEnded*questions.json"))
    truths = only_file(folder, ("v2_mscoco_val*_annotations.json", "*annotations.json"))
    if questions is None or truths is None:
        return [
            _vqa(place, row, _picture(found, "image", place), "answer_type")
            for place, row, found in parquet_rows(folder, "validation-*.parquet")
        ]
    split = "val2014" if "val2014" in questions.name else "train2014"
    pictures = Pictures(folder, split, f"images/{split}", "images")
    by_id = {}
    for number, row in enumerate(field(suite_json(questions), f"'{questions}'", list, "questions"), 1):
        place = f"'{questions}', question {number}"
        by_id[field(row, place, int, "question_id")] = row
    items = []
    for number, row in enumerate(field(suite_json(truths), f"'{truths}'", list, "annotations"), 1):
        place = f"'{truths}', annotation {number}"
        question = by_id.get(field(row, place, int, "question_id"))
        if question is None:
            raise EdgeVLMError(f"{place}: '{questions.name}' lacks the question {row['question_id']}: use one split's.")
        name = f"COCO_{split}_{field(question, place, int, 'image_id'):012d}.jpg"
        items.append(_vqa(place, {**row, "question": question.get("question")}, pictures(name, place), "answer_type"))
    return items


def _vqa(place: str, row: Mapping[str, Any], picture: Picture, skill: str) -> Item:
    name = str(field(row, place, _NUMBER, "question_id"))
    kind = str(row.get(skill) or "all")
    return Item(name, (picture,), field(row, place, str, "question"), texts(row, place, "answers"), kind)


def _read_textvqa(folder: Path) -> list[Item]:
    path = only_file(folder, ("TextVQA_*_val.json", "*val*.json"))
    if path is None:
        return [
            _vqa(place, row, _picture(found, "image", place), "")
            for place, row, found in parquet_rows(folder, "validation-*.parquet")
        ]
    pictures = Pictures(folder, "train_images", "train_val_images/train_images", "images")
    return [
        _vqa(place, row, pictures(f"{field(row, place, str, 'image_id')}.jpg", place), "") for place, row in _data(path)
    ]


def _read_docvqa(folder: Path) -> list[Item]:
    path = only_file(folder, ("val_v1.0_withQT.json", "val_v1.0*.json", "val*.json"))
    rows: Iterator[tuple[str, Mapping[str, Any], Picture]]
    if path is None:
        rows = (
            (place, row, _picture(found, "image", place))
            for place, row, found in parquet_rows(folder, "validation-*.parquet")
        )
    else:
        pictures = Pictures(path.parent, "spdocvqa_images", "..", "../spdocvqa_images")
        rows = ((place, row, pictures(field(row, place, str, "image"), place)) for place, row in _data(path))
    items = []
    for place, row, picture in rows:
        name = str(field(row, place, _NUMBER, "questionId"))
        question = field(row, place, str, "question")
        items.append(Item(name, (picture,), question, texts(row, place, "answers"), "all"))
    return items


def _data(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, row in enumerate(field(suite_json(path), f"'{path}'", list, "data"), 1):
        yield f"'{path}', entry {number} of data", row


def _read_ocrbench(folder: Path) -> list[Item]:
    path = only_file(folder, ("OCRBench.json", "*OCRBench*.json"))
    rows: Iterator[tuple[str, Mapping[str, Any], Picture]]
    if path is None:
        rows = (
            (place, row, _picture(found, "image", place))
            for place, row, found in parquet_rows(folder, "test-*.parquet")
        )
    else:
        loaded = suite_json(path)
        if not isinstance(loaded, list):
            raise EdgeVLMError(f"'{path}' should hold a list of questions: download the file again.")
        pictures = Pictures(folder, "OCRBench_Images", "images")
        places = ((f"'{path}', entry {number}", row) for number, row in enumerate(loaded, 1))
        rows = ((place, row, pictures(field(row, place, str, "image_path"), place)) for place, row in places)
    items = []
    for number, (place, row, picture) in enumerate(rows, 1):
        data = {"dataset": field(row, place, str, "dataset_name", "dataset")}
        skill = field(row, place, str, "type", "question_type")
        answers = texts(row, place, "answers", "answer")
        name = f"{row.get('id', number)}"
        items.append(Item(name, (picture,), field(row, place, str, "question"), answers, skill, data))
    return _numbered(items)


def _score_ocrbench(item: Item, answer: str) -> Scored:
    return Scored(contains_answer(answer, item.answers, spaceless=item.data["dataset"] == "HME100k"))


def _ocrbench_report(results: list[Result]) -> dict[str, float]:
    """Points as published: one per right answer, of 1000; text recognition is the sum of six types."""
    points = sum(r.scored.score for r in results)
    recognition = sum(
        r.scored.score
        for r in results
        if r.item.skill.endswith(" Recognition") and not r.item.skill.startswith("Handwritten Mathematical")
    )
    return {"points": points, "text_recognition_points": recognition}


def _read_chartqa(folder: Path) -> list[Item]:
    items = []
    for split in ("human", "augmented"):
        path = only_file(folder, (f"test_{split}.json",))
        if path is None:
            continue
        pictures = Pictures(path.parent, "png", "images")
        for number, row in enumerate(field({"rows": suite_json(path)}, f"'{path}'", list, "rows"), 1):
            place = f"'{path}', entry {number}"
            picture = pictures(field(row, place, str, "imgname"), place)
            question = field(row, place, str, "query")
            items.append(Item(f"{split}-{number}", (picture,), question, texts(row, place, "label"), split))
    for number, (place, row, found) in enumerate(parquet_rows(folder, "test-*.parquet") if not items else (), 1):
        source = row.get("type", row.get("human_or_machine"))
        split = "human" if source in ("human_test", "human", 0) else "augmented"
        question = field(row, place, str, "query", "question")
        answers = texts(row, place, "label", "answer")
        items.append(Item(f"{split}-{number}", (_picture(found, "image", place),), question, answers, split))
    return items


def _read_mmmu(folder: Path) -> list[Item]:
    items = []
    for place, row, found in parquet_rows(folder, "validation-*.parquet"):
        name = field(row, place, str, "id")
        subject = "_".join(name.split("_")[1:-1])
        question = field(row, place, str, "question")
        options = _options(field(row, place, (str, list), "options"), place)
        text = question + "".join(options.values())
        named = {f"<image {i}>": i for i in range(1, 8) if f"<image {i}>" in text}
        used = sorted(set(named.values())) or [1]
        pictures = tuple(_picture(found, f"image_{i}", place) for i in used)
        kind = "open" if row.get("question_type") == "open" else "choice"
        if kind == "choice":
            question += "\n" + "".join(f"({letter}) {text}\n" for letter, text in options.items())
        truth = field(row, place, str, "answer")
        answers = _open_answers(truth) if kind == "open" else (truth,)
        data = {"kind": kind, "options": options, "named": {mark: used.index(i) for mark, i in named.items()}}
        items.append(Item(name, pictures, question, answers, subject, data))
    return items


def _options(text: Any, place: str) -> dict[str, str]:
    """MMMU keeps the list of options as Python source."""
    try:
        options = ast.literal_eval(text) if isinstance(text, str) else list(text)
        return {chr(ord("A") + i): str(option) for i, option in enumerate(options)}
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise EdgeVLMError(f"{place}: 'options' is no list of texts ({text!r:.60}): download the file again.") from None


def _open_answers(text: str) -> tuple[str, ...]:
    if text.startswith("["):
        try:
            return tuple(str(value) for value in ast.literal_eval(text))
        except (ValueError, SyntaxError):
            pass
    return (text,)


def _score_mmmu(item: Item, answer: str) -> Scored:
    if item.data["kind"] == "open":
        return Scored(open_correct(answer, item.answers))
    return Scored(float(parse_choice(answer, item.data["options"], item.id) in item.answers))


def _mmmu_report(results: list[Result]) -> dict[str, float]:
    """Accuracy by discipline, and the mean over subjects, each counting once."""
    by_subject = defaultdict(list)
    for result in results:
        by_subject[result.item.skill].append(result.scored.score)
    found = {"subject_macro_accuracy": sum(sum(s) / len(s) for s in by_subject.values()) / max(1, len(by_subject))}
    for discipline, subjects in DISCIPLINES.items():
        scores = [score for subject in subjects for score in by_subject.get(subject, ())]
        if scores:
            found[discipline] = sum(scores) / len(scores)
    return found


_JSONL_SCORES = {"exact": exact, "vqa": vqa_accuracy, "anls": anls, "relaxed": relaxed_accuracy,
                 "contains": contains_answer}  # fmt: skip


def _read_jsonl(folder: Path) -> list[Item]:
    path = only_file(folder, ("questions.jsonl", "*.jsonl"))
    pictures = Pictures(path.parent if path else folder)
    items = []
    for number, (place, row) in enumerate(read_jsonl(path) if path else (), 1):
        names = row["images"] if isinstance(row.get("images"), list) else [row["image"]] if row.get("image") else []
        metric = row.get("metric", "exact")
        if not isinstance(metric, str) or metric not in _JSONL_SCORES:
            raise EdgeVLMError(f"{place}: 'metric' is {metric!r:.60}, expected one of {', '.join(_JSONL_SCORES)}.")
        found = tuple(pictures(field({"image": name}, place, str, "image"), place) for name in names)
        name, skill = str(row.get("id", number)), str(row.get("skill", "all"))
        question = field(row, place, str, "question")
        items.append(Item(name, found, question, texts(row, place, "answers", "answer"), skill, {"metric": metric}))
    return items


def _score_jsonl(item: Item, answer: str) -> Scored:
    return Scored(_JSONL_SCORES[item.data["metric"]](answer, item.answers))


def _picture(found: Mapping[str, Picture], column: str, place: str) -> Picture:
    if column not in found:
        raise EdgeVLMError(f"{place}: the picture column '{column}' is missing: use the suite's own data set.")
    return found[column]


def _numbered(items: list[Item]) -> list[Item]:
    """OCRBench numbers its questions within each of its data sets: make the ids unique."""
    return [Item(f"{n}", i.pictures, i.question, i.answers, i.skill, i.data) for n, i in enumerate(items, 1)]


SUITES = {
    suite.name: suite
    for suite in (
        Suite("scenes", "a Scenes folder (edgevlm scenes DIR --split test)", None, (),
              lambda folder: read_scenes(folder)[0], {"": "{question}"}, 64, score_scenes, scenes_metrics, SKILLS),
        Suite("pope", "coco_pope_{random,popular,adversarial}.json and the pictures of COCO val2014", "lmms-lab/POPE",
              ("data/test-*.parquet",), _read_pope, {"": _SHORT}, 16, _score_pope, _pope_report),
        Suite("vqa", "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json and val2014/",
              "lmms-lab/VQAv2", ("data/validation-*.parquet",), _read_vqa, {"": _SHORT}, 16,
              lambda item, answer: Scored(vqa_accuracy(answer, item.answers))),
        Suite("textvqa", "TextVQA_0.5.1_val.json and train_images/", "lmms-lab/textvqa",
              ("data/validation-*.parquet",), _read_textvqa, {"": _SHORT}, 32,
              lambda item, answer: Scored(textvqa_accuracy(answer, item.answers))),
        Suite("docvqa", "val_v1.0_withQT.json and documents/", "lmms-lab/DocVQA",
              ("DocVQA/validation-*.parquet",), _read_docvqa, {"": _SHORT}, 32,
              lambda item, answer: Scored(anls(answer.strip(), item.answers))),
        Suite("ocrbench", "OCRBench.json and OCRBench_Images/", "echo840/OCRBench", ("data/test-*.parquet",),
              _read_ocrbench, {"": "{question}"}, 100, _score_ocrbench, _ocrbench_report),
        Suite("mmmu", "SUBJECT/validation-*.parquet of MMMU/MMMU", "MMMU/MMMU",
              tuple(f"{subject}/validation-*.parquet" for subject in SUBJECTS), _read_mmmu,
              {"": _LETTER, "choice": _LETTER, "open": _SHORT}, 128, _score_mmmu, _mmmu_report),
        Suite("chartqa", "test_human.json, test_augmented.json and png/", "HuggingFaceM4/ChartQA",
              ("data/test-*.parquet",), _read_chartqa, {"": "{question}\nAnswer the question with a single word."}, 32,
              lambda item, answer: Scored(relaxed_accuracy(answer, item.answers))),
        Suite("jsonl", 'lines of {"image", "question", "answer"}, and optionally "images", "answers", "skill", "id", '
              f'"metric" ({", ".join(_JSONL_SCORES)})', None, (), _read_jsonl, {"": "{question}"}, 64, _score_jsonl),
    )
}  # fmt: skip


def read_items(suite: Suite, folder: Path, problems: list[str] | None = None) -> list[Item]:
    """The suite's questions in `folder`; raises EdgeVLMError where there is none, with the expected layout.

    problems: bad lines of a Scenes folder are left out and listed here; None raises for them.
    """
    if suite.name == "scenes" and problems is not None:
        items, found = read_scenes(folder, skip_bad=True)
        problems += found
    else:
        items = suite.read(folder)
    if not items:
        raise EdgeVLMError(f"'{folder}' has no questions of the suite {suite.name}: it should hold {suite.layout}.")
    seen: dict[str, int] = {}
    for number, item in enumerate(items, 1):
        if seen.setdefault(item.id, number) != number:
            raise EdgeVLMError(f"'{folder}': two questions have the id '{item.id}' ({seen[item.id]} and {number}).")
    return items


def fingerprint(items: list[Item]) -> str:
    """A digest of questions and expected answers, by which a resumed run recognizes its items."""
    import hashlib

    lines = (json.dumps([i.id, i.question, i.answers, i.skill, [p.key for p in i.pictures]]) for i in items)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
