"""What is installed, from where, under which licence, and by which workflows it is tested and released."""

from __future__ import annotations

import importlib.metadata
import json
import re
import runpy
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgevlm import __version__

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, BUILD = SETTINGS["project"], SETTINGS["build-system"]
EXTRAS = PROJECT["optional-dependencies"]
LICENCES = runpy.run_path(str(ROOT / "docs" / "make_licences.py"))


def committed(*patterns: str) -> list[Path]:
    """Files of the repository: what git tracks, and what it would."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_nobody_is_told_to_install_a_name_that_is_not_ours() -> None:
    """The index has no edgevlm: whoever registers the name would be installed. Docs and errors say `.[extra]`."""
    for path in committed("*.py", "*.md"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"edgevlm\[[a-z]|pip install ['\"]?edgevlm\b", text), path
        for extras, extra in re.findall(r"install '\.\[([\w,]+)\]'|install_hint\(['\"](\w+)['\"]\)", text):
            assert set((extras or extra).split(",")) <= EXTRAS.keys(), f"{path} names an extra that there is not"


def asked(extra: str) -> Iterator[Requirement]:
    """What an extra asks of others, with what the extras asks that it names, and what the base install asks."""
    for text in [*EXTRAS[extra], *PROJECT["dependencies"]]:
        requirement = Requirement(text)
        if requirement.name == "edgevlm":
            for other in requirement.extras:
                yield from asked(other)
        else:
            yield requirement


SYSTEMS = [
    {
        "sys_platform": system,
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.9",
    }
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64"))
    for python in ("3.11", "3.12", "3.13")
]


def locked(name: str) -> list[Requirement]:
    """A lock's requirements. Each is one version with its hashes."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    found = []
    for entry in re.findall(r"^[^\s#].*(?:\n .*)*", text, re.MULTILINE):
        first, *hashes = entry.split("\\\n")
        assert hashes or first.startswith("torch=="), f"{first} has no hash"
        assert all(re.fullmatch(r" *--hash=sha256:[0-9a-f]{64} *", line) for line in hashes)
        found.append(Requirement(first))
        assert re.fullmatch(r"==[^,*]+", str(found[-1].specifier)), f"{first} is no single version"
    return found


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: "-".join(list(system.values())[:3]))
def test_the_lock_is_what_the_tests_ask_for(system: dict[str, str]) -> None:
    """One version of everything that pyproject.toml asks for, within its bounds: `make lock` after a change there."""
    versions: dict[str, str] = {}
    for requirement in [*locked("test.txt"), *locked("torch.txt")]:
        if requirement.marker is None or requirement.marker.evaluate(system):
            name = canonicalize_name(requirement.name)
            assert name not in versions, f"{name} is locked twice for {system}"
            versions[name] = str(requirement.specifier).removeprefix("==")
    for requirement in asked("test"):
        if requirement.marker is None or requirement.marker.evaluate(system):
            version = versions.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement} is not locked: make lock"
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is locked at {version}"
    assert not {name for name in versions if name.startswith(("nvidia-", "cuda-", "triton"))}


