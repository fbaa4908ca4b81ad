"""Write unicode.bin, what the Kotlin SDK knows of characters, out of the `tokenizers` library itself.

Platforms differ: Java 17's letters differ from the library's in 9,787 code points, and Android's change with it. So
nothing is taken from a Unicode database here: each table is what the library answers when it is asked about every
code point. `--check` says whether the file is still what the installed library says.

The file is a row of numbers, seven bits to a byte, lowest first, the highest bit set where more follow:

    ranges   count, then (length, value) from code point 0 on; value: the category's index in CATEGORIES, and FLAGS
    NFD      count, then (code point less the one before, length, code points): full canonical decompositions
    classes  count, then (code point less the one before, class): combining classes, their order alone
    NFC      count, then (first, second, composed)

Syllables of Hangul are left out: they follow by arithmetic.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

OUT = Path(__file__).parents[1] / "edgevlm-core/src/main/resources/ai/edgevlm/text/unicode.bin"
CATEGORIES = (
    "Cn", "Cc", "Cf", "Co", "Cs", "Ll", "Lm", "Lo", "Lt", "Lu", "Mc", "Me", "Mn", "Nd", "Nl", "No",
    "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Sc", "Sk", "Sm", "So", "Zl", "Zp", "Zs",
)  # fmt: skip
# White space of expressions, numbers of Digits, white space and words beside added tokens, white space of str.strip.
FLAGS = {"space": 32, "numeric": 64, "blank": 128, "word": 256, "strip": 512}
SURROGATES = range(0xD800, 0xE000)
HANGUL = range(0xAC00, 0xD7A4)
LAST = 0x110000
ALL = [code for code in range(LAST) if code not in SURROGATES]


def matched(expression: str) -> Iterator[int]:
    """The code points that a class of the library's expressions holds."""
    split = pre_tokenizers.Split(Regex(expression), behavior="removed")
    at = 0
    for _, (start, end) in split.pre_tokenize_str("".join(map(chr, ALL))):
        yield from ALL[at:start]
        at = end
    yield from ALL[at:]


def numeric() -> Iterator[int]:
    """The code points that the pre-tokenizer Digits takes."""
    text = "".join("a" + chr(code) for code in ALL)
    for _, (start, end) in pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str(text):
        if start % 2 and end == start + 1:
            yield ALL[start // 2]


def beside(flag: str) -> Iterator[int]:
    """The code points before which an added token with this flag is found (single_word) or reaches further (rstrip)."""
    mark = "\ue000"
    rules = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    rules.add_tokens([AddedToken(mark, normalized=False, **{flag: True})])
    codes = [code for code in ALL if code != ord(mark)]
    text = "".join(f" {mark}{chr(code)}" for code in codes)
    found = rules.encode(text)
    for token, (start, end) in zip(found.ids, found.offsets, strict=True):
        if token:
            assert start % 3 == 1
            yield codes[start // 3] if end == start + 1 else -codes[start // 3]


def ranges() -> list[tuple[int, int]]:
    """(length, value) of each run of code points."""
    values = [0] * LAST
    for code in SURROGATES:
        values[code] = CATEGORIES.index("Cs")
    for number, name in enumerate(CATEGORIES):
        for code in matched(rf"\p{{{name}}}") if name != "Cs" else ():
            assert values[code] == 0
            values[code] = number
    apart = set(beside("single_word"))  # where it is not found, a word goes on
    blank = {-code for code in beside("rstrip") if code < 0}
    sets = {
        "space": set(matched(r"\s")),
        "numeric": set(numeric()),
        "blank": blank,
        "word": set(ALL) - apart - {0xE000},
        "strip": {code for code in ALL if chr(code).isspace()},
    }
    for name, codes in sets.items():
        for code in codes:
            values[code] |= FLAGS[name]
    return [(len(list(run)), value) for value, run in groupby(values)]


def decompositions() -> dict[int, str]:
    nfd = normalizers.NFD()
    found = {code: nfd.normalize_str(chr(code)) for code in ALL if code not in HANGUL}
    return {code: text for code, text in found.items() if text != chr(code)}


def classes(whole: Sequence[int]) -> dict[int, int]:
    """The order in which marks stand behind a letter, of those `whole` code points that move at all."""
    order = normalizers.NFD().normalize_str
    above, overlay = "\u0301", "\u0334"
    moving = [
        code for code in whole
        if order(above + chr(code)) != above + chr(code) or order(chr(code) + overlay) != chr(code) + overlay
    ]  # fmt: skip
    ranked: list[list[int]] = []
    for code in moving:
        low, high = 0, len(ranked)
        while low < high:
            middle = (low + high) // 2
            first, own = chr(ranked[middle][0]), chr(code)
            if order(first + own) != first + own:
                high = middle
            elif order(own + first) != own + first:
                low = middle + 1
            else:
                ranked[middle].append(code)
                break
        else:
            ranked.insert(low, [code])
    return dict(sorted((code, number) for number, codes in enumerate(ranked, 1) for code in codes))


def compositions(decomposed: dict[int, str]) -> list[tuple[int, int, int]]:
    nfc = normalizers.NFC().normalize_str
    found = []
    for code, text in decomposed.items():
        if len(text) > 1 and nfc(text) == chr(code):
            first = nfc(text[:-1])
            assert len(first) == 1 and nfc(first + text[-1]) == chr(code)
            found.append((ord(first), ord(text[-1]), code))
    return found


def numbers() -> Iterator[int]:
    runs = ranges()
    yield len(runs)
    for length, value in runs:
        yield from (length, value)
    decomposed = decompositions()
    yield len(decomposed)
    before = 0
    for code, text in decomposed.items():
        yield from (code - before, len(text), *map(ord, text))
        before = code
    ranked = classes([code for code in ALL if code not in HANGUL and code not in decomposed])
    yield len(ranked)
    before = 0
    for code, rank in ranked.items():
        yield from (code - before, rank)
        before = code
    composed = compositions(decomposed)
    yield len(composed)
    for triple in composed:
        yield from triple


def packed() -> bytes:
    out = bytearray()
    for number in numbers():
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file differs")
    made = packed()
    if parser.parse_args().check:
        same = OUT.is_file() and OUT.read_bytes() == made
        print("unicode.bin is up to date" if same else "unicode.bin differs: run android_demo/tools/make_unicode.py")
        return 0 if same else 1
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_bytes(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
