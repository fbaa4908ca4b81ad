"""Batches for training: scenes as the processor's pixels, questions packed behind one shared picture.

Several questions share one encoded picture. In a `branches` batch each question attends to the picture and
to itself only, and its positions start right after the picture, so that it is computed as if it stood alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from transformers import PreTrainedTokenizerFast

from edgevlm.train.build import IMAGE_TOKENS, PATCH, SCALE, TILE
from edgevlm.train.label_heads import shares
from edgevlm.train.questions import Question, ask
from edgevlm.train.scenes import COLOUR_NAMES, SHAPES, Scene, draw_crowd, draw_scene, scene_rng

IGNORE = -100
MARK, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """B pictures, T tiles each, L text positions."""

    pixels: U8  # (B, T, 96, 96, 3); the last tile is the whole picture
    ids: I64  # (B, L) token ids
    targets: I64  # (B, L) id of the next token where it belongs to an answer, else IGNORE
    weights: F32  # (B, L) weight of each target
    positions: I64  # (B, L)
    segments: I64  # (B, L) 0 = picture and whatever all may see, n = question n, -1 = padding
    labels: tuple[Labels, ...]  # of each picture
    questions: tuple[tuple[Question, ...], ...]


def longest_edge_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """SmolVLM's first resize: (width, height) with that longest edge and an even shortest edge."""
    width, height = size
    ratio = width / height
    if width >= height:
        short = int(longest / ratio)
        return longest, max(1, short + short % 2)
    short = int(longest * ratio)
    return max(1, short + short % 2), longest


def _resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def single_tile(picture: Image.Image) -> U8:
    """(1, 96, 96, 3): the shipped processor's pixels before rescaling."""
    first = _resize(picture, longest_edge_size(picture.size, 4 * TILE))
    return np.asarray(_resize(first, (TILE, TILE)))[None]


def tiles(picture: Image.Image, longest: int) -> tuple[U8, int, int]:
    """((rows * columns + 1, 96, 96, 3), rows, columns): `do_image_splitting` at that longest edge."""
    first = _resize(picture, longest_edge_size(picture.size, longest))
    width, height = (math.ceil(v / TILE) * TILE for v in first.size)
    grid = _resize(first, (width, height))
    rows, columns = height // TILE, width // TILE
    whole = np.asarray(_resize(grid, (TILE, TILE)))
    pixels = np.asarray(grid).reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    return np.concatenate([pixels, whole[None]]), rows, columns


def prefix(rows: int = 0, columns: int = 0) -> str:
    """The user's turn up to the question, as the processor expands `<image>`."""
    split = "".join(
        "".join(f"{MARK}<row_{r + 1}_col_{c + 1}>{IMAGE * IMAGE_TOKENS}" for c in range(columns)) + "\n"
        for r in range(rows)
    )
    return "<|im_start|>User:" + split + ("\n" if rows else "") + f"{MARK}{GLOBAL}{IMAGE * IMAGE_TOKENS}{MARK}"


@dataclass(frozen=True)
class Labels:
    """What the generator knows of one scene. Shapes and colours are numbered from 1; 0 is background."""

    patches: I64  # (2, 144) shape and colour at each patch's centre
    edges: F32  # (144, 4) from there to the object's left, top, right, bottom, in 32 pixels
    masks: F32  # (144, 16) is an object at each 2 x 2 pixels of the patch
    tokens: I64  # (2, 36) shape and colour of the object centred in each image token
    amounts: F32  # (36, shapes + colours) each object's one, shared by the four tokens around its centre


def scene_labels(scene: Scene) -> Labels:
    width, height = scene.picture.size
    side, cells = TILE // PATCH, TILE // PATCH // SCALE
    plan = Image.new("L", (4 * side, 4 * side))
    pen = ImageDraw.Draw(plan)
    table = np.zeros((2, len(scene.objects) + 1), np.int64)
    boxes = np.zeros((len(scene.objects) + 1, 4))
    tokens = np.zeros((2, cells, cells), np.int64)
    amounts = np.zeros((cells, cells, len(SHAPES) + len(COLOUR_NAMES)), np.float32)
    for number, item in enumerate(scene.objects, 1):
        pen.polygon([(x / width * 4 * side, y / height * 4 * side) for x, y in item.outline], fill=number)
        shape, colour = SHAPES.index(item.shape), COLOUR_NAMES.index(item.colour)
        table[:, number] = shape + 1, colour + 1
        boxes[number] = np.array(item.box) / (width, height, width, height) * TILE
        column, row = item.centre[0] / width * cells, item.centre[1] / height * cells
        tokens[:, min(int(row), cells - 1), min(int(column), cells - 1)] = table[:, number]
        share = np.outer(shares(row, cells), shares(column, cells))
        amounts[..., shape] += share
        amounts[..., len(SHAPES) + colour] += share
    fine = np.asarray(plan)
    owners = fine[2::4, 2::4].reshape(-1)
    middle = (np.arange(side) + 0.5) * PATCH
    x, y = np.tile(middle, side), np.repeat(middle, side)
    edges = (boxes[owners] - np.stack([x, y, x, y], 1)) / 32
    masks = fine.reshape(side, 4, side, 4).swapaxes(1, 2).reshape(-1, 16) > 0
    return Labels(
        table[:, owners],
        edges.astype(np.float32),
        masks.astype(np.float32),
        tokens.reshape(2, -1),
        amounts.reshape(cells * cells, -1),
    )


