"""Questions about a scene: at most one per skill and round, except two of existence, a yes and a no.

A skill is left out where the scene gives it no question with exactly one right answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from edgevlm.scenes import phrases as say
from edgevlm.scenes.catalogue import (
    COLOUR_NAMES,
    COLOURED,
    LOOKALIKES,
    NOUN_INDEX,
    NOUNS,
    SIGN,
    Noun,
    pair_allowed,
)
from edgevlm.scenes.generator import QUESTIONS, scene_stream
from edgevlm.scenes.question import MODES, Fact, Question, loc_answer
from edgevlm.scenes.relations import relation, size_questions, spatial_questions
from edgevlm.scenes.scene import Scene, SceneObject
from edgevlm.scenes.stream import Stream

Drafts = Iterable[Question]


def ask(scene: Scene, rounds: int = 1) -> tuple[Question, ...]:
    """The questions of a scene: a pure function of the scene's key, its objects and `rounds`.

    More rounds ask more of the same skills (training wants that); no question is asked twice, and a caption once.
    """
    stream = scene_stream(scene.split, scene.seed, scene.index, QUESTIONS)
    drafts: dict[str, Question] = {}
    for turn in range(rounds):
        for skill in _SKILLS if turn == 0 else (skill for skill in _SKILLS if skill is not _caption):
            for draft in skill(scene, stream):
                drafts.setdefault(draft.question, draft)
    name = f"{scene.index:06d}"
    image = f"images/{name}.png"
    return tuple(replace(draft, id=f"{name}-{n}", image=image) for n, draft in enumerate(drafts.values()))


def _draft(skill: str, question: str, answer: str) -> Question:
    return Question("", "", skill, question, answer)


def _existence(scene: Scene, stream: Stream) -> Drafts:
    """POPE (arXiv 2305.10355): a yes and a no in one of its three modes."""
    mode = stream.choice(MODES)
    if scene.objects:
        shown = stream.choice(scene.objects)
        colour = shown.colour if stream.chance(0.5) else None
        yield _exists(stream, say.phrase(shown.noun, colour), "yes", mode)
    missing = _missing_pair(scene, stream) if stream.chance(0.4) else None
    if missing is None or mode != "adversarial":
        noun = _missing_noun(scene, stream, mode)
        colours = [c for c in COLOUR_NAMES if noun.coloured and pair_allowed(scene.split, c, noun)]
        missing = noun, stream.choice(colours) if colours and stream.chance(0.4) else None
    yield _exists(stream, say.phrase(*missing), "no", mode)


def _exists(stream: Stream, what: str, answer: str, mode: str) -> Question:
    return replace(_draft("existence", say.put(stream, say.EXISTS, a=say.article(what), x=what), answer), mode=mode)


def absent_nouns(scene: Scene) -> list[Noun]:
    """Nouns that are surely absent: the scene shows neither them nor a lookalike."""
    shown = {item.name for item in scene.objects}
    nouns = (*NOUNS, SIGN)
    return [n for n in nouns if n.name not in shown and not shown & set(LOOKALIKES.get(n.name, ()))]


def _missing_noun(scene: Scene, stream: Stream, mode: str) -> Noun:
    """An absent noun. random: any; popular: a frequent one; adversarial: one that shares most themes with the scene.

    Shared themes are summed over the nouns of the scene's objects: such nouns are seen together most often.
    """
    absent = absent_nouns(scene)
    if mode == "popular":
        return stream.choice([noun for noun in absent if noun.popular] or absent)
    if mode == "adversarial":
        themes = Counter(theme for name in {i.name for i in scene.objects} for theme in _noun(name).themes)
        score = [sum(themes[theme] for theme in noun.themes) for noun in absent]
        absent = [noun for noun, value in zip(absent, score, strict=True) if value == max(score)]
    return stream.choice(absent)


def _missing_pair(scene: Scene, stream: Stream) -> tuple[Noun, str | None] | None:
    """A noun of the scene with a colour that none of its objects has."""
    shown = {(item.name, item.colour) for item in scene.objects}
    pairs: list[tuple[Noun, str | None]] = [
        (noun, colour)
        for noun in COLOURED
        if any(noun.name == name for name, _ in shown)
        for colour in COLOUR_NAMES
        if (noun.name, colour) not in shown and pair_allowed(scene.split, colour, noun)
    ]
    elsewhere = [pair for pair in pairs if any(pair[1] == colour for _, colour in shown)]
    return stream.choice(elsewhere or pairs) if pairs else None


def _noun(name: str) -> Noun:
    return (*NOUNS, SIGN)[NOUN_INDEX[name]]


def _colour(scene: Scene, stream: Stream) -> Drafts:
    """The colour of a noun whose objects share one, or of one of two objects side by side or above each other."""
    items: dict[str, list[SceneObject]] = {}
    for item in scene.objects:
        if item.colour:
            items.setdefault(item.name, []).append(item)
    drafts = []
    for same in items.values():
        noun, many = same[0].noun, len(same) > 1
        if len({item.colour for item in same}) == 1:
            text = say.put(stream, say.COLOURS if many else say.COLOUR, x=say.phrase(noun, None, many))
            drafts.append((text, same[0].colour))
        elif len(same) == 2 and (where := relation(same[0], same[1])):
            what = f"{noun.name} {say.ON_SIDE[where]}"
            drafts.append((say.put(stream, say.COLOUR, x=what), same[0].colour))
    if drafts:
        text, colour = stream.choice(drafts)
        yield _draft("colour", text, str(colour))


def _count(scene: Scene, stream: Stream) -> Drafts:
    """The number of a noun's objects, in any colour or in one, or of all objects; large groups are more frequent."""
    nouns = Counter(item.name for item in scene.objects)
    pairs = Counter((item.name, item.colour) for item in scene.objects if item.colour)
    amounts = {say.phrase(_noun(name), None, True): n for name, n in nouns.items() if _countable(name, nouns)}
    amounts |= {say.phrase(_noun(a), c, True): n for (a, c), n in pairs.items() if _countable(a, nouns)}
    if SIGN.name not in nouns:
        amounts["objects"] = len(scene.objects)
    amounts = {what: n for what, n in amounts.items() if n <= 10}
    if not amounts or stream.chance(0.1):
        noun = stream.choice(absent_nouns(scene))
        amounts = {noun.plural: 0}
    what = stream.weighted(list(amounts), [1 if n < 2 else 4 if n < 5 else 12 for n in amounts.values()])
    yield _draft("count", say.put(stream, say.COUNT, x=what), str(amounts[what]))


