"""What Scenes knows of every patch and image token of a picture, and linear heads that read it from an encoder."""

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

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
LETTERS = 8  # of the longest text on a sign


class Labels(NamedTuple):
    """Of one picture on a grid of P x P patches, in which s x s patches make an image token; G = P / s."""

    noun: I64  # (P, P)
    colour: I64  # (P, P)
    letter: I64  # (P, P, 2) of each half of the patch, left and right
    edges: F32  # (P, P, 4) the object's box from the patch's middle, in pictures
    things: F32  # (G * G, s * s, nouns) parts of objects whose centres are near each patch's middle; they add up
    thing_colour: I64  # (G * G, s * s) of the object with the largest part; 0 for none
    thing_edges: F32  # (G * G, s * s, 4)
    thing_bins: I64  # (G * G, s * s, 4) the box as LOC_BINS answers have it
    characters: I64  # (G * G, 2 * s * s) whose box has its centre in that half patch; 0 for none
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
        for place, (character, (left, top, right, bottom)) in enumerate(item.letters[:LETTERS]):
            row = min(int((top + bottom) / 2 / height * side), side - 1)
            column = min(int((left + right) / width * side), 2 * side - 1)
            characters[row, column] = number = CHARACTERS.index(character) + 1
            spelled[row // scale, column // 2 // scale, place] = number
    return Labels(
        plain.noun, plain.colour, halves.letter.reshape(side, side, 2), plain.box - here,
        _tokens(things, scale), _tokens(colour, scale), _tokens(edges - here, scale),
        _tokens(np.clip((edges * LOC_BINS).astype(np.int64), 0, LOC_BINS - 1), scale),
        _tokens(characters.reshape(side, side, 2), scale).reshape((side // scale) ** 2, -1),
        spelled.reshape(-1, LETTERS),
    )  # fmt: skip


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
    thing_bins: Tensor
    characters: Tensor
    spelled: Tensor


def stack(labels: list[Labels]) -> Targets:
    return Targets(*(torch.from_numpy(np.stack(column)) for column in zip(*labels, strict=True)))


class Heads(nn.Module):
    """Linear readings of patches (B, P * P, W) and image tokens (B, G * G, D)."""

    PATCH = (NOUN_CLASSES, COLOUR_CLASSES, 2 * LETTER_CLASSES, 4)

    def __init__(self, vision_width: int, text_width: int, scale: int) -> None:
        super().__init__()
        cells = scale * scale
        sizes = (NOUN_CLASSES, COLOUR_CLASSES, 4, 4 * LOC_BINS, 2 * LETTER_CLASSES)
        self.token_sizes = [*(n * cells for n in sizes), LETTERS * LETTER_CLASSES]
        self.patch = nn.Linear(vision_width, sum(self.PATCH))
        self.norm = nn.LayerNorm(text_width)
        self.token = nn.Linear(text_width, sum(self.token_sizes))

    def losses(self, patches: Tensor, tokens: Tensor, target: Targets) -> dict[str, Tensor]:
        """Cross-entropies are sums over the places that show something, divided by their number: most show nothing."""
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
        things, colours, edges, bins, letters, spelled = parts
        cells = target.things.shape[2]
        logs = things.unflatten(-1, (cells, -1)).log_softmax(-1)
        share = target.things.sum(-1)
        nothing = (1 - share).clamp(min=0)
        held = share >= 0.2
        count = target.things.sum((1, 2))  # (B, nouns)
        entropy = -((target.things * logs[..., 1:]).sum() + (nothing * logs[..., 0]).sum())
        return found | {
            "things": entropy / count.sum().clamp(min=1),
            "thing colour": _shown(colours.unflatten(-1, (cells, -1)), target.thing_colour),
            "thing box": 8 * F.smooth_l1_loss(
                edges.unflatten(-1, (cells, 4))[held], target.thing_edges[held], beta=0.05
            ),
            "box bins": F.cross_entropy(
                bins.unflatten(-1, (cells, 4, -1))[held].flatten(0, 1), target.thing_bins[held].flatten()
            ),
            "spelled": _entropy(spelled.unflatten(-1, (LETTERS, -1)), target.spelled),
            "count": F.smooth_l1_loss(logs[..., 1:].exp().sum((1, 2)), count, beta=0.2, reduction="sum")
            / count.sum().clamp(min=1),
            "characters": _entropy(letters.unflatten(-1, (2 * cells, -1)), target.characters),
        }  # fmt: skip

    @torch.no_grad()
    def accuracy(self, patches: Tensor, tokens: Tensor, target: Targets) -> dict[str, float]:
        """Shares of what is there that is read right."""
        noun, colour, _, _ = self.patch(patches).float().split(self.PATCH, -1)
        parts = self.token(self.norm(tokens)).float().split(self.token_sizes, -1)
        things, _, edges, bins, letters, spelled = parts
        cells = target.things.shape[2]
        seen = things.unflatten(-1, (cells, -1)).softmax(-1)[..., 1:].sum((1, 2)).round()
        held = target.things.sum(-1) >= 0.5
        found = bins.unflatten(-1, (cells, 4, -1)).argmax(-1)
        error = (edges.unflatten(-1, (cells, 4))[held] - target.thing_edges[held]).abs()
        return {
            "noun": _right(noun, target.noun.flatten(1)),
            "colour": _right(colour, target.colour.flatten(1)),
            "counts": float((seen == target.things.sum((1, 2)).round()).all(-1).float().mean()),
            "letters": _right(letters.unflatten(-1, (2 * cells, -1)), target.characters),
            "spelled": _right(spelled.unflatten(-1, (LETTERS, -1)), target.spelled),
            "box error": float(error.mean()),
            "box bins": float((found == target.thing_bins)[held].float().mean()),
        }


class Words(nn.Module):
    """Lets image tokens be written in the decoder's own words, so that what they show can be looked up and copied.

    Read by the decoder's embedding of a word, a token says whether a thing of that name, or of that colour, has its
    centre there, or a character. Without this a decoder takes long to learn which image feature is which word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        nouns = [tokenizer.encode(f" {noun.name}").ids[0] for noun in (*NOUNS, SIGN)]
        plurals = [tokenizer.encode(f" {noun.plural}").ids[0] for noun in (*NOUNS, SIGN)]
        colours = [tokenizer.encode(f" {name}").ids[0] for name in COLOUR_NAMES]
        characters = [tokenizer.encode(name).ids[0] for name in CHARACTERS]
        self.rows = torch.tensor(nouns + plurals + colours + characters)
        self.bias = nn.Parameter(torch.full((len(self.rows),), -4.0))

    def loss(self, tokens: Tensor, embeddings: Tensor, target: Targets) -> Tensor:
        """tokens (B, G * G, D), embeddings (V, D): cross-entropy of yes and no, summed per thing that is there."""
        wanted = self._wanted(target)
        tokens = tokens.float()
        normed = tokens * torch.rsqrt(tokens.pow(2).mean(-1, keepdim=True) + 1e-6)
        logits = normed @ embeddings[self.rows].T + self.bias
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / wanted.sum().clamp(min=1)

    def _wanted(self, target: Targets) -> Tensor:
        """(B, G * G, words) of 0 and 1."""
        things = (target.things.amax(2) >= 0.4).float()
        held = target.things.sum(-1).amax(2, keepdim=True) >= 0.4
        colours = F.one_hot(target.thing_colour, COLOUR_CLASSES)[..., 1:].amax(2) * held
        characters = F.one_hot(target.characters, LETTER_CLASSES)[..., 1:].amax(2)
        return torch.cat([things, things, colours.float(), characters.float()], -1)


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
