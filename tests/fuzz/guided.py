"""Coverage-guided fuzzing of one reader, run by hand: what seeded mutations do not reach, this looks for.

    pip install atheris                                      (Linux; no dependency of edgevlm)
    python tests/fuzz/guided.py --seeds SEEDS                makes the seeds in the folder SEEDS, lists the readers
    python tests/fuzz/guided.py SEEDS 'manifest (bundle/manifest.json)' CORPUS -max_total_time=600 -rss_limit_mb=3000

CORPUS is a folder of inputs, which grows; libFuzzer's own options follow. Python's coverage of the package `edgevlm`
guides it, so readers whose work is in Python gain most: JSON files, safetensors headers, GGUF, CoreML programs. A crash
leaves a file `crash-*`, which becomes a test beside its reader's others once it is made small
(-minimize_crash=1). Where the input is no file of the kind at all, the reader refuses it at once, so a corpus begins
with the seed and a few hundred of the seeded mutations.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from readers import READERS, Reader, damage

MUTATIONS = 300  # of the seed, that a new corpus begins with


def main() -> None:
    if sys.argv[1] == "--seeds":
        from seeds import make_seeds

        default = Path(__file__).parents[2] / "edgevlm" / "assets" / "default"
        make_seeds(Path(sys.argv[2]), default, everything=False)
        print("\n".join(reader.title for reader in READERS if reader.quick))
        return
    seeds, title, corpus = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    reader = next(reader for reader in READERS if reader.title == title)
    fill(corpus, (seeds / reader.seed / reader.file).read_bytes(), reader)
    fuzz(seeds, reader, [sys.argv[0], str(corpus), *sys.argv[4:]])


def fill(corpus: Path, seed: bytes, reader: Reader) -> None:
    corpus.mkdir(exist_ok=True)
    if not any(corpus.iterdir()):
        (corpus / "seed").write_bytes(seed)
        for number in range(MUTATIONS):
            (corpus / f"{number:03}").write_bytes(damage(reader, seed, 0, number))


def fuzz(seeds: Path, reader: Reader, arguments: list[str]) -> None:
    import atheris  # type: ignore[import-not-found]

    scratch = Path(tempfile.mkdtemp())
    for name in {reader.seed, "checkpoint", "bundle"}:
        for copy in (name, f"{name}.original"):
            shutil.copytree(seeds / name, scratch / copy)
    folder = scratch / reader.seed
    with atheris.instrument_imports(include=["edgevlm"]):
        from edgevlm.errors import EdgeVLMError

        usual = reader.call(folder)  # imports what the reader needs

    def once(data: bytes) -> None:
        (folder / reader.file).write_bytes(data)
        with contextlib.suppress(EdgeVLMError):
            reader.judge(folder, reader.call(folder), usual)
        if reader.file != "manifest.json" and (folder / "manifest.json").exists():  # sealed anew by the reader
            shutil.copyfile(scratch / f"{reader.seed}.original" / "manifest.json", folder / "manifest.json")

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    atheris.Setup(arguments, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
