"""What a user may name as the model: adapters, bundles, weights without a processor, unknown families."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import numpy as np
import peft
import pytest
import torch

from edgevlm.checkpoint.families import read_image_spec, read_model
from edgevlm.checkpoint.opening import open_headers, open_model, resolve
from edgevlm.checkpoint.upstream import upstream_files
from edgevlm.cli import main
from edgevlm.errors import EdgeVLMError


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(EdgeVLMError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 900
    return message


@pytest.fixture(scope="module")
def trained(builder: ModuleType, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    adapted = peft.get_peft_model(builder.load_model(tiny_checkpoint), peft.LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("trained")
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "adapter"))


def set_base(adapter: Path, base: str | None) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def test_an_adapter_stands_for_its_base_with_it(adapter: Path, tiny_checkpoint: Path) -> None:
    set_base(adapter, str(tiny_checkpoint))
    named = resolve(str(adapter))
    assert (named.model, named.adapter) == (str(tiny_checkpoint), str(adapter))
    assert named.said == f"'{adapter}' is a LoRA adapter: it is merged into its base model '{tiny_checkpoint}'."
    found, wanted = open_model(str(adapter)), open_model(str(tiny_checkpoint), adapter=adapter)
    assert found.adapter_name == str(adapter) and found.content_hash() == wanted.content_hash()
    name = "model.text_model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(found.read(name), wanted.read(name))


@pytest.mark.parametrize("also", ["config.json", "tokenizer.json"])
def test_other_files_beside_an_adapter_do_not_matter(adapter: Path, tiny_checkpoint: Path, also: str) -> None:
    """Trainers save the tokenizer with an adapter, and some the model's config."""
    set_base(adapter, str(tiny_checkpoint))
    shutil.copyfile(tiny_checkpoint / also, adapter / also)
    assert open_model(str(adapter)).adapter is not None


def test_adapters_whose_base_is_not_known(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    set_base(adapter, None)
    message = refused(lambda: open_model(str(adapter)))
    assert message.endswith(f"names no base model: give that as MODEL, and --adapter {adapter}.")
    set_base(adapter, "/home/someone/model")
    message = refused(lambda: open_model(str(adapter)))
    assert "is a LoRA adapter of '/home/someone/model', which is not here: give that model as MODEL" in message
    assert "are both adapters" in refused(lambda: open_model(str(adapter), adapter=adapter))
    assert open_model(str(tiny_checkpoint), adapter=adapter).adapter is not None
    (adapter / "adapter_config.json").write_text("[]")
    assert "adapter_config.json' holds a JSON list" in refused(lambda: open_model(str(adapter)))


def test_a_bundle_is_called_one(tiny_bundle: Path, tmp_path: Path) -> None:
    message = refused(lambda: open_model(str(tiny_bundle)))
    assert message.startswith(f"'{tiny_bundle}' is a bundle already: run it with `edgevlm run {tiny_bundle}`")
    (tmp_path / "manifest.json").write_text('{"manifest_version": 3}')  # somebody else's
    assert "has no config.json" in refused(lambda: open_model(str(tmp_path)))


def test_weights_that_a_trainer_saved_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(tiny_checkpoint, tmp_path / "alone"))
    for path in alone.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    assert "name the model that it began with, whose files then count: --processor BASE" in refused(
        lambda: open_model(str(alone))
    )
    found, whole = open_model(str(alone), processor=str(tiny_checkpoint)), open_model(str(tiny_checkpoint))
    spec, _ = read_model(found)
    assert read_image_spec(found.processor, spec) == read_image_spec(whole.processor, spec)
    taken = {path.name: path.parent for path in upstream_files(found.folder, found.processor)}
    assert taken.pop("config.json") == alone and set(taken.values()) == {tiny_checkpoint}
    assert "there is no folder 'nowhere'" in refused(lambda: open_model(str(alone), processor="nowhere"))


