"""Tokenizer, chat template and processor settings -> PromptSpec."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from edgevlm.checkpoint.chat_template import ChatFormat, probes, read_chat_template, token_text
from edgevlm.checkpoint.processor.files import ProcessorFiles
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.grounding import Grounding
from edgevlm.inputs.prompt import Prompter, picture_parts
from edgevlm.inputs.render import ControlText, Picture, UserText, render, takes
from edgevlm.inputs.spec import PROMPT_SPEC_VERSION, Chat, MarkerRow, PictureText, PromptSpec, ViewTokens
from edgevlm.inputs.tokenizer import encode
from edgevlm.io.json import read_json_file
from edgevlm.models.model import ModelSpec
from edgevlm.models.ops import Weights

NO_PICTURE_TEXT = PictureText()


class ReadPrompt(NamedTuple):
    """A checkpoint's conversation rules, and what its chat template writes for a picture that a processor fills in."""

    spec: PromptSpec
    picture: str


def prompt_spec(
    files: ProcessorFiles,
    model: ModelSpec,
    *,
    picture: PictureText = NO_PICTURE_TEXT,
    needed: tuple[str, ...] = (),
    chat: ChatFormat | None = None,
    grounding: Grounding | None = None,
    placeholder: str | None = None,
    canvas: tuple[int, ...] = (),
) -> ReadPrompt:
    """The chat format, image tokens and stop tokens of a checkpoint.

    picture: what the processor writes around a picture's image tokens; the chat template's own text comes around it.
    needed: further special tokens that the tokenizer must have.
    chat: None reads the checkpoint's chat template.
    grounding: how the model writes boxes.
    placeholder: what that writes for a picture, and the processor replaces; None is the image token.
    canvas: ids of the tokens that stand on the canvas of the picture before them.
    """
    image = _image_token(files, model)
    ids, placeholder = _special_tokens(files, needed), placeholder or image
    if chat is None:
        chat = read_chat_template(files.folder, files.processor, files.tokenizer_config, files.names, placeholder, ids)
    bos = token_text(files.names, "bos_token")
    picture = replace(picture, open=chat.image_open + picture.open, close=picture.close + chat.image_close)
    spec = PromptSpec(
        version=PROMPT_SPEC_VERSION,
        chat=chat.chat,
        picture=picture,
        image_token=image,
        image_token_id=model.image_token_id,
        stop_ids=_stop_ids(files, model, ids, chat.chat),
        add_bos=_adds_bos(files, ids.get(bos))
        and not (bos and bos in (chat.chat.prefix[: len(bos)], chat.chat.text_open)),
        bos_id=ids.get(bos),
        pad_id=ids.get(token_text(files.names, "pad_token")),
        grounding=grounding,
        canvas=canvas,
    )
    _prove(spec, files)
    return ReadPrompt(spec, f"{chat.image_open}{placeholder}{chat.image_close}")


def broken_lines(files: ProcessorFiles, model: ModelSpec) -> ReadPrompt:
    """`prompt_spec` of a processor that writes one token between rows of image tokens and another behind the last."""
    line = files.processor.text("image_break_token", "[IMG_BREAK]")
    end = files.processor.text("image_end_token", "[IMG_END]")
    return prompt_spec(files, model, picture=PictureText(line_break=line, close=end), needed=(line, end))


def with_markers(prompt: PromptSpec, model: ModelSpec, weights: Weights) -> PromptSpec:
    """`prompt` with the weights that some tokens around pictures have for embeddings, where the model has such."""
    if not model.markers:
        return prompt
    rows = zip(model.markers, weights.read("markers").tolist(), strict=True)
    return replace(prompt, markers=tuple(MarkerRow(token, tuple(row)) for token, row in rows))


def _image_token(files: ProcessorFiles, model: ModelSpec) -> str:
    added = files.tokenizer.get_added_tokens_decoder()
    token = added.get(model.image_token_id)
    if token is None or not token.special:
        found = files.tokenizer.id_to_token(model.image_token_id)
        raise EdgeVLMError(
            f"'{files.tokenizer_json}' has {found!r} as token {model.image_token_id}, expected the special token that "
            "stands for images (image_token_id in config.json): use the tokenizer that belongs to the checkpoint."
        )
    return token.content


