"""The pages about many pictures and many machines: their blocks are what they say, as far as can be tried here."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from labelled import ROOT

SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_kubernetes_gets_what_its_types_ask_for() -> None:
    (block,) = blocks(SCALING, "yaml")
    service = yaml.safe_load(block)
    (container,) = service["spec"]["predictor"]["containers"]
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    port = container["ports"][0]["containerPort"]
    assert all(container[f"{name}Probe"]["httpGet"] == {"path": "/health", "port": port}
               for name in ("startup", "readiness", "liveness"))  # fmt: skip
    assert str(port) in container["command"] and all(isinstance(word, str) for word in container["command"])
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in service["spec"]["predictor"]["volumes"]}


def test_the_names_in_the_block_for_ray_serve_exist() -> None:
    (block,) = blocks(SCALING, "python")
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("edgevlm"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), node.module


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_takes_its_block(tmp_path: Path) -> None:
    (block,) = blocks(SCALING, "nginx")
    plain = re.sub(r"listen 443 ssl;|ssl_certificate\S* \S+;", "", block)
    (tmp_path / "nginx.conf").write_text(f"events {{}}\nhttp {{\n{plain}}}\n")
    done = subprocess.run(
        ["nginx", "-t", "-c", tmp_path / "nginx.conf", "-p", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_braces_and_semicolons_of_the_proxies_are_whole() -> None:
    for language, end in (("nginx", (";", "{", "}")), ("caddyfile", None)):
        (block,) = blocks(SCALING, language)
        assert block.count("{") == block.count("}")
        assert end is None or all(line.rstrip().endswith(end) for line in block.splitlines())
        assert "least_conn" in block and ("proxy_buffering off" in block or "flush_interval -1" in block)
