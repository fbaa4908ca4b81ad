"""Questions about a generated scene, each with its skill and its one exact answer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from edgevlm.train.scenes import COLOUR_NAMES, SHAPES, UNSEEN_PAIRS, Rng, Scene

SKILLS = ("colour", "shape", "count", "exists", "caption")
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six")

COLOUR_FORMS = (
    "What colour is the {}?",
    "What color is the {}?",
    "Which colour is the {}?",
    "What is the colour of the {}?",
    "What is the color of the {}?",
    "Name the colour of the {}.",
)
COLOURS_FORMS = ("What colour are the {}?", "What color are the {}?", "Which colour are the {}?")
SHAPE_FORMS = (
    "What shape is the {} object?",
    "What shape is {}?",
    "Which shape is {}?",
    "What is the shape of the {} object?",
    "What is the {} object?",
    "What is the {} shape?",
)
SHAPES_FORMS = (
    "What shape are the {} objects?",
    "What are the {} objects?",
    "Which shape are the {} objects?",
)
COUNT_FORMS = (
    "How many {} are there?",
    "How many {} are in the picture?",
    "How many {} are in the image?",
    "How many {} can you see?",
    "How many {} do you see?",
    "How many {}?",
    "Count the {}.",
    "What is the number of {}?",
)
EXISTS_FORMS = (
    "Is there a {}?",
    "Is there a {} in the picture?",
    "Is there a {} in the image?",
    "Can you see a {}?",
    "Do you see a {}?",
    "Are there any {}s?",
)
CAPTION_FORMS = (
    "Describe the picture.",
    "Describe this image.",
    "Describe the image.",
    "What is in the picture?",
    "What is in this image?",
    "What do you see?",
    "What does the picture show?",
    "Caption this image.",
)


@dataclass(frozen=True)
class Question:
    skill: str  # one of SKILLS
    text: str
    answer: str


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def caption(scene: Scene) -> str:
    """'a red circle, two blue squares and a green star', ordered by shape, then colour."""
    counts = Counter((o.shape, o.colour) for o in scene.objects)
    parts = []
    for (shape, colour), n in sorted(
        counts.items(), key=lambda e: (SHAPES.index(e[0][0]), COLOUR_NAMES.index(e[0][1]))
    ):
        parts.append(f"{article(colour)} {colour} {shape}" if n == 1 else f"{NUMBER_WORDS[n]} {colour} {plural(shape)}")
    if not parts:
        return "no shapes"
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _form(rng: Rng, forms: tuple[str, ...], *words: str) -> str:
    return forms[int(rng.integers(len(forms)))].format(*words)


def colour_question(scene: Scene, rng: Rng) -> Question | None:
    """About a shape whose objects all have one colour; None where the scene has no such shape."""
    shapes = sorted({o.shape for o in scene.objects})
    rng.shuffle(shapes)
    for shape in shapes:
        colours = [o.colour for o in scene.objects if o.shape == shape]
        if len(set(colours)) == 1:
            one = len(colours) == 1
            text = _form(rng, COLOUR_FORMS, shape) if one else _form(rng, COLOURS_FORMS, plural(shape))
            return Question("colour", text, colours[0])
    return None


def shape_question(scene: Scene, rng: Rng) -> Question | None:
    """About a colour whose objects all have one shape; None where the scene has no such colour."""
    colours = sorted({o.colour for o in scene.objects})
    rng.shuffle(colours)
    for colour in colours:
        shapes = [o.shape for o in scene.objects if o.colour == colour]
        if len(set(shapes)) == 1:
            one = len(shapes) == 1
            text = _form(rng, SHAPE_FORMS if one else SHAPES_FORMS, colour)
            return Question("shape", text, shapes[0] if one else plural(shapes[0]))
    return None


def _subjects(scene: Scene, avoid_unseen: bool) -> list[tuple[str, int]]:
    """Everything that can be counted: (plural noun phrase, how many the scene has)."""
    n = len(scene.objects)
    rows = [("objects", n), ("shapes", n)]
    rows += [(plural(s), sum(o.shape == s for o in scene.objects)) for s in SHAPES]
    for c in COLOUR_NAMES:
        own = sum(o.colour == c for o in scene.objects)
        rows += [(f"{c} objects", own), (f"{c} shapes", own)]
    pairs = Counter((o.colour, o.shape) for o in scene.objects)
    for c in COLOUR_NAMES:
        for s in SHAPES:
            if not (avoid_unseen and (c, s) in UNSEEN_PAIRS):
                rows.append((f"{c} {plural(s)}", pairs[(c, s)]))
    return rows


def count_questions(scene: Scene, rng: Rng, how_many: int, avoid_unseen: bool) -> list[Question]:
    """Counting questions with different subjects. Larger answers are rarer in scenes, so they weigh more."""
    rows = _subjects(scene, avoid_unseen)
    by_answer = Counter(n for _, n in rows)
    weights = [(1.0 if n == 0 else 1.0 + 0.6 * n) / by_answer[n] for _, n in rows]
    total = sum(weights)
    chosen = rng.choice(len(rows), how_many, replace=False, p=[w / total for w in weights])
    return [Question("count", _form(rng, COUNT_FORMS, rows[int(i)][0]), str(rows[int(i)][1])) for i in chosen]


def exists_question(scene: Scene, rng: Rng, avoid_unseen: bool) -> Question:
    """About one (colour, shape) or shape; absent ones may share a colour or shape with something present."""
    present = {(o.colour, o.shape) for o in scene.objects}
    if rng.random() < 0.2:
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        return Question("exists", _form(rng, EXISTS_FORMS, shape).replace("crosss", "crosses"),
                        "yes" if any(s == shape for _, s in present) else "no")  # fmt: skip
    if present and rng.random() < 0.5:
        colour, shape = sorted(present)[int(rng.integers(len(present)))]
    else:
        colour, shape = (
            COLOUR_NAMES[int(rng.integers(len(COLOUR_NAMES)))],
            SHAPES[int(rng.integers(len(SHAPES)))],
        )
        if present and rng.random() < 0.6:
            near = sorted(present)[int(rng.integers(len(present)))]
            colour, shape = (near[0], shape) if rng.random() < 0.5 else (colour, near[1])
        if avoid_unseen and (colour, shape) in UNSEEN_PAIRS:
            colour = "green"  # no unseen pair is green
    text = _form(rng, EXISTS_FORMS, f"{colour} {shape}").replace("crosss", "crosses")
    if colour[0] in "aeiou":
        text = text.replace(" a ", " an ")
    return Question("exists", text, "yes" if (colour, shape) in present else "no")


def caption_question(scene: Scene, rng: Rng) -> Question:
    return Question("caption", _form(rng, CAPTION_FORMS), caption(scene))


def ask(
    scene: Scene, rng: Rng, counts: int = 3, caption_share: float = 0.35, avoid_unseen: bool = True
) -> list[Question]:
    """A mix of questions about one scene, in random order."""
    found = [
        colour_question(scene, rng),
        shape_question(scene, rng),
        exists_question(scene, rng, avoid_unseen),
    ]
    found += count_questions(scene, rng, counts, avoid_unseen)
    if rng.random() < caption_share:
        found.append(caption_question(scene, rng))
    questions = [q for q in found if q is not None]
    order = rng.permutation(len(questions))
    return [questions[int(i)] for i in order]


def every_text() -> list[str]:
    """All question forms and answers with all words put in, for the tokenizer."""
    nouns = list(SHAPES) + [f"{c} {s}" for c in COLOUR_NAMES for s in SHAPES]
    many = [plural(s) for s in SHAPES] + ["objects", "shapes"]
    many += [f"{c} {m}" for c in COLOUR_NAMES for m in many]
    texts = [f.format(n) for f in COLOUR_FORMS + EXISTS_FORMS for n in nouns]
    texts += [f.format(m) for f in COUNT_FORMS + COLOURS_FORMS for m in many]
    texts += [f.format(c) for f in SHAPE_FORMS + SHAPES_FORMS for c in COLOUR_NAMES]
    texts += list(CAPTION_FORMS)
    texts += [f" {NUMBER_WORDS[i % 7]} {m}, and an {n}" for i, (m, n) in enumerate(zip(many, nouns, strict=False))]
    return texts + [" yes", " no"] * 20