@dataclass(frozen=True)
class Batches:
    """Batch number n is a pure function of n, so that training resumes exactly where it stopped."""

    tokenizer: PreTrainedTokenizerFast
    size: int
    split: str = "train"
    with_questions: bool = True

    def batch(self, number: int) -> Batch:
        """One in 20 batches is tiled (fewer pictures), one in 14 a conversation; the others are branches."""
        rng = scene_rng(self.split, 2**40 + number)
        tiled = self.with_questions and number % 20 == 7
        conversation = self.with_questions and number % 14 == 5 and not tiled
        seeds = range(number * self.size, number * self.size + (max(1, self.size // 8) if tiled else self.size))
        if not tiled:
            draw = draw_scene if self.with_questions or number % 4 == 0 else draw_crowd
            scenes = [draw(self.split, s) for s in seeds]
            pixels = np.stack([single_tile(s.picture) for s in scenes])
            text = prefix()
        else:
            shape = [(256, 192), (192, 256), (200, 200), (384, 288)][int(rng.integers(4))]
            scenes = [draw_scene(self.split, s, shape) for s in seeds]
            cut = [tiles(s.picture, (2, 2, 3, 4)[int(number // 20) % 4] * TILE) for s in scenes]
            pixels, text = np.stack([c[0] for c in cut]), prefix(cut[0][1], cut[0][2])
        questions = [self._ask(s, rng) for s in scenes] if self.with_questions else [[] for _ in scenes]
        return pack(self.tokenizer, text, scenes, pixels, questions, conversation)

    def _ask(self, scene: Scene, rng: np.random.Generator) -> list[Question]:
        with_caption = rng.random() < 0.35
        return ask(scene, rng, counts=4 if with_caption else 6, caption_share=float(with_caption))


def pack(
    tokenizer: PreTrainedTokenizerFast,
    prefix_text: str,
    scenes: list[Scene],
    pixels: U8,
    questions: list[list[Question]],
    conversation: bool = False,
) -> Batch:
    """Token arrays of pictures that share one `prefix_text`."""
    head: list[int] = tokenizer(prefix_text, add_special_tokens=False).input_ids
    lines = [_lines(tokenizer, head, asked, conversation) for asked in questions]
    length = max(len(line[0]) for line in lines)
    fills = (tokenizer.pad_token_id, IGNORE, 0.0, 0, -1)
    columns = [np.array([line[i] + [fill] * (length - len(line[0])) for line in lines]) for i, fill in enumerate(fills)]
    labels, texts = tuple(scene_labels(s) for s in scenes), tuple(tuple(q) for q in questions)
    weights = columns[2].astype(np.float32)
    return Batch(pixels, columns[0], columns[1], weights, columns[3], columns[4], labels, texts)


def _lines(
    tokenizer: PreTrainedTokenizerFast, head: list[int], asked: list[Question], conversation: bool
) -> tuple[list[int], list[int], list[float], list[int], list[int]]:
    """ids, targets, weights, positions, segments of one picture's row."""
    ids, targets, weights = list(head), [IGNORE] * len(head), [0.0] * len(head)
    positions, segments = list(range(len(head))), [0] * len(head)
    for number, question in enumerate(asked, 1):
        turn = "User: " if conversation and number > 1 else ""
        end = "\n" if conversation else ""
        text = f"{turn}{question.text}<end_of_utterance>\nAssistant:"
        start, answer = tokenizer(
            [text, f" {question.answer}<end_of_utterance>{end}"], add_special_tokens=False
        ).input_ids
        said = len(answer) - len(end)  # the newline after an answer is context, not a target
        ids += start + answer
        targets += [IGNORE] * (len(start) - 1) + answer[:said] + [IGNORE] * (1 + len(end))
        weight = 0.3 if question.skill == "caption" else 1.0
        weights += [0.0] * (len(start) - 1) + [weight] * said + [0.0] * (1 + len(end))
        first = len(positions) if conversation else len(head)
        positions += range(first, first + len(start) + len(answer))
        segments += [0 if conversation else number] * (len(start) + len(answer))
    return ids, targets, weights, positions, segments
