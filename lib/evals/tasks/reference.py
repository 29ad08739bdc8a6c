"""Reference metrics: similarity of an answer to a human-written one, on the user's own conversations.

A row is any chat that lib/data reads; its last assistant turn that isn't excluded from training is the reference, and
everything before it the prompt:

    {"messages": [{"role": "user", "content": "Say it shorter: …"}, {"role": "assistant", "content": "…"}]}

ROUGE (Lin 2004) comes from rouge-score, over words of any script (lib/evals/tasks/words.py); BLEU (Papineni et al. 2002) and chrF
(Popović 2015) come from sacrebleu, per sentence: unlike corpus scores, their means allow intervals and paired tests.
"""

from __future__ import annotations

import functools
from typing import ClassVar

from lib.config.job import Data
from lib.data.marks import learnt
from lib.evals.task import Example, Statistic


class Reference:
    name = "reference"
    metrics: ClassVar = {name: Statistic("mean") for name in ("rougeL", "rouge1", "rouge2", "bleu", "chrf")} | {
        "exact": Statistic()
    }

    def __init__(self, address: str | None = None):
        self.address = address

    @functools.cached_property
    def version(self) -> str:
        """The libraries' versions and sacrebleu's signatures; scores of different versions are not compared."""
        from importlib.metadata import version

        _, bleu, chrf = _scorers()
        bleu.sentence_score("a", ["a"])  # a signature includes the number of references, known only after a first call
        chrf.sentence_score("a", ["a"])
        signatures = (s.get_signature().format(short=True) for s in (bleu, chrf))
        return f"rouge-score {version('rouge-score')}, words of any script, BLEU {next(signatures)}, chrF {next(signatures)}"

    def examples(self, limit: int | None = None) -> list[Example]:
        """Returns the examples. Raises ValueError if there is no file or a row has no assistant turn after a prompt."""
        from lib.data import check

        if not self.address:
            raise ValueError("task_data.reference: give a file of conversations whose last answers are the references.")
        rows: list[dict] = []
        data = Data(source=self.address, heldout_fraction=1.0, heldout_limit=limit)
        try:
            check(data, ("chat",), training=False, keep=lambda kind, side, row, place: rows.append(row))
        except ValueError as e:
            raise ValueError(str(e).replace("data.source", "task_data.reference")) from None
        out = []
        for i, row in enumerate(rows):
            at = max(learnt(row), default=0)
            if not at:
                raise ValueError(f"task_data.reference: row {i + 1} has no answer after a prompt.")
            out.append(Example(f"reference-{i}", row["messages"][:at], row["messages"][at]["content"]))
        return out

    def reference(self, answer: str) -> str:
        return answer

    def score(self, example: Example, completion: str) -> dict[str, float]:
        """Returns rougeL, rouge1, rouge2 (F1, 0 to 1), bleu and chrf (0 to 100), and exact (0 or 1, ignoring outer whitespace)."""
        from lib.evals.tasks.words import spaced

        rouge, bleu, chrf = _scorers()
        found = rouge.score(example.reference, completion)
        return {
            **{name: found[name].fmeasure for name in ("rougeL", "rouge1", "rouge2")},
            "bleu": bleu.sentence_score(spaced(completion), [spaced(example.reference)]).score,
            "chrf": chrf.sentence_score(completion, [example.reference]).score,
            "exact": float(completion.strip() == example.reference.strip()),
        }


@functools.cache
def _scorers():
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    from lib.evals.tasks.words import RougeTokenizer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=RougeTokenizer()), BLEU(effective_order=True), CHRF()
