"""Scenes: generated pictures with exact ground truth, and questions that each have one right answer."""

from edgevlm.scenes.ask import ask
from edgevlm.scenes.catalogue import SPLITS, Split
from edgevlm.scenes.folder import QuestionSet, read_questions, write_scenes
from edgevlm.scenes.generator import make_scene, scenes
from edgevlm.scenes.question import Question
from edgevlm.scenes.scene import Scene, SceneObject

__all__ = (
    "SPLITS",
    "Question",
    "QuestionSet",
    "Scene",
    "SceneObject",
    "Split",
    "ask",
    "make_scene",
    "read_questions",
    "scenes",
    "write_scenes",
)
