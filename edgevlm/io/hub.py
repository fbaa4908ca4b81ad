"""What every use of the Hugging Face Hub shares: the form of an id, the client, and sentences for the Hub's answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgevlm.errors import EdgeVLMError, install_hint

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")  # a revision of this form never changes


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form "owner/name"."""
    return bool(_ID.fullmatch(name)) and ".." not in name and len(name) <= 200


def named(repo: str, revision: str | None) -> str:
    """What a sentence calls a repository at a revision."""
    return f"'{repo}'" if revision is None else f"'{repo}' at revision '{revision}'"


def hub_client(repo: str) -> Any:
    """The package huggingface_hub with its `errors`. Raises EdgeVLMError where it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise EdgeVLMError(
            f"'{repo}' is not a local folder, and the Hub needs the package huggingface_hub: "
            f"{install_hint('export')}, or give a local folder."
        ) from None
    return huggingface_hub


@contextmanager
def answers(which: str) -> Iterator[None]:
    """Sentences for what the Hub says when it is reached."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise EdgeVLMError(
            f"{which} is gated: accept its terms on its Hub page, then run 'hf auth login' and try again."
        ) from None
    except errors.RevisionNotFoundError:
        raise EdgeVLMError(f"{which} does not exist on the Hub: check the revision on the model's Hub page.") from None
    except errors.RepositoryNotFoundError:
        raise EdgeVLMError(
            f"{which} is not on the Hub, or is private: check the name, or run 'hf auth login' for a private model."
        ) from None


def reason(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
