"""The sdist and the wheel of the last commit: `make wheel`, or `python release/make_dist.py FOLDER`.

Two builds of one commit give the same bytes, with the same setuptools (requirements/tools.txt) and Python: whatever
else a build takes from its surroundings is set to the commit's, and only committed files go in. Prints sha256 sums.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHIPPED = ("edgevlm", "export", "runtimes", "pyproject.toml", "README.md", "LICENSE")


def git(*command: str) -> bytes:
    return subprocess.run(["git", *command], cwd=ROOT, check=True, capture_output=True).stdout


def build(tree: Path, out: Path, what: str, epoch: int) -> Path:
    """What setuptools makes of a tree, as a build front end would get it. what: sdist or wheel."""
    code = f"import sys, setuptools.build_meta as b; print(b.build_{what}(sys.argv[1]), file=sys.stderr)"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", code, out]
    done = subprocess.run(command, cwd=tree, env=environment, umask=0o022, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return out / done.stderr.split()[-1]


def settle(sdist: Path, epoch: int) -> None:
    """Write an sdist again: files by name, of one time, of nobody, in two modes. Setuptools heeds no epoch."""
    plain = io.BytesIO()
    with tarfile.open(sdist) as old, tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode, member.pax_headers = 0o755 if member.isdir() or member.mode & 0o100 else 0o644, {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    sdist.write_bytes(gzip.compress(plain.getvalue(), 9, mtime=epoch))


def unpack(archive: bytes, to: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(to, filter="data")


def make_dist(out: Path) -> list[Path]:
    """Write the sdist, and the wheel that is built from it, into `out`; an older one of the same name is replaced."""
    epoch = int(git("log", "-1", "--format=%ct"))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source, unpacked = Path(folder, "source"), Path(folder, "unpacked")
        unpack(git("archive", "--format=tar", "HEAD", *SHIPPED), source)
        sdist = build(source, out.resolve(), "sdist", epoch)
        settle(sdist, epoch)
        unpack(sdist.read_bytes(), unpacked)
        wheel = build(next(unpacked.iterdir()), out.resolve(), "wheel", epoch)
    return [sdist, wheel]


if __name__ == "__main__":
    for made in make_dist(Path(sys.argv[1])):
        print(hashlib.sha256(made.read_bytes()).hexdigest(), made.name)
