"""What runs when the repository is public: its form, what it may do, and that it names nothing of one machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {path.name: path for path in sorted(FOLDER.glob("*.yml"))}
LINTER = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_action_is_one_commit_and_says_its_version(name: str) -> None:
    """A tag can be moved to other code; a commit's hash cannot."""
    for line in WORKFLOWS[name].read_text(encoding="utf-8").splitlines():
        if "uses:" in line and "./.github" not in line:
            assert re.search(r"uses: [\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_job_may_more_than_it_needs_or_knows_a_secret(name: str) -> None:
    text, workflow = WORKFLOWS[name].read_text(encoding="utf-8"), read(name)
    assert "secrets." not in text and "password" not in text and "pull_request_target" not in text
    assert not re.search(r"(?<![\w.])/(?:work|root|home|opt)/|\.\./shared", text)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    given = {job: body["permissions"] for job, body in workflow["jobs"].items() if "permissions" in body}
    writes = {job: {p for p, level in asked.items() if level == "write"} for job, asked in given.items()}
    assert {job: asked for job, asked in writes.items() if asked} == (
        {
            "attest": {"id-token", "attestations", "artifact-metadata"},
            "publish": {"id-token"},
            "github": {"contents"},
        }
        if name == "release.yml"
        else {}
    )


@pytest.mark.parametrize("name", WORKFLOWS)
def test_scripts_take_no_text_from_outside(name: str) -> None:
    """`${{ }}` in a script is pasted into it: a branch's name would be run. Steps read the environment instead."""
    for job in read(name)["jobs"].values():
        for step in job.get("steps", []):
            assert "${{" not in step.get("run", ""), step


def test_every_supported_python_and_system_is_tested() -> None:
    jobs = read("tests.yml")["jobs"]
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    pythons = [c.rpartition(" ")[2] for c in classifiers if re.search(r":: 3\.\d+$", c)]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == jobs["windows"]["strategy"]["matrix"]["python"] == pythons
    assert set(jobs["tests"]["strategy"]["matrix"]["system"]) == {"ubuntu-24.04", "ubuntu-24.04-arm", "macos-latest"}
    assert jobs["windows"]["runs-on"] == "windows-latest"


def test_scripts_name_what_there_is() -> None:
    scripts = [
        step["run"]
        for name in WORKFLOWS
        for job in read(name)["jobs"].values()
        for step in job.get("steps", [])
        if "run" in step
    ]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for script in scripts:
        for made in re.findall(r"^make((?: [a-z-]+)+)$", script, re.MULTILINE):
            assert set(made.split()) <= targets, made
        for path in re.findall(r"(?<![\w./-])(?:tests|requirements|docs)/[\w./*-]+", script):
            assert list(ROOT.glob(path)), path


def test_a_release_waits_for_the_tests_and_is_published_once_attested() -> None:
    jobs = read("release.yml")["jobs"]
    assert jobs["tests"]["uses"] == "./.github/workflows/tests.yml"
    order = [job["needs"] for job in jobs.values() if "needs" in job]
    assert order == ["tests", "build", "attest", "publish"]
    assert jobs["publish"]["environment"]["name"] == "pypi"


@pytest.mark.heavy
def test_actionlint_finds_nothing() -> None:
    """Expressions, contexts, inputs of actions, and the scripts by shellcheck where it is installed."""
    linter = [shutil.which("actionlint")] if shutil.which("actionlint") else [shutil.which("go"), "run", LINTER]
    if linter[0] is None:
        pytest.skip("neither actionlint nor go, which would build it, is installed")
    try:
        done = subprocess.run([*linter, *WORKFLOWS.values()], capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        pytest.skip("actionlint could not be built in ten minutes")
    if done.returncode and "dial tcp" in done.stderr + done.stdout:
        pytest.skip("actionlint could not be downloaded")
    assert done.returncode == 0, done.stdout + done.stderr
