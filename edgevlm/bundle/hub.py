"""Bundles of the Hugging Face Hub: the manifest is fetched first, and nothing that it does not list with its size.

A repository holds a bundle as a folder does, with a model card beside it, which is no part of the bundle.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgevlm.bundle.files import BUNDLE
from edgevlm.bundle.manifest import MANIFEST, Manifest, open_bundle, read_manifest, sha256
from edgevlm.errors import BundleError, EdgeVLMError
from edgevlm.io import limits
from edgevlm.io.claims import work_folder
from edgevlm.io.console import note, size
from edgevlm.io.folders import replacing
from edgevlm.io.hub import COMMIT, answers, hub_client, is_hub_id, named, reason


@dataclass(frozen=True)
class Remote:
    """A repository at one commit. files: size in bytes and, of large files, sha256, by name."""

    repo: str
    commit: str
    files: dict[str, tuple[int | None, str | None]]
    private: bool


def resolve_bundle(place: str | Path, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The folder of the bundle that `place` names: itself, or, where no such folder exists, a Hub id "owner/name".

    A bundle of the Hub is taken from the Hub's cache, and fetched into it where it is not there, or has changed; a line
    on standard error says how large it is. revision: branch, tag or commit. cache_dir: instead of the Hub's own.
    Raises EdgeVLMError where the Hub has no such bundle, or can neither be reached nor replaced by the cache.
    """
    if not isinstance(place, str | os.PathLike):
        raise BundleError(f"The bundle is a {type(place).__name__}: give the path of its folder, or a Hub id.")
    repo = os.fspath(place)
    if os.path.lexists(repo) or not is_hub_id(repo):
        if revision is not None:
            raise EdgeVLMError(f"A revision is of bundles of the Hub, and '{repo}' is none: leave it out.")
        return Path(place)
    hub_client(repo)
    where = {"cache_dir": None if cache_dir is None else str(cache_dir)}
    if COMMIT.fullmatch(revision or "") and (folder := _cached(repo, revision, where)):  # a commit never changes
        return folder
    try:
        with answers(f"{named(repo, revision)}, which is no folder here,"):
            remote = look(repo, revision)
    except ConnectionError as error:
        if folder := _cached(repo, revision, where):
            return folder
        raise EdgeVLMError(
            f"{named(repo, revision)} is neither a local folder nor whole in the cache, and the Hub could not be "
            f"reached ({error}): check the path or the network."
        ) from None
    folder = _download(remote, where)
    if _cached(repo, revision, where) != folder:
        from huggingface_hub import hf_hub_download

        with suppress(Exception):  # the bundle is here; this notes for later, without a network, what the branch is at
            hf_hub_download(repo, MANIFEST, revision=revision, **where)
    return folder


def pull(repo: str, out: Path, *, revision: str | None = None, force: bool = False) -> Path:
    """Fetch the bundle `repo` into the folder `out`, which gets its name when every file has its manifest's hash.

    What a failed or stopped pull has fetched is kept beside `out` in the hidden folder `.OUT.edgevlm-pull`, and the
    next goes on from there. force: replace a bundle that is there. Raises EdgeVLMError.
    """
    if not is_hub_id(repo):
        raise EdgeVLMError(f"'{repo}' is no bundle of the Hub: give its id, as in `edgevlm pull owner/name`.")
    hub_client(repo)
    with replacing(out, BUNDLE, force, name="DIR") as replacement:
        place = out.parent.resolve() / out.name
        fetched = Path(f"{work_folder(place)}-pull")
        if fetched.is_symlink() or (fetched.exists() and not fetched.is_dir()):
            raise EdgeVLMError(f"'{fetched}' is in the way of the folder that downloads go to: move it away.")
        try:
            with answers(named(repo, revision)):
                remote = look(repo, revision)
        except ConnectionError as error:
            raise EdgeVLMError(f"The Hub could not be reached ({error}): check the network, and try again.") from None
        _download(remote, {"local_dir": str(fetched)})
        for name in (*read_manifest(fetched).files, MANIFEST):
            path = replacement.new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (fetched / name).rename(path)
        open_bundle(replacement.new)
        shutil.rmtree(fetched, ignore_errors=True)
        replacement.publish()
    return out


def look(repo: str, revision: str | None = None) -> Remote:
    """What the Hub has under a name. ConnectionError where it cannot be reached.

    What the Hub says no with are huggingface_hub's own errors, for which `answers` has sentences.
    """
    client = hub_client(repo)
    errors = client.errors
    try:
        info = client.HfApi().model_info(repo, revision=revision, files_metadata=True)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise
    except errors.HFValidationError as error:
        raise EdgeVLMError(f"'{repo}' is no id that the Hub has ({reason(error)}): check the name.") from None
    except Exception as error:  # the client lets errors of its HTTP library through, which is one or another by version
        raise ConnectionError(reason(error)) from None
    if not COMMIT.fullmatch(info.sha or ""):  # it becomes the name of a folder
        raise EdgeVLMError(f"The Hub names no commit of '{repo}': try again later.")
    files = {file.rfilename: (file.size, file.lfs.sha256 if file.lfs else None) for file in info.siblings or ()}
    return Remote(repo, info.sha, files, bool(info.private))


