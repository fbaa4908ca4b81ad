"""A decoder's states behind a prompt's pictures, which later processes need not compute again."""

from __future__ import annotations

import hashlib

import numpy as np

from edgevlm.bundle.manifest import Bundle
from edgevlm.generate.array_folder import ArrayFolder, Arrays
from edgevlm.generate.prompt import Prompt
from edgevlm.generate.stored_pictures import maker
from edgevlm.inputs.layout import positions
from edgevlm.models.spec import states
from edgevlm.runtimes.base import Runtime


class StoredStates:
    """Of prompts read up to the end of their last picture: one bundle's on one runtime."""

    def __init__(self, folder: ArrayFolder, bundle: Bundle, runtime: Runtime) -> None:
        self._folder, self._spec = folder, bundle.manifest.spec.decoder
        self._maker = maker(bundle, runtime.encoder) + maker(bundle, runtime.decoder)

    def read(self, prompt: Prompt, length: int) -> Arrays | None:
        """The states of the prompt's first `length` positions by name, or None."""
        found = self._folder.read(self._key(prompt, length))
        shapes = {
            state.name: (np.dtype(state.dtype), tuple(length if size is None else size for size in state.shape))
            for state in states(self._spec)
        }
        given = {name: (array.dtype, array.shape) for name, array in (found or {}).items()}
        return found if given == shapes else None

    def write(self, prompt: Prompt, length: int, arrays: Arrays) -> None:
        self._folder.write(self._key(prompt, length), arrays)

    def _key(self, prompt: Prompt, length: int) -> bytes:
        """By all that the first positions' states depend on: tokens, pictures, and where they stand."""
        d, layout = self._spec, prompt.layout
        spans = [(s.start, s.grid, s.gap, s.frames, s.step, s.place, s.behind) for s in layout.spans]
        about = repr((spans, [marker.start for marker in layout.markers], prompt.keys)).encode()
        parts = (prompt.ids[:length].tobytes(), positions(layout, d.axes, 0, length, d.places).tobytes(), about)
        return self._maker + b"".join(hashlib.sha256(part).digest() for part in parts)
