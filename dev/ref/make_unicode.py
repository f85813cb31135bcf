#!/usr/bin/env python3
"""Writes llmc/io/unicode_recent.h: the characters that Unicode gained after version 14, each with
an older one of the same general category, script (Han or not) and length in UTF-8.

PCRE2 10.42 knows Unicode 14; the tokenizers library knows a newer one. The splitter shows PCRE2 the
older character in place of the newer, so that both split alike. The newer categories are asked of
the library itself; the older are those of Python's unicodedata, which must be version 14.

Then the marks that the library's normalizer, whose tables are of Unicode 9, leaves in their place
where newer tables would move or join them.

    pip install tokenizers;  python3.11 dev/ref/make_unicode.py > llmc/io/unicode_recent.h
"""
import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cf".split()
# (category, is Han, bytes in UTF-8): a character that has long been of that kind
STAND_INS = {
    ("Lu", False, 3): 0xA722, ("Ll", False, 3): 0xA723, ("Lm", False, 3): 0xA717,
    ("Lo", False, 3): 0xA000, ("Mn", False, 3): 0x1AB0, ("Mc", False, 3): 0x0BBE,
    ("So", False, 3): 0x2600, ("Sm", False, 3): 0x2200, ("Sc", False, 3): 0x20A0,
    ("Sk", False, 3): 0xA700, ("Po", False, 3): 0x2020, ("Ps", False, 3): 0x2045,
    ("Pe", False, 3): 0x2046, ("Pd", False, 3): 0x2010, ("Lo", True, 3): 0x4E00,
    ("Lu", False, 4): 0x10400, ("Ll", False, 4): 0x10428, ("Lm", False, 4): 0x16B40,
    ("Lo", False, 4): 0x10000, ("Mn", False, 4): 0x10A01, ("Mc", False, 4): 0x11000,
    ("Nd", False, 4): 0x104A0, ("Nl", False, 4): 0x10140, ("No", False, 4): 0x10107,
    ("Po", False, 4): 0x10100, ("Pd", False, 4): 0x10EAD, ("So", False, 4): 0x1F300,
    ("Sm", False, 4): 0x1D6C1, ("Sc", False, 4): 0x1E2FF, ("Sk", False, 4): 0x1F3FB,
    ("Cf", False, 4): 0x110BD, ("Lo", True, 4): 0x20000, ("Lm", True, 4): 0x16FE3,
    ("Nl", True, 4): 0x3007,
}


def characters_of(pattern, text):
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return {c for piece, _ in split.pre_tokenize_str(text) for c in piece}


def moved(mark):
    """Does the library's NFC know the mark's combining class?"""
    nfc = normalizers.NFC().normalize_str
    for p in "\u0334\u0345\u05b0\u0301":
        if nfc("a" + mark + p) != "a" + mark + p:
            return True
        if nfc("a" + p + mark) != unicodedata.normalize("NFC", "a" + p) + mark:
            return True
    return False


def unordered(marks):
    """Code points: marks of a class that the library does not know, or may not know, and those that
    it does not join."""
    nfc = normalizers.NFC().normalize_str
    out = {ord(m) for m in marks if not moved(m) and
           (unicodedata.combining(m) or unicodedata.category(m) == "Cn")}
    for c in map(chr, range(0xC0, 0x30000)):
        parts = unicodedata.normalize("NFD", c)
        if len(parts) > 1 and unicodedata.normalize("NFC", parts) == c != nfc(parts):
            out.add(ord(parts[-1]))
    return sorted(out)


def print_table(header, rows, width):
    print(header)
    for i in range(0, len(rows), width):
        print("    " + " ".join("{%s}," % ", ".join("0x%X" % x for x in r)
                                for r in rows[i:i + width]))
    print("};")


def main():
    assert unicodedata.unidata_version.startswith("14."), unicodedata.unidata_version
    text = "".join(chr(c) for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000)
    newer = {c: k for k in CATEGORIES for c in characters_of(r"\p{%s}" % k, text)}
    han = characters_of(r"\p{Han}", text)
    rows = []
    for c in text:
        if ord(c) == 0x180E:   # white space to PCRE2 alone, which keeps Unicode 6.2's word there
            rows.append([0x180E, 0x180E, 0x2060])
            continue
        category = newer.get(c)
        if category is None or category == unicodedata.category(c):
            continue
        stand_in = STAND_INS[category, c in han and category == "Lo", len(c.encode())]
        if rows and rows[-1][1] == ord(c) - 1 and rows[-1][2] == stand_in:
            rows[-1][1] = ord(c)
        else:
            rows.append([ord(c), ord(c), stand_in])
    print("/* Characters that Unicode gained after version 14: first, last, and an older character "
          "of the same\n   kind and length in UTF-8; and U+180E, white space to PCRE2 alone "
          "(dev/ref/make_unicode.py writes\n   this file). */")
    print_table("static const struct { unsigned first, last, like; } recent[] = {", rows, 3)
    ranges = []
    for point in unordered(characters_of(r"\p{M}", text)):
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    print("\n/* Marks that the library's NFC, of Unicode 9, leaves where they are. */")
    print_table("static const struct { unsigned first, last; } unordered[] = {", ranges, 4)


main()