def _special_tokens(files: ProcessorFiles, needed: tuple[str, ...]) -> dict[str, int]:
    tokens = files.tokenizer.get_added_tokens_decoder()
    ids = {token.content: int(id_) for id_, token in tokens.items() if token.special}
    for text in needed:
        if text not in ids:
            raise EdgeVLMError(
                f"'{files.tokenizer_json}' lacks the special token '{text}' among added_tokens: use the tokenizer that "
                "belongs to the checkpoint."
            )
    return ids


def _adds_bos(files: ProcessorFiles, bos_id: int | None) -> bool:
    """Whether the tokenizer puts the bos token before every text; it may add nothing else."""
    added = encode(files.tokenizer, "", add_special_tokens=True)
    if added and added != [bos_id]:
        raise EdgeVLMError(
            f"'{files.tokenizer_json}' adds the special tokens {added} to every text, expected the bos_token alone: "
            "use the tokenizer that belongs to the checkpoint."
        )
    return bool(added)


def _stop_ids(files: ProcessorFiles, model: ModelSpec, ids: dict[str, int], chat: Chat) -> tuple[int, ...]:
    """What the template closes a turn with, and eos: of generation_config.json, as in transformers, config.json, or the
    tokenizer's eos_token."""
    file = read_json_file(files.folder / "generation_config.json", required=False)
    if file.value("eos_token_id") is None:
        file = files.config
        text = file.section("text_config")
        file = text if file.value("eos_token_id") is None and text.given else file
    found = file.value("eos_token_id")
    eos = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < model.decoder.vocab_size for i in eos):
        raise file.wrong("eos_token_id", f"token ids below the vocabulary's {model.decoder.vocab_size}")
    end = ids.get(token_text(files.names, "eos_token"))
    close = chat.roles.get("assistant", chat.roles["user"]).close.lstrip()
    closing = max((token for token in ids if token and close.startswith(token)), key=len, default=None)
    all_stops = {*(eos or ([] if end is None else [end])), *([] if closing is None else [ids[closing]])}
    if not all_stops:
        raise EdgeVLMError(
            f"'{files.folder}' names no eos_token_id, expected one in generation_config.json: add it there."
        )
    return tuple(sorted(all_stops))


def _prove(spec: PromptSpec, files: ProcessorFiles) -> None:
    """Refuse a tokenizer that reads a whole prompt, as transformers gives it, in another way than piece by piece."""
    prompter, whole = Prompter(spec, files.tokenizer_json), files.tokenizer
    views = [ViewTokens(None, 2, 2)]
    switches = (None,) if spec.chat.thinking is None else (None, True, False)
    for probe, thinking in ((probe, thinking) for probe in probes() for thinking in switches):
        if not takes(spec.chat, probe):
            continue
        count = sum(item["type"] == "image" for message in probe for item in message["content"])
        parts = render(spec.chat.switched(thinking), probe, count)
        text = "".join(_written(part, spec, views, count) for part in parts)
        ids, _ = prompter.encode(probe, [views] * count, thinking=thinking)
        whole.encode_special_tokens = False
        try:
            expected = encode(whole, text, add_special_tokens=spec.add_bos)
        finally:
            whole.encode_special_tokens = True
        if ids.tolist() != expected:
            raise EdgeVLMError(
                f"'{files.tokenizer_json}' joins its special tokens with the text around them (lstrip, rstrip or "
                "normalized), which is not supported: use a checkpoint whose tokenizer does not."
            )


def _written(part: object, spec: PromptSpec, views: list[ViewTokens], count: int) -> str:
    if not isinstance(part, Picture):
        assert isinstance(part, ControlText | UserText)
        return part.text
    number = spec.picture.number.replace("{index}", str(part.index)) if count > 1 else ""
    return number + "".join(
        piece if isinstance(piece, str) else spec.picture.line_break.join([spec.image_token * piece.cols] * piece.rows)
        for piece in picture_parts(spec.picture, views, part.index)
    )