def fetch_file(remote: Remote, name: str, largest: int, where: Mapping[str, str | None]) -> Path:
    """One file of at most `largest` bytes. where: cache_dir or local_dir, as huggingface_hub has them."""
    from huggingface_hub import hf_hub_download

    count = remote.files[name][0]
    if count is None or not 0 <= count <= largest:
        raise EdgeVLMError(
            f"'{name}' of '{remote.repo}' has {count} bytes, expected at most {largest}: do not use this bundle."
        )
    with _fetching(remote):
        return Path(hf_hub_download(remote.repo, name, revision=remote.commit, **where))


def _download(remote: Remote, where: Mapping[str, str | None]) -> Path:
    """The folder of a whole bundle, of which only what is missing is fetched and compared with its hash.

    In a local folder everything is compared: it may hold what an earlier call has fetched and not compared.
    """
    from huggingface_hub import snapshot_download

    _check_kind(remote)
    folder = fetch_file(remote, MANIFEST, limits.MANIFEST_FILE, where).parent
    manifest = read_manifest(folder)
    _check_listing(remote, manifest)
    missing = [name for name in manifest.files if not (folder / name).is_file()]
    if missing:
        count = sum(manifest.files[name].size for name in missing)
        _check_room(remote, folder, count)
        note(f"Downloading '{remote.repo}' ({remote.commit[:8]}): {len(missing)} files, {size(count)}.")
    with _fetching(remote):
        snapshot_download(
            remote.repo,
            revision=remote.commit,
            allow_patterns=[glob.escape(name) for name in (MANIFEST, *manifest.files)],
            **where,
        )
    _check_hashes(remote, folder, manifest, manifest.files if "local_dir" in where else missing)
    return folder


def _cached(repo: str, revision: str | None, where: Mapping[str, str | None]) -> Path | None:
    """The snapshot in the cache, if all of its bundle is there."""
    try:
        found = hub_client(repo).try_to_load_from_cache(repo, MANIFEST, revision=revision, **where)
    except ValueError:  # no name that the Hub has
        return None
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if all((folder / name).is_file() for name in read_manifest(folder).files) else None


def _check_kind(remote: Remote) -> None:
    if MANIFEST in remote.files:
        return
    if "config.json" in remote.files:
        name = remote.repo.partition("/")[2]
        raise EdgeVLMError(
            f"'{remote.repo}' is a model, not a bundle: export it first with "
            f"`edgevlm export {remote.repo} -o {name}-int4`, then run {name}-int4."
        )
    raise EdgeVLMError(f"'{remote.repo}' on the Hub is no bundle: it has no {MANIFEST}; check the name.")


def _check_listing(remote: Remote, manifest: Manifest) -> None:
    """The Hub lists every file of the manifest, with its size, and with its hash where it knows one."""
    if len(manifest.files) > limits.BUNDLE_FILES:
        raise EdgeVLMError(f"'{remote.repo}' names over {limits.BUNDLE_FILES} files: do not use this bundle.")
    for name, info in manifest.files.items():
        if name not in remote.files:
            raise EdgeVLMError(
                f"'{remote.repo}' lacks the file '{name[:200]}' that its manifest names: ask its author to push the "
                "whole bundle."
            )
        count, digest = remote.files[name]
        if count != info.size or digest not in (None, info.sha256):
            raise EdgeVLMError(
                f"'{name[:200]}' of '{remote.repo}' is not the file of its manifest ({count} bytes, and the manifest "
                f"says {info.size}; or another sha256): ask its author to push the bundle again."
            )


def _check_room(remote: Remote, folder: Path, count: int) -> None:
    free = shutil.disk_usage(folder).free
    if count > free:
        raise EdgeVLMError(
            f"'{remote.repo}' needs {size(count)}, and the disk of '{folder}' has {size(free)} left: make room, or "
            "choose another place."
        )


def _check_hashes(remote: Remote, folder: Path, manifest: Manifest, names: Collection[str]) -> None:
    """Compare files with the manifest; one that differs is removed, so that the next call fetches it again."""
    for name in names:
        path, info = folder / name, manifest.files[name]
        if path.stat().st_size != info.size or sha256(path) != info.sha256:
            path.resolve().unlink()  # of a link in the cache, what it leads to
            path.unlink(missing_ok=True)
            raise EdgeVLMError(
                f"'{name}' of '{remote.repo}' is not what its manifest says (its sha256 differs), and was removed: try "
                "again; if that does not help, ask its author to push the bundle again."
            )


@contextmanager
def _fetching(remote: Remote) -> Iterator[None]:
    """Sentences for a download that is refused or stops."""
    try:
        with answers(f"'{remote.repo}'"):
            yield
    except EdgeVLMError:
        raise
    except Exception as error:  # as in `look`
        raise EdgeVLMError(
            f"The download of '{remote.repo}' stopped ({reason(error)}): run the same command again; files that are "
            "whole are not fetched twice."
        ) from None
