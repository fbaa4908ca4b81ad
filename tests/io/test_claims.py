"""The claim on an output: held by one process, and free when that process ends, however it ends."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgevlm.errors import EdgeVLMError
from edgevlm.io import claims
from edgevlm.io.claims import claimed, work_folder

HOLD = """
import sys, time
from pathlib import Path
from edgevlm.io.claims import claimed
with claimed(Path(sys.argv[1])) as work:
    (work / "half").write_text("half")
    print("claimed", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_holds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"claimed\n"
    with pytest.raises(EdgeVLMError, match=rf"process {holder.pid}"), claimed(out):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with claimed(out) as work:
        assert [path.name for path in work.iterdir()] == ["lock"]
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == "Removed what a stopped run had left of 'out': .out.edgevlm (half).\n"


FORK = """
import os, signal, sys, time
from pathlib import Path
from edgevlm.io.claims import claimed
with claimed(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)
    signal.pause()
"""


def test_a_worker_of_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    """torch's notice that their parent is gone every five seconds only."""
    holder = subprocess.Popen([sys.executable, "-c", FORK, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(EdgeVLMError, match=rf"process {holder.pid}"), claimed(tmp_path / "out"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with claimed(tmp_path / "out"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_that_lives_on_holds_nothing(tmp_path: Path) -> None:
    """Workers that read pictures are forked with their parent's files open."""
    with claimed(tmp_path / "out"):
        child = os.fork()
        if not child:
            signal.pause()
            os._exit(0)
    try:
        with claimed(tmp_path / "out"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(claims.fcntl, "flock", unknown)
    out = tmp_path / "out"
    told = rf"or was killed while it did, .* remove '{work_folder(out)}'"
    with claimed(out), pytest.raises(EdgeVLMError, match=told), claimed(out):
        pass
    with claimed(out):
        pass
    assert not list(tmp_path.iterdir())


def test_a_users_file_or_link_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "new").mkdir(parents=True)
    work = work_folder(tmp_path / "out")
    work.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EdgeVLMError, match="is in the way"), claimed(tmp_path / "out"):
        pass
    assert (tmp_path / "elsewhere" / "new").is_dir()
    work.unlink()
    work.write_text("mine")
    with pytest.raises(EdgeVLMError, match="is in the way"), claimed(tmp_path / "out"):
        pass
    assert work.read_text() == "mine"
