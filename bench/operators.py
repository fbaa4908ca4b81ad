"""Which operators the time of a bundle's stages goes to, by ONNX Runtime's own profile.

    python bench/operators.py BUNDLE [OTHER ...] [--threads 2] [--repeat 5] [--json FILE]

A tile, prompts of 80 and of 900 tokens, and tokens behind each: milliseconds of a call in each kind of node, as the
engine runs them after its optimizations, the median of several. Several bundles take turns. A profile costs a little
itself: the sums are above what `edgevlm bench` measures, by most where nodes are small.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.bundle.manifest import open_bundle
from edgevlm.inputs.layout import Layout
from edgevlm.runtimes import open_runtime
from edgevlm.runtimes.ort import runtime as runtimes
from edgevlm.runtimes.ort import session as sessions
from edgevlm.verify.gate import typical_view

PROMPTS = (80, 900)
TOKENS = 16  # of one measurement of decode
SMALL = 0.02  # of a stage's time: kinds below it are shown together

Profile = dict[str, dict[str, list[float]]]  # by stage and kind of node, ms of each call


class Counted:
    """A session that counts its runs, and writes a profile of them."""

    def __init__(self, session: Any) -> None:
        self.session, self.runs = session, 0

    def __getattr__(self, name: str) -> Any:
        self.runs += name.startswith("run")
        return getattr(self.session, name)

    def spent(self) -> dict[str, list[float]]:
        """By kind of node, ms in each run."""
        path = Path(self.session.end_profiling())
        events = json.loads(path.read_text())
        path.unlink()
        starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
        assert len(starts) == self.runs
        kinds: dict[str, list[float]] = defaultdict(lambda: [0.0] * self.runs)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                run = int(np.searchsorted(starts, event["ts"], "right")) - 1
                kinds[event["args"]["op_name"]][run] += event["dur"] / 1000
        return kinds


class Profiled:
    """A bundle on ONNX Runtime, whose sessions are profiled."""

    def __init__(self, folder: Path, threads: int, place: Path) -> None:
        bundle, self._sessions = open_bundle(folder), list[Counted]()
        self._tile = typical_view(bundle.image_spec)
        self._ids = np.random.default_rng(0).integers(0, bundle.manifest.spec.decoder.vocab_size, max(PROMPTS))
        plain_options, plain_session = sessions.session_options, runtimes.open_session

        def options(ort: Any, unsigned: bool) -> Any:
            made = plain_options(ort, unsigned)
            made.enable_profiling = True
            made.profile_file_prefix = str(place / f"{folder.name}-{len(self._sessions)}")
            return made

        def open_session(*given: Any) -> Counted:
            self._sessions.append(Counted(plain_session(*given)))
            return self._sessions[-1]

        # Users need no profile of nodes, so that the runtime has no switch for it.
        sessions.session_options, runtimes.open_session = options, open_session
        try:
            self._engine = open_runtime(bundle, "onnxruntime", threads=threads)
        finally:
            sessions.session_options, runtimes.open_session = plain_options, plain_session
        self._marks: list[tuple[str, int, list[range]]] = []  # a stage's calls, and runs of each session

    def measure(self) -> None:
        """Each stage once."""
        self._mark("encode a tile", 1, lambda: self._engine.encoder.encode([self._tile]))
        for count in PROMPTS:
            self._mark(f"prefill {count}", 1, lambda count=count: self._prefill(count))  # type: ignore[misc]
            self._mark(f"decode at {count}", TOKENS, self._decode)

    def _mark(self, stage: str, calls: int, work: Callable[[], Any]) -> None:
        before = [session.runs for session in self._sessions]
        work()
        after = [session.runs for session in self._sessions]
        self._marks.append((stage, calls, [range(*ends) for ends in zip(before, after, strict=True)]))

    def _prefill(self, count: int) -> None:
        decoder = self._engine.decoder
        decoder.rewind(0)
        decoder.forward(decoder.embed(self._ids[:count]), Layout(count))

    def _decode(self) -> None:
        for token in self._ids[:TOKENS].tolist():
            self._engine.decoder.step(token)

    def profile(self) -> Profile:
        """What was measured, the first of each stage aside. The sessions' profiles end here."""
        spent = [session.spent() for session in self._sessions]
        found: Profile = defaultdict(lambda: defaultdict(list))
        for stage, calls, runs in self._marks:
            kinds: dict[str, float] = defaultdict(float)
            for times, own in zip(spent, runs, strict=True):
                for kind, each in times.items():
                    kinds[kind] += sum(each[own.start : own.stop]) / calls
            for kind, ms in kinds.items():
                found[stage][kind].append(ms)
        return {stage: {kind: ms[1:] for kind, ms in kinds.items() if any(ms)} for stage, kinds in found.items()}


def table(profiles: dict[str, Profile]) -> str:
    """Markdown: a row for each stage and kind of node, a column for each bundle."""
    lines = ["| stage | node | " + " | ".join(profiles) + " |", "|---|---|" + "---|" * len(profiles)]
    for stage in next(iter(profiles.values())):
        columns = [
            {kind: statistics.median(ms) for kind, ms in made[stage].items() if ms} for made in profiles.values()
        ]
        totals = [sum(column.values()) for column in columns]
        kinds = sorted(set().union(*columns), key=lambda kind: -max(column.get(kind, 0.0) for column in columns))
        parts = {kind: [column.get(kind, 0.0) for column in columns] for kind in kinds}
        rows = {kind: ms for kind, ms in parts.items() if any(n > SMALL * t for n, t in zip(ms, totals, strict=True))}
        small = [ms for kind, ms in parts.items() if kind not in rows]
        rows["others"] = [sum(column) for column in zip(*small, strict=True)] or [0.0] * len(columns)
        for kind, cells in {"**all**": totals, **rows}.items():
            lines.append(f"| {stage} | {kind} | " + " | ".join(f"{ms:.2f} ms" if ms else "-" for ms in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        made = {folder.name: Profiled(folder, args.threads, Path(place)) for folder in args.bundles}
        for _ in range(1 + args.repeat):
            for profiled in made.values():
                profiled.measure()
        profiles = {name: profiled.profile() for name, profiled in made.items()}
    if args.json:
        args.json.write_text(json.dumps(profiles, indent=1) + "\n")
    print(table(profiles))


if __name__ == "__main__":
    main()