def _countable(name: str, shown: Counter[str]) -> bool:
    return not any(shown[other] for other in LOOKALIKES.get(name, ()))


def _naming(scene: Scene, stream: Stream) -> Drafts:
    """The name of the only thing, or of the one thing in a corner, in the middle, or of a colour."""
    things = [item for item in scene.objects if item.noun is not SIGN]
    kinds = {item.name for item in things}
    signs = len(scene.objects) - len(things)
    drafts = []
    if len(things) == 1 and signs < 2:
        drafts.append((say.put(stream, say.WHAT_BESIDE if signs else say.WHAT), things[0].name))
    if len(kinds) == 1 and len(things) > 1 and not signs:
        drafts.append((say.put(stream, say.WHAT_MANY), things[0].noun.plural))
    if len(things) > 1:
        drafts += [(say.put(stream, say.WHAT_WHERE, where=where), name) for where, name in _regions(scene)]
        if not signs and all(item.colour for item in things):
            tally = Counter(item.colour for item in things)
            alone = [item for item in things if tally[item.colour] == 1]
            drafts += [(say.put(stream, say.WHAT_COLOURED, x=str(item.colour)), item.name) for item in alone]
    if drafts:
        yield _draft("naming", *stream.choice(drafts))


def _regions(scene: Scene) -> Iterable[tuple[str, str]]:
    """(where, noun) for each corner and the middle that one object holds alone, with a margin."""
    corners = {
        "in the top left": (0, 0, 0.5, 0.5),
        "in the top right": (0.5, 0, 1, 0.5),
        "in the bottom left": (0, 0.5, 0.5, 1),
        "in the bottom right": (0.5, 0.5, 1, 1),
        "in the middle": (0.3, 0.3, 0.7, 0.7),
    }
    boxes = [(item, scene.fraction(item.box)) for item in scene.objects]
    for where, (left, top, right, bottom) in corners.items():
        inside = [(i, b) for i, b in boxes if b[2] > left and b[0] < right and b[3] > top and b[1] < bottom]
        if len(inside) != 1:
            continue
        item, (a, b, c, d) = inside[0]
        x, y = (a + c) / 2, (b + d) / 2
        if where == "in the middle":
            clear = abs(x - 0.5) < 0.1 and abs(y - 0.5) < 0.1
        else:
            clear = left - 0.02 <= a and c <= right + 0.02 and top - 0.02 <= b and d <= bottom + 0.02
        if clear:
            yield where, item.name