def test_the_family_is_judged_before_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "stranger"}')
    assert "is of the model family 'stranger', which edgevlm does not support" in refused(
        lambda: open_model(str(tmp_path))
    )
    parts = {"vision_config": {"model_type": "siglip_vision_model"}, "text_config": {"model_type": "mamba"}}
    (tmp_path / "config.json").write_text(json.dumps(parts | {"model_type": "other"}))
    message = refused(lambda: open_model(str(tmp_path)))
    assert "its vision tower 'siglip_vision_model' is known; its decoder 'mamba' is not known; known: " in message
    assert " llama," in message
    (tmp_path / "config.json").write_text('{"model_type": "other", "vision_config": {"model_type": ["x"]}}')
    message = refused(lambda: open_model(str(tmp_path)))
    assert "its vision tower ['x'] is not known; known: clip," in message
    assert "its config.json describes no decoder" in message
    (tmp_path / "config.json").write_text('{"model_type": "smolvlm"}')
    assert "has no weights" in refused(lambda: open_model(str(tmp_path)))


class Hub:
    """snapshot_download and headers of a folder of repositories, that notes which files it fetched."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache
        self.fetched: list[str] = []

    def __call__(self, model: str, *, allow_patterns: list[str], ignore_patterns: list[str], **rest: Any) -> str:
        for path in (self.root / model).rglob("*"):
            name = path.relative_to(self.root / model).as_posix()
            place = self.cache / model / name
            wanted = huggingface_hub.utils.filter_repo_objects(
                [name], allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
            )
            if path.is_file() and not place.exists() and list(wanted):
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)
                self.fetched.append(name)
        return str(self.cache / model)

    def headers(self, model: str, *, revision: str | None) -> Any:
        """As HfApi.get_safetensors_metadata, by huggingface_hub's own reading of a header."""
        path = self.root / model / "model.safetensors"
        if not path.exists():
            raise huggingface_hub.errors.NotASafetensorsRepoError(model)
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = {name: entry for name, entry in json.loads(raw[8 : 8 + size]).items() if name != "__metadata__"}
        tensors = {
            name: huggingface_hub.utils.TensorInfo(entry["dtype"], entry["shape"], tuple(entry["data_offsets"]))
            for name, entry in header.items()
        }
        file = huggingface_hub.utils.SafetensorsFileMetadata({}, tensors)
        self.fetched.append("the header of model.safetensors")
        return huggingface_hub.utils.SafetensorsRepoMetadata(
            None, False, dict.fromkeys(tensors, path.name), {path.name: file}
        )


