"""llama.cpp's own way to GGUF: `convert_gguf.py CHECKOUT CHECKPOINT OUT`. Its converter for decoder and mmproj in fp16,
and Q4_0 by `llama_model_quantize` of the installed llama-cpp-python."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

Q4_0 = 2  # llama_ftype


def main(checkout: Path, model: Path, out: Path) -> None:
    import llama_cpp

    out.mkdir(parents=True)
    model = _with_text_class(model, out / "checkpoint")
    convert = [sys.executable, str(checkout / "convert_hf_to_gguf.py"), str(model), "--outtype", "f16", "--outfile"]
    subprocess.run([*convert, str(out / "f16.gguf")], check=True)
    subprocess.run([*convert, str(out / "mmproj.gguf"), "--mmproj"], check=True)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = Q4_0, os.cpu_count()
    if llama_cpp.llama_model_quantize(bytes(out / "f16.gguf"), bytes(out / "q4_0.gguf"), ctypes.byref(params)):
        sys.exit("llama_model_quantize failed")


def _with_text_class(model: Path, copy: Path) -> Path:
    """The checkpoint with its decoder's class in config.json, as published ones have it: the converter goes by it."""
    config = json.loads((model / "config.json").read_text())
    if config.get("text_config", {}).get("model_type") != "llama" or "architectures" in config["text_config"]:
        return model
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).symlink_to(file.resolve())
    (copy / "config.json").unlink()
    config["text_config"]["architectures"] = ["VLlama3ForCausalLM"]
    (copy / "config.json").write_text(json.dumps(config))
    return copy


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