def test_the_tools_are_locked() -> None:
    wanted = re.findall(r"^[a-z-]+", (ROOT / "requirements" / "tools.in").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(wanted) <= {requirement.name for requirement in locked("tools.txt")}
    built_with = next(Requirement(text) for text in BUILD["requires"])
    setuptools = next(requirement for requirement in locked("tools.txt") if requirement.name == "setuptools")
    assert built_with.specifier.contains(str(setuptools.specifier).removeprefix("=="))


def installed(name: str) -> str | None:
    return next((found.version for found in importlib.metadata.distributions(name=name)), None)


def test_the_page_of_licences_is_what_the_packages_say() -> None:
    """`make licences` after `make lock`. Packages of other versions than the locked ones may say what they like."""
    listed = LICENCES["listed"]()
    lock = {canonicalize_name(r.name): str(r.specifier)[2:] for r in [*locked("test.txt"), *locked("torch.txt")]}
    assert set(lock) - set(listed) <= {"colorama", "httpx2-jsfetch"}, "not needed on Linux, the rest is: make licences"
    compared = [name for name, version in lock.items() if installed(name) == version]
    assert {name: LICENCES["licence"](name) for name in compared} == {name: listed[name][0] for name in compared}
    assert (ROOT / "docs" / "licences.md").read_text(encoding="utf-8") == LICENCES["page"](listed)


def test_the_base_install_has_no_copyleft_but_what_the_page_names() -> None:
    base = {name: licence for name, (licence, by) in LICENCES["listed"]().items() if by == "base"}
    assert {name for name, licence in base.items() if not LICENCES["permissive"](licence)} == {"tqdm"}
    assert base["tqdm"] == "MPL-2.0 AND MIT"
    for name in LICENCES["closure"](PROJECT["dependencies"]):  # of whatever version is installed here
        assert "GPL" not in LICENCES["licence"](name), name


def test_every_asset_has_a_licence() -> None:
    text = " ".join(files for files, _, _ in LICENCES["assets"]())
    assets = ROOT / "edgevlm" / "assets"
    for path in (path for path in assets.rglob("*") if path.is_file()):
        name = path.relative_to(assets).as_posix()
        own = name.startswith("default/") or path.name == "README.md" or path.name.startswith("LICENSE-")
        assert own or f"`{name}`" in text, f"edgevlm/assets/{name} has no licence in the page beside it"


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of requirements/tools.txt, installed by their hashes."""
    folder = tmp_path_factory.mktemp("tools")
    venv.create(folder, with_pip=True)
    lock = ROOT / "requirements" / "tools.txt"
    pip = [folder / "bin" / "pip", "install", "-qqq", "--no-deps", "--require-hashes", "-r", lock]
    subprocess.run(pip, check=True)
    return folder / "bin"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.heavy
def test_workflows_have_githubs_form_and_no_known_hole(tools: Path) -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert workflows
    run(tools / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    run(tools / "check-jsonschema", "--builtin-schema", "vendor.dependabot", ROOT / ".github" / "dependabot.yml")
    run(tools / "zizmor", "--offline", "--min-severity", "medium", ROOT / ".github")


@pytest.mark.heavy
def test_the_list_of_parts_is_what_the_wheel_installs(tools: Path, tmp_path: Path) -> None:
    """As release.yml makes it: CycloneDX, valid by its schema (cyclonedx-py checks that), with nothing else in it."""
    run(tools / "python", ROOT / "release" / "make_dist.py", tmp_path / "dist")
    venv.create(tmp_path / "base", with_pip=False)
    python, wheel = tmp_path / "base" / "bin" / "python", next((tmp_path / "dist").glob("*.whl"))
    run(sys.executable, "-m", "pip", "--python", python, "install", "-qqq", wheel)
    command = [tools / "cyclonedx-py", "environment", python, "--output-reproducible", "--mc-type", "library"]
    first, second = (run(*command, "--of", "JSON", "--output-file", "-").stdout for _ in range(2))
    assert first == second
    parts = json.loads(first)
    assert parts["bomFormat"] == "CycloneDX"
    listed = run(sys.executable, "-m", "pip", "--python", python, "list", "--format=json").stdout
    there = {canonicalize_name(one["name"]): one["version"] for one in json.loads(listed)}
    assert {canonicalize_name(part["name"]): part["version"] for part in parts["components"]} == there
    assert there["edgevlm"] == __version__
    asked = next(part["dependsOn"] for part in parts["dependencies"] if part["ref"].startswith("edgevlm"))
    names = {canonicalize_name(ref.split("==")[0]) for ref in asked}
    assert {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]} <= names


@pytest.mark.heavy
def test_no_locked_package_has_a_known_vulnerability(tools: Path) -> None:
    command = [tools / "pip-audit", "--disable-pip", "--require-hashes", "-r", "requirements/test.txt", "-f", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], cwd=ROOT, capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        assert re.search(r"ConnectionError|ServiceError|resolve|timed out", done.stderr), done.stderr
        pytest.skip("pip-audit could not reach its data")
    found = json.loads(done.stdout)["dependencies"]
    audited = [package for package in found if "vulns" in package]
    if not audited:
        pytest.skip(f"the index that pip-audit reached knows no vulnerabilities: {found[0]['skip_reason']}")
    assert len(audited) == len(found)
    assert [package for package in audited if package["vulns"]] == []
