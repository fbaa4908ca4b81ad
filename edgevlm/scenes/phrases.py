"""Names of things and wordings of questions: several for each meaning."""

from __future__ import annotations

from collections import Counter

from edgevlm.scenes.catalogue import Noun
from edgevlm.scenes.scene import Scene, SceneObject
from edgevlm.scenes.stream import Stream

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

EXISTS = (
    "Is there {a} {x} in the picture?",
    "Is there {a} {x} in the image?",
    "Is there {a} {x}?",
    "Can you see {a} {x}?",
    "Do you see {a} {x} here?",
    "Does the picture show {a} {x}?",
)
COUNT = (
    "How many {x} are there?",
    "How many {x} are in the picture?",
    "How many {x} are in the image?",
    "How many {x} can you see?",
    "Count the {x}.",
    "What is the number of {x}?",
)
COLOUR = (
    "What colour is the {x}?",
    "What color is the {x}?",
    "Which colour does the {x} have?",
    "What is the color of the {x}?",
    "Name the colour of the {x}.",
)
COLOURS = ("What colour are the {x}?", "What color are the {x}?", "Which colour do the {x} have?")
ON_SIDE = {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}
LEFT_RIGHT = (
    "Is the {x} on the left or on the right of the picture?",
    "On which side of the picture is the {x}, left or right?",
    "Left or right: where in the image is the {x}?",
)
TOP_BOTTOM = (
    "Is the {x} at the top or at the bottom of the picture?",
    "Top or bottom: where in the image is the {x}?",
)
RELATION = (
    "Where is the {x} compared to the {y}: left, right, above or below?",
    "Is the {x} left of, right of, above or below the {y}?",
    "In which direction is the {x} from the {y}: left, right, above or below?",
)
IS_RELATED = {
    "left": ("Is the {x} to the left of the {y}?", "Is the {x} left of the {y}?"),
    "right": ("Is the {x} to the right of the {y}?", "Is the {x} right of the {y}?"),
    "above": ("Is the {x} above the {y}?", "Is the {x} higher up than the {y}?"),
    "below": ("Is the {x} below the {y}?", "Is the {x} lower down than the {y}?"),
}
WHAT_RELATED = {
    "left": ("What is to the left of the {x}?", "Which object is left of the {x}?"),
    "right": ("What is to the right of the {x}?", "Which object is right of the {x}?"),
    "above": ("What is above the {x}?", "Which object is higher up than the {x}?"),
    "below": ("What is below the {x}?", "Which object is lower down than the {x}?"),
}
BIGGER = {
    True: ("Which is bigger, the {x} or the {y}?", "Which one is larger: the {x} or the {y}?"),
    False: ("Which is smaller, the {x} or the {y}?", "Which one is smaller: the {x} or the {y}?"),
}
IS_BIGGER = {
    True: ("Is the {x} bigger than the {y}?", "Is the {x} larger than the {y}?"),
    False: ("Is the {x} smaller than the {y}?", "Does the {x} look smaller than the {y}?"),
}
BIGGEST = {
    True: ("What is the biggest object?", "Which object is the largest in the picture?"),
    False: ("What is the smallest object?", "Which object is the smallest in the picture?"),
}
WHAT = ("What is this?", "What is in the picture?", "What does the image show?", "Name the object in the picture.")
WHAT_MANY = ("What are these?", "What are these objects?", "What kind of objects are these?")
WHAT_BESIDE = ("What is in the picture besides the sign?", "Apart from the sign, what does the image show?")
WHAT_WHERE = (
    "What is {where} of the picture?",
    "Which object is {where} of the image?",
    "Name the object {where} of the picture.",
)
WHAT_COLOURED = ("Which object is {x}?", "What is {x} in the picture?", "Name the {x} object.")
SIGN: tuple[str, ...] = (
    "What does the sign say?",
    "Read the sign.",
    "What is written on the sign?",
    "Read the text in the image.",
)
WORD: tuple[str, ...] = (
    "What word is written in the picture?",
    "Read the word in the image.",
    "Which word can you read?",
)
NUMBER: tuple[str, ...] = (
    "What number is written in the picture?",
    "Read the number in the image.",
    "Which number can you read?",
)
GROUND = (
    "Where is the {x}? Answer with a box.",
    "Give the box of the {x}.",
    "Where in the image is the {x}? Give its box.",
    "Locate the {x}.",
    "Detect the {x}.",
    "Draw a box around the {x}.",
)
CAPTION = (
    "Describe the picture.",
    "Describe the image.",
    "Describe this image in one sentence.",
    "What do you see?",
    "Caption this image.",
    "Write a short caption.",
)


def put(stream: Stream, forms: tuple[str, ...], **words: str) -> str:
    return stream.choice(forms).format(**words)


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def phrase(noun: Noun, colour: str | None, many: bool = False) -> str:
    name = noun.plural if many else noun.name
    return f"{colour} {name}" if colour else name


def unique_phrases(scene: Scene, stream: Stream) -> list[tuple[SceneObject, str]]:
    """Each object that a phrase without a place picks out, with that phrase; in random order.

    The colour is named where the noun alone is ambiguous, and sometimes where it is not.
    """
    nouns = Counter(item.name for item in scene.objects)
    pairs = Counter((item.name, item.colour) for item in scene.objects)
    named = []
    for item in scene.objects:
        if nouns[item.name] == 1:
            said = item.colour if item.colour and stream.chance(0.35) else None
            named.append((item, phrase(item.noun, said)))
        elif item.colour and pairs[item.name, item.colour] == 1:
            named.append((item, phrase(item.noun, item.colour)))
    return stream.shuffled(named)


def joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