@pytest.fixture
def hub(tmp_path: Path, tiny_checkpoint: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    root = tmp_path / "hub"
    shutil.copytree(tiny_checkpoint, root / "someone" / "tiny")
    (root / "someone" / "tiny" / "onnx").mkdir()
    shutil.copyfile(tiny_checkpoint / "config.json", root / "someone" / "tiny" / "onnx" / "config.json")
    shutil.copytree(tiny_checkpoint, root / "someone" / "other")
    (root / "someone" / "other" / "config.json").write_text('{"model_type": "stranger"}')
    set_base(adapter, "someone/tiny")
    shutil.copytree(adapter, root / "someone" / "lora")
    made = Hub(root, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", made)
    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", made.headers)
    return made


def test_of_the_hub_small_files_come_first(hub: Hub) -> None:
    assert "'stranger'" in refused(lambda: open_model("someone/other"))
    assert "config.json" in hub.fetched and "model.safetensors" not in hub.fetched
    hub.fetched.clear()
    checkpoint = open_model("someone/tiny")
    assert hub.fetched[-1] == "model.safetensors" and "onnx/config.json" not in hub.fetched
    assert checkpoint.name == "someone/tiny" and checkpoint.names()


def test_of_the_hub_headers_come_before_weights(hub: Hub) -> None:
    """What the weights do not fit, and an option that is refused, cost no download."""
    config = hub.root / "someone" / "tiny" / "config.json"
    whole = json.loads(config.read_text())
    config.write_text(json.dumps(whole | {"text_config": whole["text_config"] | {"hidden_act": "relu"}}))
    assert "hidden_act = 'relu', expected 'silu'" in refused(lambda: open_model("someone/tiny"))
    (hub.cache / "someone" / "tiny" / "config.json").write_text(
        json.dumps(whole | {"text_config": whole["text_config"] | {"num_hidden_layers": 9}})
    )
    assert "lacks the tensor 'model.text_model.layers.3." in refused(lambda: open_model("someone/tiny"))
    assert "the header of model.safetensors" in hub.fetched and "model.safetensors" not in hub.fetched
    (hub.root / "someone" / "tiny" / "model.safetensors").unlink()
    assert "'someone/tiny' has no safetensors weights on the Hub" in refused(lambda: open_model("someone/tiny"))


def test_headers_say_what_the_weights_are(hub: Hub, tiny_checkpoint: Path) -> None:
    found, whole = open_headers("someone/tiny"), open_model(str(tiny_checkpoint))
    assert "model.safetensors" not in hub.fetched
    assert found.names() == whole.names() and found.stored_bytes() == whole.stored_bytes()
    assert [found.shape(name) for name in found.names()] == [whole.shape(name) for name in whole.names()]
    assert read_model(found)[0].decoder == read_model(whole)[0].decoder
    assert "Of model.safetensors the header alone was fetched" in refused(lambda: found.read(found.names()[0]))
    assert open_headers("someone/lora").name == "someone/tiny"


def test_a_target_that_cannot_hold_it_costs_no_download(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = hub.root / "someone" / "tiny" / "tokenizer.json"
    tokenizer = json.loads(place.read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    place.write_text(json.dumps(tokenizer))
    with pytest.raises(SystemExit):
        main(["info", "someone/tiny", "--json"])
    said = json.loads(capsys.readouterr().out)["targets"]
    assert said["onnx"]["refusal"] is None and said["onnx"]["sizes"]["int4"] > 0
    with pytest.raises(SystemExit):
        main(["export", "someone/tiny", "--target", "onnx,gguf", "-o", str(tmp_path / "out")])
    assert capsys.readouterr().err == f"Error: {said['gguf']['refusal']}\n" and not (tmp_path / "out").exists()
    assert "(it normalizes text)" in said["gguf"]["refusal"]
    assert "model.safetensors" not in hub.fetched


def test_info_of_an_adapter_is_of_its_base(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["info", "someone/lora", "--json"])
    said = capsys.readouterr()
    assert said.err == "'someone/lora' is a LoRA adapter: it is merged into its base model 'someone/tiny'.\n"
    assert json.loads(said.out)["model"] == "someone/tiny" and "model.safetensors" not in hub.fetched


def test_a_hub_that_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*names: Any, **rest: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", gone)
    message = refused(lambda: open_headers("someone/tiny"))
    assert message.startswith("The headers of the weights of 'someone/tiny' could not be read from the Hub (no route)")


def test_an_adapter_on_the_hub(hub: Hub) -> None:
    found = open_model("someone/lora")
    assert found.name == "someone/tiny" and found.adapter_name == "someone/lora" and found.adapter is not None
    hub.fetched.clear()
    processed = open_model("someone/tiny", processor="someone/other")
    assert processed.processor == hub.cache / "someone" / "other" and "model.safetensors" not in hub.fetched


def test_the_command_says_what_it_merges(
    adapter: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_base(adapter, str(tiny_checkpoint))
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        "edgevlm.commands.export.export_bundle", lambda m, o, **rest: given.update(rest, m=m) or Path(o)
    )
    with pytest.raises(SystemExit) as caught:
        main(["export", str(adapter), "-o", "bundle", "--processor", "someone/base"])
    said = capsys.readouterr()
    assert not caught.value.code and said.out == "bundle\n"
    assert f"'{adapter}' is a LoRA adapter: it is merged into its base model '{tiny_checkpoint}'.\n" in said.err
    assert (given["m"], given["processor"]) == (str(adapter), "someone/base")
