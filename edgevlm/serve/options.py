"""What a server is told at its start."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from edgevlm.errors import EdgeVLMError
from edgevlm.io.options import check_types

_HOST = re.compile(r"[a-z0-9.-]{1,253}(?::[0-9]{1,5})?|\[[0-9a-f:.]+\](?::[0-9]{1,5})?")


@dataclass(frozen=True)
class ServeOptions:
    """Raises EdgeVLMError for a value of another type or out of its range."""

    host: str = "127.0.0.1"  # address to listen on
    port: int = 8080  # 0 is any that is free
    api_key: str | None = field(default=None, repr=False)  # None: everyone who reaches the server may ask
    aliases: tuple[str, ...] = ()  # further names that requests may call the model by
    hosts: tuple[str, ...] = ()  # further names that the server is reached by
    image_hosts: tuple[str, ...] = ()  # where pictures may be fetched from: "host" or "host:port"; none: nowhere
    runtime: str | None = None
    device: str = "cpu"
    threads: int | None = None  # of all sessions together; None: every core
    parallel: int = 1  # answers that are computed at the same time
    queue: int = 8  # questions that may wait beside them
    max_tokens: int = 1024  # of an answer whose request says nothing
    max_tiles: int | None = None  # of a picture whose request says nothing
    max_pictures: int = 8  # of a request
    max_pixels: int = 40_000_000  # of a picture
    max_body: int = 20 << 20  # bytes of a request
    body_seconds: float = 60.0  # in which a request has to arrive
    stop_seconds: float = 10.0  # that answers under way have when the server is stopped
    cache_folder: Path | None = None  # where features of pictures are kept on disk, too
    reuse: bool = True  # keep what a question shares with the one before

    def __post_init__(self) -> None:
        check_types(self)
        for name, least, most in (
            ("port", 0, 65_535),
            ("parallel", 1, 64),
            ("queue", 0, 1000),
            ("max_tokens", 1, 1 << 20),
            ("max_pictures", 0, 1000),
            ("max_pixels", 1, 89_478_485),
            ("max_body", 1 << 10, 1 << 30),
            ("body_seconds", 0, 3600),
            ("stop_seconds", 0, 3600),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise EdgeVLMError(f"{name} is {value!r}: give a number from {least} to {most}.")
        if self.api_key is not None and not re.fullmatch(r"[!-~]{1,512}", self.api_key):
            raise EdgeVLMError("The API key is none: give 1 to 512 visible ASCII characters without spaces.")
        for name in ("hosts", "image_hosts"):
            given = tuple(host.lower() for host in getattr(self, name))
            for host in given:
                if not _HOST.fullmatch(host):
                    raise EdgeVLMError(f"{host[:100]!r} is no host: give a name such as 'pictures.example.com'.")
            object.__setattr__(self, name, given)
        for alias in self.aliases:
            if not alias or not alias.isprintable():
                raise EdgeVLMError(f"The alias {alias!r} is no name: give visible characters.")
