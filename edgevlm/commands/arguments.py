"""What the arguments of a command line name: the bundle, the pictures and the question, by what they are on disk."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from edgevlm.errors import EdgeVLMError
from edgevlm.io.console import note
from edgevlm.io.hub import is_hub_id
from edgevlm.io.text import printable, shell_word

if TYPE_CHECKING:
    from edgevlm.bundle.manifest import Bundle

PATH = re.compile(r"(?:~?/|\.\.?[/\\]|[A-Za-z]:[/\\])")
_FILE = re.compile(r"\.(?:jsonl?|txt|md|html?|pdf|mp4|mov|onnx|gguf|safetensors)$", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:data:[\w/+.-]*[;,]|\w+://)", re.IGNORECASE)


def is_model(bundle: str) -> bool:
    """Whether a checkpoint, an adapter or a Hub id is named, and not a bundle."""
    folder = Path(bundle)
    if os.path.exists(bundle):
        named = any((folder / name).exists() for name in ("config.json", "adapter_config.json"))
        return named and not (folder / "manifest.json").exists()
    return bundle == "default" or bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", bundle))


def bundle_folder(bundle: str) -> Path:
    """The folder of a bundle, fetched where it is one of the Hub; a checkpoint is answered with what exports it."""
    folder = Path(bundle)
    if os.path.isfile(bundle):
        raise EdgeVLMError(_no_folder(bundle))
    if not is_model(bundle):
        return folder  # open_bundle reports what is missing
    if not os.path.exists(bundle) and is_hub_id(bundle):
        from edgevlm.bundle.hub import resolve_bundle

        return resolve_bundle(bundle)
    out = folder.resolve().name + "-int4"
    raise EdgeVLMError(
        f"'{bundle}' is a model, not a bundle: export it first with "
        f"`edgevlm export {shell_word(bundle)} -o {shell_word(out)}`, then run {shell_word(out)}."
    )


def _no_folder(file: str) -> str:
    from edgevlm.inputs.kinds import looks_like_picture

    if looks_like_picture(file):
        return f"'{file}' is a picture, not a bundle: the bundle's folder comes first."
    if os.path.basename(file) == "manifest.json":
        return f"'{file}' is a file of a bundle: give its folder, {shell_word(os.path.dirname(file) or '.')}."
    return f"'{file}' is a file, not a bundle: give the folder that `edgevlm export` wrote."


def warn_if_failed(bundle: Bundle) -> Bundle:
    """The same bundle; a line on standard error where its own gate failed."""
    if (bundle.manifest.gate or {}).get("passed") is False:
        name = printable(shell_word(str(bundle.folder)))
        note(f"Warning: this bundle missed a bound of its gate; answers may be wrong. See `edgevlm info {name}`.")
    return bundle


def pictures_and_question(bundle: str, inputs: tuple[str, ...], *, optional: bool = False) -> tuple[list[str], str]:
    """Pictures, and the question, which is the last argument; where it is optional it may be left out, and is ""."""
    if not inputs:
        example = f'edgevlm run {shell_word(bundle)} photo.jpg "What is this?"'
        raise EdgeVLMError(f"No question was given: add one in quotes, as in `{example}`.")
    if not _is_bundle(bundle) and (found := next(filter(_is_bundle, inputs), None)):
        rest = [word for word in (bundle, *inputs) if word != found]
        example = " ".join(map(shell_word, ["edgevlm", "run", found, *rest]))
        raise EdgeVLMError(f"'{found}' is the bundle, which comes first: write `{example}`.")
    *pictures, question = inputs
    if optional and os.path.isfile(question):
        pictures, question = list(inputs), ""
    elif why := _no_question(question, lone=not pictures):
        raise EdgeVLMError(why)
    for picture in pictures:
        if not _ADDRESS.match(picture) and not os.path.exists(picture):
            raise EdgeVLMError(
                f"There is no picture '{picture}': check the path, and put the question in quotes at the end."
            )
    return pictures, question


def _is_bundle(word: str) -> bool:
    return os.path.isfile(os.path.join(word, "manifest.json"))


def _no_question(word: str, lone: bool) -> str | None:
    """What is wrong with a last argument that is no question: a sentence, or None. lone: no picture precedes it."""
    from edgevlm.inputs.kinds import NAMED, looks_like_picture

    if not word.strip():
        return "The question is empty: write it in quotes as the last argument."
    spaced = bool(re.search(r"\s", word))
    if os.path.exists(word):
        what = "folder" if os.path.isdir(word) else "file"
        what = "picture" if what == "file" and (looks_like_picture(word) or NAMED.search(word)) else what
        return f"No question follows the {what} '{word}': add one in quotes as the last argument."
    if _ADDRESS.match(word) and not spaced:
        return f"No question follows the address '{word[:40]}': add one in quotes as the last argument."
    named = (NAMED.search(word) and (lone or not spaced)) or (_FILE.search(word) and not spaced)
    if named or PATH.match(word) or (not spaced and os.path.dirname(word) and os.path.isdir(os.path.dirname(word))):
        return (
            f"There is no file '{word}', and no question follows it: check the path, and put the question in quotes "
            "at the end."
        )
    return None


def check_model(model: str, revision: str | None = None) -> None:
    """Refuse a misspelt 'default', and a revision of what has none."""
    local = model == "default" or os.path.exists(model)
    if not local and "/" not in model and difflib.get_close_matches(model.lower(), ["default"], cutoff=0.75):
        raise EdgeVLMError(f"There is no folder '{model}': did you mean 'default'?")
    if local and revision is not None:
        raise EdgeVLMError(f"--revision is for models of the Hub, and '{model}' is none: leave it out.")


def check_questions(answers: str | None) -> None:
    """Refuse --questions without --answers."""
    if answers is None and given("questions"):
        raise EdgeVLMError("--questions counts those of --answers: add --answers scenes, or leave it out.")


def given(*names: str) -> list[str]:
    """Those parameters of the running command that were given, in words: "--json" for json_file."""
    context = click.get_current_context()
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    default = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP, None)
    return [str(flags[name]) for name in names if context.get_parameter_source(name) not in default]


def nearest(word: str, choices: Collection[str]) -> str:
    """The end of a sentence about a word that is no choice: the one that was meant, or all."""
    near = difflib.get_close_matches(word.lower(), choices, n=1)
    return f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(choices)}."
