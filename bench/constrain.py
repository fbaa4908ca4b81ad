"""What a form of the answer costs for each token: with and without, in turns, over the same number of tokens.

    python bench/constrain.py BUNDLE [--runtime NAME] [--threads N] [--rounds 5] [--tokens 100]

Text alone, so that the decoder is all that is timed, without lookup. `share` is the time inside of the constraint (the
mask, and the token it takes) of the time of decoding with it; `ratio` is the time for a token with the form over that
without, of neighbouring answers, the median over rounds: it has the machine's noise in it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUESTION = "Describe a busy street market as a list of objects with names, colours and counts."
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "colour": {"enum": ["red", "green", "blue", "yellow", "black", "white"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 1000},
    },
    "required": ["name", "colour", "count"],
    "additionalProperties": False,
}
FORMS: dict[str, dict[str, Any]] = {
    "schema: objects with strings, enums, numbers": {"schema": {"type": "array", "items": ITEM, "minItems": 50}},
    "schema: any JSON": {"schema": {"type": "array", "minItems": 500}},
    "regex: words": {"regex": "([A-Za-z]+[ ,.])+END"},
    "regex: exactly 2,000 letters": {"regex": "[A-Za-z ,.]{2000}"},
    "choices: 1,000 long ones": {
        "choices": tuple(f"number {n} of a thousand {'and on ' * 100}" + "end" for n in range(1000))
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtime")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100)
    args = parser.parse_args()
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.generate.constrain import Constraint
    from edgevlm.generate.loop import GenerateOptions, Pipeline
    from edgevlm.runtimes import open_runtime

    spent = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any) -> Any:
            nonlocal spent
            start = time.perf_counter()
            try:
                return call(*given)
            finally:
                spent += time.perf_counter() - start

        return wrapped

    Constraint.mask, Constraint.take = timed(Constraint.mask), timed(Constraint.take)  # type: ignore[method-assign]
    pipeline = Pipeline(
        open_bundle(args.bundle), open_runtime(open_bundle(args.bundle), args.runtime, threads=args.threads)
    )
    plain = GenerateOptions(max_tokens=args.tokens, ignore_stop=True, lookup=False)
    pipeline.answer([], QUESTION, plain)
    print("| form | begins in | a token | of it the form | share | ratio |\n|---|---|---|---|---|---|")
    for name, form in FORMS.items():
        options = GenerateOptions(max_tokens=args.tokens, **form)
        start = time.perf_counter()
        pipeline.ask([], QUESTION, options)
        begins = time.perf_counter() - start
        tokens, times, shares, ratios = [], [], [], []
        for number in range(args.rounds):
            found = {}
            for constrained in (True, False) if number % 2 else (False, True):
                spent = 0.0
                answer = pipeline.answer([], QUESTION, options if constrained else plain)
                steps = len(answer.ids) - 1
                found[constrained] = answer.timings.decode / steps
                if constrained:
                    tokens.append(answer.timings.decode / steps)
                    times.append(spent / (steps + 1))
                    shares.append(times[-1] / tokens[-1])
            ratios.append(found[True] / found[False])
        token, own, share, ratio = map(statistics.median, (tokens, times, shares, ratios))
        cells = [
            f"{1e3 * begins:.0f} ms",
            f"{1e3 * token:.2f} ms",
            f"{1e3 * own:.3f} ms",
            f"{share:.1%}",
            f"{ratio:.3f}",
        ]
        print("|", " | ".join([name, *cells]), "|", flush=True)
    print(f"\n{steps + 1} tokens each, on {pipeline.runtime.name}, {pipeline.runtime.device}.")


if __name__ == "__main__":
    main()
