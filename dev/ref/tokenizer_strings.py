"""Strings on which tokenizers disagree, for make_tokenizers.py and check_tokenizers.py."""
import random

PLANES = [(0x20, 0x7F), (0x80, 0x250), (0x250, 0x800), (0x800, 0x3000), (0x3000, 0xD800),
          (0xE000, 0x10000), (0x10000, 0x20000), (0x20000, 0x30000), (0x30000, 0x40000),
          (0xE0000, 0xE0200), (0xF0000, 0xF0100), (0x10FF00, 0x110000)]
SPACES = (" \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u180e\u2000\u200a\u200b"
          "\u2028\u2029\u202f\u205f\u3000\ufeff")
MARKS = ("\u0300\u0301\u0308\u0323\u0327\u0345\u05b0\u064b\u0651\u093c\u0e38\u1ab0"
         "\u20dd\u3099\ufe0f\u200d")
WORDS = ("don't I'll WE'RE it's 'S 'tis they've I'M you'd 'LL \u017f '\u017f x'\u017ft "
         "HelloWorld snake_case 3.14159 1234567890 1,000,000 0x1F \u00bd \u00b2\u2083 \u2167 "
         "\u0967\u0968\u0969 caf\u00e9 na\u00efve stra\u00dfe \u0130stanbul \ufb01ne \u6f22\u5b57 "
         "\u3072\u3089\u304c\u306a \ud55c\uad6d\uc5b4 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 "
         "\u0645\u0631\u062d\u0628\u0627 \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 "
         "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea "
         "#include <stdio.h> int main(void) { return 0; } https://example.org/?q=1&r=2 "
         "e=mc^2 \\frac{1}{2} \\boxed{42} #### 7 $5.00 50% a+b=c ... --- ?! (c) [x] {y} <z>"
         ).split(" ")


def character(r):
    while True:
        c = chr(r.randrange(*r.choice(PLANES)))
        if not 0xD800 <= ord(c) < 0xE000:
            return c


def piece(r, specials):
    kind = r.randrange(12)
    if kind == 0:
        return "".join(character(r) for _ in range(r.randrange(1, 12)))
    if kind == 1:
        return "".join(r.choice(SPACES) for _ in range(r.randrange(1, 8)))
    if kind == 2:
        return r.choice(" \n\t") * r.choice([1, 2, 3, 5, 17, 64, 200])
    if kind == 3:
        base = (r.choice("aeoAEOnc\u00e9\u0905\u1100\uac00\u304b")
                + r.choice(["", "\u1161", "\u11a8"]))
        return base + "".join(r.choice(MARKS) for _ in range(r.randrange(1, 5)))
    if kind == 4:
        return "".join(chr(r.choice([*range(0, 32), 127, *range(128, 160)]))
                       for _ in range(r.randrange(1, 5)))
    if kind == 5 and specials:
        return "".join(r.choice(specials) for _ in range(r.choice([1, 1, 2, 3])))
    if kind == 6 and specials:
        s = r.choice(specials)
        return r.choice([s[:-1], s[1:], " " + s + " ", "\n" + s, s + "x", "x" + s, s.upper()])
    if kind == 7:
        return "".join(r.choice("0123456789") for _ in range(r.randrange(1, 12)))
    if kind == 8:
        return "".join(r.choice("abcdefghijklmnopqrstuvwxyzABCXYZ'")
                       for _ in range(r.choice([3, 8, 40, 40, 300])))
    return r.choice(["", " "]) + r.choice(WORDS)


def strings(count, specials, prose, seed=1):
    """count strings; prose: text to cut pieces from."""
    r = random.Random(seed)
    out = ["", " ", "a", "\n", "\x00", "a\x00b", "x" * 20000, " " * 20000, "\n" * 5000,
           "ab" * 10000, "e\u0301" * 3000, "\u6f22" * 3000, *specials, "".join(specials[:20])]
    while len(out) < count:
        if r.random() < 0.25 and prose:
            at = r.randrange(len(prose))
            out.append(prose[at:at + r.choice([10, 100, 1000])])
        else:
            out.append(r.choice(["", " "]).join(piece(r, specials)
                                                for _ in range(r.randrange(1, 9))))
    return out[:count]