def _text(scene: Scene, stream: Stream) -> Drafts:
    signs = [item for item in scene.objects if item.text]
    if not signs:
        return
    sign = stream.choice(signs)
    forms = say.NUMBER if sign.text.isdigit() else say.WORD
    if len(signs) == 1:
        forms += say.SIGN
    yield _draft("text", say.put(stream, forms), sign.text)


def _grounding(scene: Scene, stream: Stream) -> Drafts:
    for item, what in say.unique_phrases(scene, stream)[:1]:
        box = scene.fraction(item.box)
        yield replace(_draft("grounding", say.put(stream, say.GROUND, x=what), loc_answer(box)), box=box)


def facts(scene: Scene) -> tuple[Fact, ...]:
    """How many of each (noun, colour) there are, in the catalogue's order."""
    tally = Counter((item.name, item.colour) for item in scene.objects)
    order = sorted(tally, key=lambda kind: (NOUN_INDEX[kind[0]], COLOUR_NAMES.index(kind[1]) if kind[1] else -1))
    return tuple(Fact(tally[kind], kind[1], kind[0]) for kind in order)


def caption(scene: Scene) -> str:
    """'three red cars, a dog and a sign that says OPEN'; 'two signs that say OPEN and 24'."""
    parts = []
    for fact in facts(scene):
        what = say.phrase(_noun(fact.name), fact.colour, fact.count > 1)
        if fact.name == SIGN.name:
            texts = say.joined([item.text for item in scene.objects if item.text])
            parts.append(f"a sign that says {texts}" if fact.count == 1 else f"two signs that say {texts}")
        elif fact.count == 1:
            parts.append(f"{say.article(what)} {what}")
        else:
            parts.append(f"{say.NUMBERS[fact.count] if fact.count <= 10 else fact.count} {what}")
    return say.joined(parts)


def _caption(scene: Scene, stream: Stream) -> Drafts:
    if scene.objects:
        yield replace(_draft("caption", say.put(stream, say.CAPTION), caption(scene)), facts=facts(scene))


def _spatial(scene: Scene, stream: Stream) -> Drafts:
    for text, answer in spatial_questions(scene, stream):
        yield _draft("spatial", text, answer)


def _size(scene: Scene, stream: Stream) -> Drafts:
    for text, answer in size_questions(scene, stream):
        yield _draft("size", text, answer)


_SKILLS: tuple[Callable[[Scene, Stream], Drafts], ...] = (
    _existence,
    _colour,
    _count,
    _spatial,
    _size,
    _naming,
    _text,
    _grounding,
    _caption,
)
