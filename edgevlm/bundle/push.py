"""A bundle goes to the Hub in one commit, with its card; what it would replace there is judged first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from edgevlm.bundle.card import CARD, Licence, is_ours, model_card
from edgevlm.bundle.check import AGAIN
from edgevlm.bundle.files import BUNDLE
from edgevlm.bundle.hub import Remote, fetch_file, look
from edgevlm.bundle.manifest import MANIFEST, Bundle, ModelInfo, open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.console import note
from edgevlm.io.hub import answers, hub_client, is_hub_id, named, reason
from edgevlm.io.json import read_object
from edgevlm.io.options import check_types
from edgevlm.io.regular import read_regular
from edgevlm.io.text import printable

_IDENTIFIER = re.compile(r"[\w.+-]{1,80}")
_ADDRESS = re.compile(r"https?://[^\s<>()\[\]\"']{1,500}")
_NO_CONTENT = {".gitattributes", CARD, ".gitignore", "LICENSE"}  # what the Hub's own form for a new repository makes


@dataclass(frozen=True)
class PushOptions:
    """public: everybody may see a repository that is made. revision: the branch, made where it is not there.

    license: the identifier of the licence, instead of the one in the card of the source. force: change a repository
    that holds something else, and write the card anew.
    """

    public: bool = False
    revision: str | None = None
    license: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.license is not None and not _IDENTIFIER.fullmatch(self.license):
            raise EdgeVLMError(
                f"The licence '{self.license[:100]}' is no identifier: write it as the Hub does, as in apache-2.0."
            )


def push(folder: str | Path, repo: str, options: PushOptions | None = None) -> str:
    """Put the bundle in `folder` into the repository `repo` ("owner/name") of the Hub; the repository's address.

    Every file is compared with its hash first. A repository that is there is changed where it holds a bundle of the
    same model, or nothing; files of that bundle that are not of the new one are removed in the same commit, and any
    others are kept. Raises EdgeVLMError.
    """
    options = options or PushOptions()
    if not is_hub_id(repo):
        raise EdgeVLMError(f"'{repo}' is no id of the Hub: write it as in `edgevlm push BUNDLE owner/name`.")
    bundle = open_bundle(folder, check="hash")
    model = bundle.manifest.model
    api = hub_client(repo).HfApi(library_name="edgevlm")
    remote, branch_exists = _there(repo, options)
    with TemporaryDirectory(prefix="edgevlm-") as scratch:
        gone, keeps_card = _judge(remote, bundle, Path(scratch), options) if remote else ([], False)
    card = model_card(bundle.manifest, repo, _licence(model, options), options.revision)
    with _writing(repo):
        if remote is None:
            api.create_repo(repo, private=not options.public)
        if options.revision and not branch_exists:
            api.create_branch(repo, branch=options.revision, exist_ok=True)
        commit = api.create_commit(
            repo,
            _operations(bundle, gone, None if keeps_card else card),
            commit_message=f"EdgeVLM bundle of {printable(model.name)[:100]}: {', '.join(bundle.manifest.targets)}",
            revision=options.revision,
            parent_commit=remote.commit if remote and (branch_exists or not options.revision) else None,
        )
    if remote and commit.oid == remote.commit:
        note(f"'{repo}' holds these very files already: nothing was changed.")
    return f"{api.endpoint}/{repo}" + (f"/tree/{quote(options.revision)}" if options.revision else "")


def _there(repo: str, options: PushOptions) -> tuple[Remote | None, bool]:
    """What is there, if anything: the branch, or what a new branch would begin with; and whether the branch exists."""
    errors = hub_client(repo).errors
    try:
        return look(repo, options.revision), True
    except errors.RevisionNotFoundError:
        return look(repo), False
    except errors.RepositoryNotFoundError:  # also where the token may not see it: then it cannot be made either
        return None, False
    except ConnectionError as error:
        raise EdgeVLMError(f"The Hub could not be reached ({error}): check the network, and try again.") from None


def _judge(remote: Remote, bundle: Bundle, scratch: Path, options: PushOptions) -> tuple[list[str], bool]:
    """Refuse what must not be changed; else the files to remove, and whether the card there is somebody's own."""
    if not remote.private and not options.public:
        raise EdgeVLMError(
            f"'{remote.repo}' exists and everybody can see it: add --public if they may see this bundle, or choose "
            "another name."
        )
    if remote.private and options.public:
        note(f"'{remote.repo}' exists and stays private: its page on the Hub has the switch.")
    own, name = _bundle_there(remote, scratch)
    if not options.force:
        others = remote.files.keys() - own - _NO_CONTENT
        if own and name != bundle.manifest.model.name:
            raise EdgeVLMError(
                f"'{remote.repo}' holds a bundle of {str(name)[:100]!r}, and this one is of "
                f"{bundle.manifest.model.name[:100]!r}: choose another name, or replace it with --force."
            )
        if others and not own:
            raise EdgeVLMError(
                f"'{remote.repo}' exists and holds something else ({sorted(others)[0][:100]!r}): choose another name, "
                "or add the bundle to it with --force."
            )
    keeps = False
    if CARD in remote.files and not options.force:
        path = fetch_file(remote, CARD, limits.CARD_FILE, {"local_dir": str(scratch)})
        keeps = not is_ours(read_regular(path, limits.CARD_FILE, "").decode("utf-8", "replace"))
        if keeps:
            note(f"The card of '{remote.repo}' is somebody's own and was kept: --force writes it anew.")
    new = {MANIFEST, CARD, *bundle.manifest.files}
    return sorted((own & remote.files.keys()) - new), keeps


