"""IFEval: 25 kinds of instructions that a program can verify (Zhou et al. 2023, https://arxiv.org/abs/2311.07911).

A row of its input_data.jsonl:

    {"key": 1001, "prompt": "… Do not use any commas …", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}

The checks are Google's, in lm-eval's copy, with one exception: if the character to count is not a letter (# and ! in two
prompts), theirs counts a letter chosen at random each time, and ours counts the requested character. Two checks split text into
sentences or words with NLTK's English model; if it can't be downloaded, NLTK's algorithm runs with a short list of abbreviations.
"""

from __future__ import annotations

import functools
import importlib.util
import io
from contextlib import redirect_stderr, redirect_stdout
from typing import ClassVar

from lib.errors import nearest
from lib.evals.task import Example, Statistic
from lib.evals.tasks.task_rows import read

ABBREVIATIONS = {"dr", "mr", "mrs", "ms", "prof", "st", "e.g", "i.e", "vs", "etc", "u.s", "a.m", "p.m", "no", "inc"}


class IfEval:
    name = "ifeval"
    version = "2"
    metrics: ClassVar = {
        "prompt_strict": Statistic(),
        "instruction_strict": Statistic("ratio"),
        "prompt_loose": Statistic(),
        "instruction_loose": Statistic("ratio"),
    }

    def __init__(self, address: str | None = None):
        self.address = address

    def examples(self, limit: int | None = None) -> list[Example]:
        """Returns the examples. Raises ValueError for an unknown instruction or one without its kwargs."""
        if not importlib.util.find_spec("lm_eval"):
            raise ValueError('tasks: ifeval needs lm-eval\'s checks: pip install "shoestring[eval]".')
        columns = ("key", "prompt", "instruction_id_list", "kwargs")
        out = []
        for place, row in read(self.name, self.address, ("google/IFEval", None, "train"), columns, limit):
            if len(row["kwargs"]) != len(row["instruction_id_list"]):
                raise ValueError(
                    f"task_data.ifeval: {place}: {len(row['instruction_id_list'])} instructions, but "
                    f"{len(row['kwargs'])} kwargs."
                )
            for instruction in row["instruction_id_list"]:
                if instruction not in (known := _checks().instructions_registry.INSTRUCTION_DICT):
                    near = nearest(instruction, known)
                    raise ValueError(f"task_data.ifeval: {place}: there is no instruction {instruction!r}.{near}")
            reference = {k: row[k] for k in columns}
            out.append(Example(f"ifeval-{row['key']}", [{"role": "user", "content": row["prompt"]}], reference))
        return out

    def score(self, example: Example, completion: str) -> dict[str, float | tuple[float, float]]:
        """Returns the scores of one answer.

        prompt_strict, prompt_loose: 1 if all of the prompt's instructions were followed, else 0. Loose ignores an extra first
        or last line and asterisks in the answer.
        instruction_strict, instruction_loose: (number followed, number given), so that the mean is over instructions.
        """
        result = _checks().process_results(example.reference, [completion])
        scores: dict[str, float | tuple[float, float]] = {}
        for how in ("strict", "loose"):
            followed = result[f"inst_level_{how}_acc"]
            scores[f"prompt_{how}"] = float(result[f"prompt_level_{how}_acc"])
            scores[f"instruction_{how}"] = (float(sum(followed)), float(len(followed)))
        return scores


@functools.cache
def _checks():
    """Returns lm_eval.tasks.ifeval.utils, set up with NLTK's model or its substitute."""
    import langdetect
    import nltk
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    langdetect.DetectorFactory.seed = 0  # otherwise the detected language of one answer can vary between calls
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # nltk prints its attempts
        try:
            nltk.data.find("tokenizers/punkt_tab")
            there = True
        except LookupError:
            there = nltk.download("punkt_tab", quiet=True, print_error_to=io.StringIO())
        if not there:
            nltk.download = lambda *args, **kwargs: False  # lm_eval would try again
        from lm_eval.tasks.ifeval import instructions, instructions_util, utils
    instructions.LetterFrequencyChecker = _frequency_of_any(instructions.LetterFrequencyChecker)
    utils.instructions_registry.INSTRUCTION_DICT["keywords:letter_frequency"] = instructions.LetterFrequencyChecker
    if not there:
        parameters, words = PunktParameters(), NLTKWordTokenizer()
        parameters.abbrev_types = ABBREVIATIONS
        sentences = PunktSentenceTokenizer(parameters)
        instructions_util._get_sentence_tokenizer = lambda: sentences
        nltk.word_tokenize = lambda text: [w for s in sentences.tokenize(text) for w in words.tokenize(s)]
    return utils


def _frequency_of_any(checker: type) -> type:
    """Returns a subclass of lm-eval's LetterFrequencyChecker that also counts characters other than letters."""

    class CharacterFrequencyChecker(checker):
        def build_description(self, *, letter=None, let_frequency=None, let_relation=None):
            text = super().build_description(letter=letter, let_frequency=let_frequency, let_relation=let_relation)
            if letter and len(letter.strip()) == 1:
                self._letter = letter.strip().lower()
            return text

    return CharacterFrequencyChecker
