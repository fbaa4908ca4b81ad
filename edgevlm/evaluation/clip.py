"""Zero-shot classification and retrieval from embeddings of pictures and texts.

For dual encoders (CLIP, SigLIP). No bundle can feed these yet: every family that `edgevlm export` reads has a decoder
in place of a text tower. They take arrays from anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


def zero_shot(images: Array, classes: Array, labels: Sequence[int], ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """{"top1": share, ...}: pictures (N, D) whose class is among the k nearest of `classes` (C, D) by cosine.

    classes: one embedding per class, several prompts averaged with `prompt_ensemble` (Radford et al. 2021, arXiv
    2103.00020, section 3.1.4).
    """
    order = np.argsort(-(_unit(images) @ _unit(classes).T), axis=1, kind="stable")
    truth = np.asarray(labels)[:, None]
    return {f"top{k}": float((order[:, :k] == truth).any(1).mean()) for k in ks}


def prompt_ensemble(prompts: Array) -> Array:
    """(C, P, D) to (C, D): the mean of a class's unit embeddings, of unit length again."""
    return _unit(_unit(prompts).mean(1))


def retrieval(images: Array, texts: Array, image_of: Sequence[int], ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at k both ways between pictures (N, D) and captions (M, D); caption j describes picture image_of[j].

    A picture counts as soon as one of its captions is among the k nearest (Karpathy and Fei-Fei 2015, arXiv
    1412.2306, section 4.1).
    """
    scores = _unit(images) @ _unit(texts).T
    own = np.asarray(image_of)[None, :] == np.arange(len(images))[:, None]
    by_text = np.argsort(-scores, axis=1, kind="stable")
    by_image = np.argsort(-scores.T, axis=1, kind="stable")
    found = {f"text_r{k}": float(np.take_along_axis(own, by_text[:, :k], 1).any(1).mean()) for k in ks}
    return found | {f"image_r{k}": float(np.take_along_axis(own.T, by_image[:, :k], 1).any(1).mean()) for k in ks}


def _unit(x: Array) -> Array:
    unit: Array = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit
