"""`label --ray`: the same table from a cluster, also where a worker and a machine are lost in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled import ROOT, answers, draw, lines, rows

pytest.importorskip("ray", reason="ray is not installed")

import edgevlm
from edgevlm.errors import EdgeVLMError
from edgevlm.label import Labels, label

pytestmark = pytest.mark.heavy
OPTIONS = edgevlm.AskOptions(max_tokens=2, max_tiles=1)


class Machines:
    """Two nodes of one cluster on this machine, with a core each, and none on the head."""

    def __init__(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster

        store = {"object_store_memory": 100 << 20}
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store}
        )
        self.nodes = [self.cluster.add_node(num_cpus=1, **store) for _ in range(2)]

    def workers(self) -> list[psutil.Process]:
        """The processes that label."""
        found = psutil.Process().children(recursive=True)
        return [process for process in found if "MapWorker" in _name(process)]


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = Machines()
    try:
        yield found
    finally:
        found.cluster.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("photos") / "photos", 2000)


@pytest.fixture(scope="module")
def through(photos: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """The answers without Ray."""
    out = tmp_path_factory.mktemp("through") / "t.jsonl"
    label(tiny_bundle, photos, "What?", out, OPTIONS, threads=1)
    return answers(out)


def check(out: Path, through: dict[str, Any]) -> None:
    assert len(rows(out)) == len(through) and answers(out) == through
    assert sorted(path.name for path in out.parent.iterdir() if out.name in path.name) == [out.name]


def test_a_worker_and_a_node_are_lost_in_the_middle(
    machines: Machines, tiny_bundle: Path, photos: Path, through: dict[str, Any], tmp_path: Path
) -> None:
    out, done = tmp_path / "t.jsonl", list[str]()

    def progress(rows: int, total: int, new: int, errors: int) -> None:
        if rows > 300 and not done:
            victim = machines.workers()[0]
            victim.send_signal(signal.SIGKILL)
            done.append("worker")
        if rows > 900 and len(done) == 1:
            machines.cluster.remove_node(machines.nodes[1], allow_graceful=False)
            done.append("node")

    found = label(
        tiny_bundle, photos, "What?", out, OPTIONS, progress, ray=machines.cluster.address, threads=1, workers=2
    )
    assert found == Labels(2000, 0, 2000) and done == ["worker", "node"]
    check(out, through)


def test_a_driver_that_was_killed_goes_on(
    machines: Machines, tiny_bundle: Path, photos: Path, through: dict[str, Any], tmp_path: Path
) -> None:
    """Begun on the cluster, killed, and finished without one: rows are where the driver is."""
    out = tmp_path / "t.jsonl"
    part = out.with_name(f"{out.name}.partial.jsonl")
    line = ("label", tiny_bundle, photos, "-q", "What?", "-o", out, "--tiles", 1, "--max-tokens", 2, "--threads", 1)
    command = [sys.executable, "-m", "edgevlm", *map(str, line)]
    for name in (signal.SIGKILL, signal.SIGINT):
        before = lines(part)
        child = subprocess.Popen([*command, "--ray", machines.cluster.address], cwd=ROOT, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while lines(part) < before + 100 and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(name)
        said = child.communicate(timeout=60)[1].decode()
        assert child.returncode in (-9, 130) and "Traceback" not in said, said
    assert 200 < lines(part) < 2000
    assert subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode == 0
    check(out, through)


def test_errors_and_refusals_on_a_cluster(machines: Machines, tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    first = next(photos.rglob("*.png"))
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "list.jsonl").write_text(
        f'{{"image": "{first}"}}\n{{"image": "bad.png"}}\n{{"image": "{tmp_path}/bad.png"}}\nno json\n'
    )
    out, where = tmp_path / "t.jsonl", machines.cluster.address
    assert label(tiny_bundle, tmp_path / "list.jsonl", "What?", out, OPTIONS, ray=where, threads=1) == Labels(4, 3, 4)
    content = [first.read_bytes(), b"no picture", first.read_bytes()]
    pq.write_table(pa.table({"image": content}), tmp_path / "bytes.parquet")
    table = tmp_path / "t.parquet"
    assert label(tiny_bundle, tmp_path / "bytes.parquet", "What?", table, OPTIONS, ray=where, threads=1).errors == 1
    one, bad, other = sorted(pq.read_table(table).to_pylist(), key=lambda row: row["picture"])
    assert one["answer"] == other["answer"] is not None and "not a picture" in bad["error"]
    failed = {row["picture"]: row["error"] for row in rows(out)}
    assert failed.pop(str(first)) is None and "is no JSON" in failed["line 4"]
    assert "not a picture" in failed[f"{tmp_path}/bad.png"] and "does not exist" in failed["bad.png"]
    for settings, sentence in (
        ({"threads": 3}, "No machine of the cluster has 3 cores"),
        ({"threads": 1, "device": "tpu"}, "Device 'tpu' does not exist"),
        ({"threads": 1, "runtime": "nonsense"}, "Runtime 'nonsense' does not exist"),
    ):
        with pytest.raises(EdgeVLMError) as error:
            label(tiny_bundle, photos, "What?", tmp_path / "u.jsonl", OPTIONS, ray=where, **settings)  # type: ignore[arg-type]
        assert sentence in str(error.value)
    assert not list(tmp_path.glob("u.jsonl*"))


def test_a_local_ray_from_the_command_line(
    tiny_bundle: Path, photos: Path, through: dict[str, Any], tmp_path: Path
) -> None:
    """Ray begins and ends with the command, and says next to nothing."""
    out = tmp_path / "t.jsonl"
    line = ("label", tiny_bundle, photos, "-q", "What?", "-o", out, "--tiles", 1, "--max-tokens", 2, "--threads", 1)
    command = [sys.executable, "-m", "edgevlm", *map(str, line), "--ray", "--workers", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "") and done.stderr.endswith(f"'{out}' has 2000 rows.\n"), done.stderr
    said = [line for line in done.stderr.splitlines()[:-1] if " of 2000 pictures" not in line]
    assert all("core_worker.cc" in line for line in said), done.stderr  # Ray's C++ has a note of its own on actors
    log = Path("/tmp/ray/session_latest/logs/dashboard.log").read_text()
    assert "Usage reporting is disabled" in log
    check(out, through)
    nowhere = subprocess.run(
        [*command[:-3], "--force", "--ray", "127.0.0.1:1"], cwd=ROOT, capture_output=True, text=True
    )
    assert nowhere.returncode == 2 and "There is no Ray at '127.0.0.1:1'" in nowhere.stderr.splitlines()[-1]
