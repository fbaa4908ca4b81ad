"""Labels of each patch and image token of a picture, and linear heads that predict them from an encoder's output."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.scenes.catalogue import CHARACTERS, COLOUR_NAMES, NOUN_INDEX, NOUNS, SIGN
from edgevlm.scenes.labels import COLOUR_CLASSES, LETTER_CLASSES, NOUN_CLASSES, patch_labels
from edgevlm.scenes.question import LOC_BINS
from edgevlm.scenes.scene import Scene
from edgevlm.types import F32, I64

LETTERS = 8  # of the longest text on a sign
_END = LETTER_CLASSES  # the neighbour before a sign's first character and after its last
_ORDER = (LETTERS + 1, LETTER_CLASSES + 1, LETTER_CLASSES + 1)
NEAR = 0.4  # least share of an object for which an image token counts as showing it


class Labels(NamedTuple):
    """Labels of one picture on a grid of P x P patches, of which s x s make an image token; G = P / s."""

    noun: I64  # (P, P)
    colour: I64  # (P, P)
    letter: I64  # (P, P, 2) of each half of the patch, left and right
    edges: F32  # (P, P, 4) the object's box from the patch's middle, in pictures
    things: F32  # (G * G, s * s, nouns) parts of objects whose centres are near each patch's middle; they add up
    thing_colour: I64  # (G * G, s * s) of the object with the largest part; 0 for none
    thing_edges: F32  # (G * G, s * s, 4)
    bins: I64  # (G * G, 4) the box, as answers have it, of the object with the largest part in the token; -1 for none
    characters: I64  # (G * G, 2 * s * s) whose box has its centre in that half patch; 0 for none
    order: I64  # (G * G, 2 * s * s, 3) that character's place in its sign, from 1; the one before it; the one after
    spelled: I64  # (G * G, LETTERS) the character that is a sign's n-th, in the token that has its centre; 0 for none


def scene_labels(scene: Scene, side: int, scale: int) -> Labels:
    plain, halves = patch_labels(scene, side, side), patch_labels(scene, side, 2 * side)
    middle = (np.arange(side, dtype=np.float32) + 0.5) / side
    here = np.stack(np.broadcast_arrays(middle, middle[:, None], middle, middle[:, None]), -1)
    things = np.zeros((side, side, NOUN_CLASSES - 1), np.float32)
    most = np.zeros((side, side), np.float32)
    colour = np.zeros((side, side), np.int64)
    edges = np.zeros((side, side, 4), np.float32)
    characters = np.zeros((side, 2 * side), np.int64)
    order = np.zeros((side, 2 * side, 3), np.int64)
    spelled = np.zeros((side // scale, side // scale, LETTERS), np.int64)
    width, height = scene.picture.size
    for item in scene.objects:
        box = np.array(scene.fraction(item.box), np.float32)
        share = np.outer(shares((box[1] + box[3]) / 2 * side, side), shares((box[0] + box[2]) / 2 * side, side))
        things[..., NOUN_INDEX[item.name]] += share
        first = share > most
        colour[first] = COLOUR_NAMES.index(item.colour) + 1 if item.colour else 0
        edges[first] = box
        most = np.maximum(most, share)
        said = [_END, *(CHARACTERS.index(character) + 1 for character, _ in item.letters), _END]
        for place, (_, (left, top, right, bottom)) in enumerate(item.letters[:LETTERS]):
            row = min(int((top + bottom) / 2 / height * side), side - 1)
            column = min(int((left + right) / width * side), 2 * side - 1)
            characters[row, column] = spelled[row // scale, column // 2 // scale, place] = said[place + 1]
            order[row, column] = place + 1, said[place], said[place + 2]
    bins = _tokens(np.clip((edges * LOC_BINS).astype(np.int64), 0, LOC_BINS - 1), scale)
    parts = _tokens(most, scale)
    largest = parts.argmax(1)
    own = np.where(parts.max(1)[:, None] >= NEAR, bins[np.arange(len(bins)), largest], -1)
    return Labels(
        plain.noun,
        plain.colour,
        halves.letter.reshape(side, side, 2),
        plain.box - here,
        _tokens(things, scale),
        _tokens(colour, scale),
        _tokens(edges - here, scale),
        own,
        _tokens(characters.reshape(side, side, 2), scale).reshape((side // scale) ** 2, -1),
        _tokens(order.reshape(side, side, 2, 3), scale).reshape((side // scale) ** 2, -1, 3),
        spelled.reshape(-1, LETTERS),
    )


def shares(place: float, cells: int) -> F32:
    """Linear interpolation weights of a place among cell centres (0.5, 1.5, ...); they add up to 1."""
    distance = np.abs(np.clip(place, 0.5, cells - 0.5) - (np.arange(cells) + 0.5))
    weights: F32 = np.maximum(0.0, 1.0 - distance).astype(np.float32)
    return weights


def _tokens(grid: npt.NDArray[Any], scale: int) -> npt.NDArray[Any]:
    """(P, P, ...) to (G * G, s * s, ...)."""
    cells, rest = len(grid) // scale, grid.shape[2:]
    split = grid.reshape(cells, scale, cells, scale, *rest).swapaxes(1, 2)
    return split.reshape(cells * cells, scale * scale, *rest)


class Targets(NamedTuple):
    """Labels of B pictures, stacked."""

    noun: Tensor
    colour: Tensor
    letter: Tensor
    edges: Tensor
    things: Tensor
    thing_colour: Tensor
    thing_edges: Tensor
    bins: Tensor
    characters: Tensor
    order: Tensor
    spelled: Tensor


def stack(labels: list[Labels]) -> Targets:
    return Targets(*(torch.from_numpy(np.stack(column)) for column in zip(*labels, strict=True)))


class Heads(nn.Module):
    """Linear predictions of labels from patches (B, P * P, W) and image tokens (B, G * G, D)."""

    PATCH = (NOUN_CLASSES, COLOUR_CLASSES, 2 * LETTER_CLASSES, 4)

    def __init__(self, vision_width: int, text_width: int, scale: int) -> None:
        super().__init__()
        cells = scale * scale
        self.token_sizes = [n * cells for n in (NOUN_CLASSES, COLOUR_CLASSES, 4, 2 * LETTER_CLASSES, 2 * sum(_ORDER))]
        self.patch = nn.Linear(vision_width, sum(self.PATCH))
        self.norm = nn.LayerNorm(text_width)
        self.token = nn.Linear(text_width, sum(self.token_sizes))

    def losses(self, patches: Tensor, tokens: Tensor, target: Targets) -> dict[str, Tensor]:
        """Each loss by name. Cross-entropies are divided by the number of places that show something: most do not."""
        noun, colour, letter, edges = self.patch(patches).float().split(self.PATCH, -1)
        nouns = target.noun.flatten(1)
        held = nouns > 0
        found = {
            "noun": _entropy(noun, nouns),
            "colour": _shown(colour, target.colour.flatten(1)),
            "letter": _entropy(letter.unflatten(-1, (2, -1)), target.letter.flatten(1, 2)),
            "box": 8 * F.smooth_l1_loss(edges[held], target.edges.flatten(1, 2)[held], beta=0.05),
        }
        parts = self.token(self.norm(tokens)).float().split(self.token_sizes, -1)
        things, colours, edges, letters, order = parts
        cells = target.things.shape[2]
        logs = things.unflatten(-1, (cells, -1)).log_softmax(-1)
        share = target.things.sum(-1)
        nothing = (1 - share).clamp(min=0)
        held = share >= 0.2
        count = target.things.sum((1, 2))  # (B, nouns)
        entropy = -((target.things * logs[..., 1:]).sum() + (nothing * logs[..., 0]).sum())
        return (
            found
            | {
                "things": entropy / count.sum().clamp(min=1),
                "thing colour": _shown(colours.unflatten(-1, (cells, -1)), target.thing_colour),
                "thing box": 8
                * F.smooth_l1_loss(edges.unflatten(-1, (cells, 4))[held], target.thing_edges[held], beta=0.05),
                "count": F.smooth_l1_loss(logs[..., 1:].exp().sum((1, 2)), count, beta=0.2, reduction="sum")
                / count.sum().clamp(min=1),
                "characters": _entropy(letters.unflatten(-1, (2 * cells, -1)), target.characters),
            }
            | {
                name: _shown(logits, labels)
                for name, logits, labels in zip(
                    ("place", "before", "after"),
                    order.unflatten(-1, (2 * cells, -1)).split(_ORDER, -1),
                    target.order.unbind(-1),
                    strict=True,
                )
            }
        )

    @torch.no_grad()
    def accuracy(self, patches: Tensor, tokens: Tensor, target: Targets) -> dict[str, float]:
        """Shares of the labels that are predicted right, by name; and the mean error of boxes."""
        noun, colour, _, _ = self.patch(patches).float().split(self.PATCH, -1)
        parts = self.token(self.norm(tokens)).float().split(self.token_sizes, -1)
        things, _, edges, letters, order = parts
        cells = target.things.shape[2]
        seen = things.unflatten(-1, (cells, -1)).softmax(-1)[..., 1:].sum((1, 2)).round()
        held = target.things.sum(-1) >= 0.5
        error = (edges.unflatten(-1, (cells, 4))[held] - target.thing_edges[held]).abs()
        return {
            "noun": _right(noun, target.noun.flatten(1)),
            "colour": _right(colour, target.colour.flatten(1)),
            "counts": float((seen == target.things.sum((1, 2)).round()).all(-1).float().mean()),
            "letters": _right(letters.unflatten(-1, (2 * cells, -1)), target.characters),
            "places": _right(order.unflatten(-1, (2 * cells, -1))[..., : _ORDER[0]], target.order[..., 0]),
            "box error": float(error.mean()),
        }


class WordHeads(nn.Module):
    """Trains image tokens towards the decoder's embeddings of words, so that it can look up and copy what they show.

    Logits are products of an image token with word embeddings. Directly, they predict which names, colours and
    characters have their centre in the token; after a matrix per edge, the <loc> words of the thing's box; after a
    matrix per place, the characters of a sign; after one more, the characters just before the token's own, by which a
    word can be followed. Without these losses a decoder takes long to learn which image feature means which word.
    """

    def __init__(self, tokenizer: Tokenizer, width: int) -> None:
        super().__init__()
        nouns = [tokenizer.encode(f" {noun.name}").ids[0] for noun in (*NOUNS, SIGN)]
        plurals = [tokenizer.encode(f" {noun.plural}").ids[0] for noun in (*NOUNS, SIGN)]
        colours = [tokenizer.encode(f" {name}").ids[0] for name in COLOUR_NAMES]
        self.characters = torch.tensor([tokenizer.encode(name).ids[0] for name in CHARACTERS])
        self.rows = torch.cat([torch.tensor(nouns + plurals + colours), self.characters])
        self.places = torch.tensor([tokenizer.token_to_id(f"<loc_{n}>") for n in range(LOC_BINS)])
        self.bias = nn.Parameter(torch.full((len(self.rows),), -4.0))
        self.edges = nn.Linear(width, 4 * width, bias=False)
        self.spelled = nn.Linear(width, LETTERS * width, bias=False)
        self.before = nn.Linear(width, width, bias=False)
        self.rare = nn.Parameter(torch.tensor(-4.0))
        self.blank = nn.Parameter(torch.tensor(6.0))  # no character: nearly everywhere

    def losses(self, tokens: Tensor, embeddings: Tensor, target: Targets) -> dict[str, Tensor]:
        """tokens (B, G * G, D), embeddings (V, D)."""
        normed = _normed(tokens)
        wanted = self._wanted(target)
        found = normed @ embeddings[self.rows].T + self.bias
        held = target.bins[..., 0] >= 0
        bins = self.boxes(tokens[held], embeddings)
        before = self.before(normed) @ embeddings[self.characters].T + self.rare
        known = F.one_hot(target.order[..., 1], _END + 1)[..., 1:_END].amax(2).float()
        return {
            "words": _found(found, wanted),
            "box words": F.cross_entropy(bins.flatten(0, 1), target.bins[held].flatten()),
            "spelled": _entropy(self.letters(tokens, embeddings), target.spelled),
            "before words": _found(before, known),
        }

    @torch.no_grad()
    def accuracy(self, tokens: Tensor, embeddings: Tensor, target: Targets) -> dict[str, float]:
        held = target.bins[..., 0] >= 0
        near = (self.boxes(tokens[held], embeddings).argmax(-1) - target.bins[held]).abs() <= 1
        spelled = _right(self.letters(tokens, embeddings), target.spelled)
        return {"box words within 1": float(near.float().mean()), "spelled": spelled}

    def boxes(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """(N, D) to (N, 4, LOC_BINS)."""
        edges: Tensor = self.edges(_normed(states)).unflatten(-1, (4, -1))
        return edges @ embeddings[self.places].T

    def letters(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """(..., D) to (..., LETTERS, LETTER_CLASSES)."""
        spelled = self.spelled(_normed(states)).unflatten(-1, (LETTERS, -1)) @ embeddings[self.characters].T
        return torch.cat([self.blank.expand(*spelled.shape[:-1], 1), spelled], -1)

    def _wanted(self, target: Targets) -> Tensor:
        """(B, G * G, words) of 0 and 1."""
        things = (target.things.amax(2) >= NEAR).float()
        held = target.things.sum(-1).amax(2, keepdim=True) >= NEAR
        colours = F.one_hot(target.thing_colour, COLOUR_CLASSES)[..., 1:].amax(2) * held
        characters = F.one_hot(target.characters, LETTER_CLASSES)[..., 1:].amax(2)
        return torch.cat([things, things, colours.float(), characters.float()], -1)


def _normed(tokens: Tensor) -> Tensor:
    """Normalized as at the input of a decoder's first layer (RMSNorm, Zhang and Sennrich 2019)."""
    tokens = tokens.float()
    return tokens * torch.rsqrt(tokens.pow(2).mean(-1, keepdim=True) + 1e-6)


def _found(logits: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross-entropy, divided by the number of words whose label is 1."""
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / wanted.sum().clamp(min=1)


def _entropy(logits: Tensor, target: Tensor) -> Tensor:
    each = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="sum")
    return each / (target > 0).sum().clamp(min=1)


def _shown(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy where the label is not 0."""
    where = target > 0
    return F.cross_entropy(logits[where], target[where], reduction="sum") / where.sum().clamp(min=1)


def _right(logits: Tensor, target: Tensor) -> float:
    where = target > 0
    return float((logits.argmax(-1)[where] == target[where]).float().mean())