def _bundle_there(remote: Remote, scratch: Path) -> tuple[set[str], str | None]:
    """The files of the bundle that a repository holds, and its model's name; none where it holds no bundle."""
    count = remote.files.get(MANIFEST, (None, None))[0]
    if count is None or count > limits.MANIFEST_FILE:
        return set(), None
    fetch_file(remote, MANIFEST, limits.MANIFEST_FILE, {"local_dir": str(scratch)})
    if not (own := BUNDLE.files(scratch)):
        return set(), None
    model = read_object(scratch / MANIFEST, AGAIN)["model"]
    return set(own), model.get("name") if isinstance(model, dict) else None


def _operations(bundle: Bundle, gone: list[str], card: str | None) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files = [CommitOperationAdd(name, str(bundle.folder / name)) for name in (MANIFEST, *bundle.manifest.files)]
    cards = [] if card is None else [CommitOperationAdd(CARD, card.encode("utf-8"))]
    return [*files, *cards, *(CommitOperationDelete(name) for name in gone)]


def _licence(model: ModelInfo, options: PushOptions) -> Licence | None:
    """As the user says, or as the card of the source on the Hub says; None where neither does."""
    if options.license is not None:
        return Licence(options.license)
    if model.source == "default":
        return Licence("apache-2.0")
    said = _said_by_the_source(model) if is_hub_id(model.source) else {}
    if _IDENTIFIER.fullmatch(said.get("license", "")):
        link = said.get("license_link")
        if link and "://" not in link:  # a file beside the card
            link = f"https://huggingface.co/{model.source}/blob/{model.revision or 'main'}/{quote(link)}"
        return Licence(said["license"], said.get("license_name"), link if _ADDRESS.fullmatch(link or "") else None)
    note(f"The licence of '{model.source}' is not known, and the card says so: --license names it.")
    return None


def _said_by_the_source(model: ModelInfo) -> dict[str, str]:
    """What the card of the source says, as far as it is text; nothing where it is gone, gated or not to be reached."""
    try:
        card = hub_client(model.source).HfApi().model_info(model.source, revision=model.revision).card_data
        return {key: value for key, value in card.to_dict().items() if isinstance(value, str)} if card else {}
    except EdgeVLMError:
        raise
    except Exception:  # the client's, and its HTTP library's
        return {}


@contextmanager
def _writing(repo: str) -> Iterator[None]:
    """Sentences for what the Hub says to whoever writes."""
    try:
        with answers(named(repo, None)):
            yield
    except EdgeVLMError:
        raise
    except Exception as error:  # the client lets errors of its HTTP library through
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = {
            401: "You are not logged in to the Hub: run 'hf auth login' with a token that may write, and try again.",
            403: f"Your token may not write '{repo}': use one that may, or another name.",
            409: f"'{repo}' exists, and your token may not see it: use one that may, or another name.",
            412: f"'{repo}' was changed by somebody else meanwhile: look at it, and try again.",
        }.get(status or 0)
        raise EdgeVLMError(
            said
            or f"The push to '{repo}' stopped ({reason(error)}): run the same command again; large files that "
            "have arrived are not sent twice."
        ) from None
