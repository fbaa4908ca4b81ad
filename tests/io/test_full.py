"""A full disk has one wording, and the name of the output, whoever was writing."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgevlm.errors import EdgeVLMError
from edgevlm.io.full import disk_errors

OUT, WORK = Path("/there/out"), Path("/there/.out.edgevlm")
WORDS = os.strerror(errno.ENOSPC)


def error(number: int, *names: object) -> OSError:
    return OSError(number, os.strerror(number), *([names[0], None, names[1]] if len(names) == 2 else names))


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=request.param))


FULL, EMPTY = 4096, 1 << 40


@pytest.mark.parametrize(
    ("room", "raised", "number", "name"),
    [
        (EMPTY, error(errno.ENOSPC, WORK / "new" / "x"), errno.ENOSPC, OUT),
        (EMPTY, error(errno.ENOSPC, "/source/config.json", str(WORK / "new" / "config.json")), errno.ENOSPC, OUT),
        (EMPTY, error(errno.ENOSPC, "/cache/blob"), errno.ENOSPC, "/cache/blob"),
        (EMPTY, error(errno.EACCES, WORK / "new"), errno.EACCES, OUT),
        (EMPTY, error(errno.EFBIG), errno.EFBIG, OUT),
        (FULL, error(errno.ENOSPC), errno.ENOSPC, OUT),
        (EMPTY, error(errno.ENOSPC), errno.ENOSPC, None),  # of another disk, it seems
        (FULL, OSError("300 requested and 17 written"), errno.ENOSPC, OUT),  # ndarray.tofile
        (EMPTY, RuntimeError(f"Error while serializing: I/O error: {WORDS} (os error 28)"), errno.ENOSPC, OUT),
        (FULL, RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), errno.ENOSPC, OUT),
    ],
    indirect=["room"],
)
@pytest.mark.usefixtures("room")
def test_an_error_gets_its_number_and_name(raised: Exception, number: int, name: object) -> None:
    with pytest.raises(OSError) as found, disk_errors(OUT, WORK):
        raise raised
    assert found.value.errno == number
    assert (found.value.filename2 or found.value.filename) == (None if name is None else str(name))


@pytest.mark.parametrize("room", [FULL], indirect=True)
@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("raised", [EdgeVLMError("a sentence"), KeyError("a bug"), KeyboardInterrupt()], ids=repr)
def test_other_errors_stay_what_they_are(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as found, disk_errors(OUT, WORK):
        raise raised
    assert found.value is raised
