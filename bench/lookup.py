"""Answers with and without lookup, in turns: questions whose answers repeat text of the prompt, and some that do not.

    python bench/lookup.py BUNDLE [--runtime NAME] [--lookup auto|always] [--tokens 100] [--threads N] [--rounds 2]

Text alone, so that the decoder is all that is timed. A question's ratio is the speed of decoding with lookup over that
without, the median over rounds; the engine's trial happens before, as in any answer but a program's first ones.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

PARAGRAPH = (
    "The harbour of Marseille was built in 600 BC by Greek sailors from Phocaea, and it is still the largest port of "
    "France. Ships carry grain, oil and passengers to Africa. In winter a cold wind, the mistral, blows from the north."
)
ORDER = (
    '{"customer": "Anna Meyer", "city": "Bremen", "orders": [{"id": 17, "article": "lamp", "total": 42.5}, '
    '{"id": 18, "article": "chair", "total": 99.0}, {"id": 19, "article": "table", "total": 240.0}]}'
)
BILL = "BAKERY MILLER\nHigh Street 12\n\n2 x bread 3.80\n1 x butter 2.10\n6 x roll 2.40\n\nTotal 8.30\nThank you!"
QUESTIONS = {
    "a paragraph, word for word": f"Repeat this paragraph word for word: {PARAGRAPH}",
    "JSON": f"Copy this JSON exactly: {ORDER}",
    "a receipt": f"Here is the text of a receipt:\n{BILL}\nWrite the same text again, line by line.",
    "a correction": f"Write this text again with every mistake corrected: {PARAGRAPH.replace('still', 'stil')}",
    "a story, nothing to repeat": "Write a short story about a cat and a dog who live by the sea.",
    "a fact, nothing to repeat": "Why is the sky blue? Explain it in one paragraph.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtime")
    parser.add_argument("--lookup", choices=["auto", "always"], default="auto")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    from edgevlm.bundle.manifest import open_bundle
    from edgevlm.generate.loop import GenerateOptions, Pipeline
    from edgevlm.runtimes import open_runtime

    bundle = open_bundle(args.bundle)
    pipeline = Pipeline(bundle, open_runtime(bundle, args.runtime, threads=args.threads), reuse=False)
    with_lookup = GenerateOptions(max_tokens=args.tokens, lookup=True if args.lookup == "always" else None)
    without = GenerateOptions(max_tokens=args.tokens, lookup=False)
    pipeline.answer([], QUESTIONS["JSON"], with_lookup)  # warms up, and is the engine's trial
    print("| question | tokens | looked up | speed of decoding | same answer |\n|---|---|---|---|---|")
    every = []
    for name, question in QUESTIONS.items():
        ratios, same = [], True
        for number in range(args.rounds):
            order = (with_lookup, without) if number % 2 else (without, with_lookup)
            answers = {options.lookup is False: pipeline.answer([], question, options) for options in order}
            plain, looked = answers[True], answers[False]
            ratios.append(looked.timings.tokens_per_second / plain.timings.tokens_per_second)
            same &= looked.ids == plain.ids
        every.append(statistics.median(ratios))
        found = looked.timings
        said = "yes" if same else "no"
        print(f"| {name} | {found.answer_tokens} | {found.looked_up} | {every[-1]:.2f}x | {said} |", flush=True)
    print(f"\nMedian of the questions: {statistics.median(every):.2f}x, on {pipeline.runtime.name}.")


if __name__ == "__main__":
    main()
