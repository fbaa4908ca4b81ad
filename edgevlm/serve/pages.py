"""The one page, its style and its script: files of the package, by exact path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

ASSETS = Path(__file__).parent.parent / "assets"

FILES = {
    "/": ("serve/index.html", "text/html"),
    "/page.css": ("serve/page.css", "text/css"),
    "/page.js": ("serve/page.js", "text/javascript"),
    "/look.css": ("look.css", "text/css"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "media-src 'self' blob: mediastream:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Page:
    content: bytes
    kind: str

    async def endpoint(self, request: Request) -> Response:
        return Response(self.content, media_type=self.kind, headers=HEADERS)


def read_pages(assets: Path = ASSETS) -> dict[str, Page]:
    """By path; without one that is not there."""
    return {
        path: Page((assets / name).read_bytes(), kind)
        for path, (name, kind) in FILES.items()
        if (assets / name).is_file()
    }
