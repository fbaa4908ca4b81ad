"""The second process of `decode`: one picture to RGB, for kinds whose headers do not bound the work."""

from __future__ import annotations

import io
import json

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.decode import open_header, to_rgb


def answer(request: bytes) -> bytes:
    """A line of JSON and a file's bytes -> a line of JSON and RGB bytes (H, W, 3)."""
    head, _, content = request.partition(b"\n")
    settings = json.loads(head)
    name = settings["name"]
    try:
        image = open_header(name, settings["kind"], io.BytesIO(content))
        picture, cut = to_rgb(name, image, tuple(settings["background"]))
    except EdgeVLMError as error:
        return json.dumps({"error": str(error)}).encode() + b"\n"
    return json.dumps({"size": picture.size, "cut": cut}).encode() + b"\n" + picture.tobytes()
