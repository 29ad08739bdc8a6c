"""Splits texts in any script into words, for metrics that count words: ROUGE, BLEU, distinct-n."""

from __future__ import annotations

import unicodedata

import regex
from nltk.stem.porter import PorterStemmer

# Scripts that put no spaces between words: each character (with its vowel signs and tones) counts as a word, as in
# sacrebleu's zh tokenizer and multilingual ROUGE (Hasan et al. 2021, https://arxiv.org/abs/2106.13822).
_ALONE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*")
_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+")


def spaced(text: str) -> str:
    """Returns the text with spaces around every character of a script that has no spaces between words."""
    return _ALONE.sub(r" \g<0> ", text)


class RougeTokenizer:
    """Gives the same tokens as rouge-score for ASCII texts (lower case, letters and digits, Porter stems), and also words of all
    other scripts, which rouge-score discards."""

    def __init__(self):
        self.stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        words = _WORD.findall(spaced(unicodedata.normalize("NFKC", text).lower()))
        return [self.stemmer.stem(w) if len(w) > 3 else w for w in words]
