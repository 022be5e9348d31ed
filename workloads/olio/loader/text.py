"""Texts and names that look like language and cost little: long texts are slices of one seeded corpus."""

from __future__ import annotations

import random

ONSETS = (
    "b",
    "br",
    "c",
    "ch",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
)
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io", "ou")
CODAS = ("", "", "l", "n", "r", "s", "t", "nd", "rk", "st")
CORPUS_CHARS = 1 << 18


def word(rng: random.Random, syllables: int) -> str:
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))


class Texts:
    """Seeded words, names and texts. Made of letters, digits, blanks, ``.,&'<>``: pages have something to escape."""

    def __init__(self, seed: str) -> None:
        rng = random.Random(seed)
        vocabulary = [word(rng, rng.choice((1, 1, 2, 2, 2, 3))) for _ in range(2500)]
        vocabulary += ["rock & roll", "it's", "<3", "7 pm"] * 8
        self.first_names = [word(rng, 2).capitalize()[:12] for _ in range(400)]
        self.last_names = [word(rng, rng.choice((2, 3))).capitalize()[:15] for _ in range(2000)] + ["O'Malley", "D'Arc"] * 10
        self.places = [word(rng, 2).capitalize()[:14] for _ in range(1500)]
        parts: list[str] = []
        length = 0
        while length < CORPUS_CHARS + 4096:
            sentence = " ".join(rng.choices(vocabulary, k=rng.randint(5, 14))).capitalize() + ". "
            parts.append(sentence)
            length += len(sentence)
        self._corpus = "".join(parts)

    def text(self, rng: random.Random, low: int, high: int) -> str:
        """Between ``low`` and ``high`` characters (uniform), with no blank at either end."""
        length = rng.randint(low, high)
        start = int(rng.random() * CORPUS_CHARS)
        text = self._corpus[start : start + length]
        if text[0] == " ":
            text = "a" + text[1:]
        if text[-1] == " ":
            text = text[:-1] + "."
        return text
