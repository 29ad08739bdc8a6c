"""A language model as the judge (Zheng et al. 2023, https://arxiv.org/abs/2306.05685): pairwise comparisons or grades.

Each pair is judged twice, with the answers swapped, and an answer's score is the mean of both verdicts: a judge that always
prefers the first answer gives 1/2 to every answer. Statistics on the judge's reliability accompany its verdicts: agreement of
the two orders, how often the first answer won, ties, how often the longer answer won, and the share of readable verdicts.

Prompts use MT-Bench's format: JSONL with `type` (pairwise, single, or our own refusal), `system_prompt` and `prompt_template`.
The template's fields determine when it is used: {question_2} for two turns, {ref_answer_1} if there is a reference.
"""

from __future__ import annotations

import json
import re
import string
from dataclasses import dataclass, field
from pathlib import Path

from lib.evals.judging.openai_client import Endpoint, Judge
from lib.evals.task import Scores

PROMPTS = Path(__file__).with_name("judge_prompts.jsonl")
READABLE = 0.5
"""Minimum share of verdicts that must be readable; below it, Unreadable is raised."""


class Unreadable(RuntimeError):
    """Most of the judge's replies contain no verdict."""


@dataclass(frozen=True)
class Prompt:
    system: str
    template: str

    @property
    def fields(self) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(self.template) if name}


@dataclass
class Pair:
    """Both orders of one comparison: 1 if the first run's answer won, 0 if the second's did, 1/2 for a tie, None if unreadable."""

    verdicts: tuple[float | None, float | None]
    lengths: tuple[int, int]
    """Lengths of the two answers in characters."""

    @property
    def share(self) -> float | None:
        read = [v for v in self.verdicts if v is not None]
        return sum(read) / len(read) if read else None


@dataclass
class Panel:
    """A judge in use: its settings, prompts and endpoint, and the pairs compared so far."""

    judge: Judge
    endpoint: Endpoint
    prompts: dict[tuple[str, bool, bool], Prompt]
    pairs: dict[str, Pair] = field(default_factory=dict)
    """Keyed by the compared conversations, so that a pair of two tasks counts once."""

    @property
    def name(self) -> str:
        return self.judge.name

    def compare(self, conversations: list[tuple[list[dict], list[dict]]], references: list | None = None) -> list[Pair]:
        """Compares each (first run's, second run's) conversation; both have the same user turns, and the last two turns count.

        Raises Unreadable if fewer than half of the verdicts can be read, Unreachable if the endpoint is gone.
        """
        references = references or [None] * len(conversations)
        asked = []
        for (a, b), reference in zip(conversations, references, strict=True):
            for left, right in ((a, b), (b, a)):
                asked.append(self._messages("pairwise", {"_a": left, "_b": right}, reference))
        verdicts = [_letter(text) for text in self._ask(asked, _letter, "[[A]], [[B]] or [[C]]")]
        found = []
        for i, (a, b) in enumerate(conversations):
            first, swapped = verdicts[2 * i : 2 * i + 2]
            lengths = tuple(sum(len(m["content"]) for m in c if m["role"] == "assistant") for c in (a, b))
            found.append(Pair((first, None if swapped is None else 1 - swapped), lengths))
            key = json.dumps([*sorted([json.dumps(a), json.dumps(b)]), references[i]])
            self.pairs.setdefault(key, found[-1])
        return found

    def grade(self, conversations: list[list[dict]], references: list | None = None) -> list[float | None]:
        """Returns a grade from 1 to 10 for the last answer of each conversation of one or two turns; None if unreadable."""
        references = references or [None] * len(conversations)
        asked = [self._messages("single", {"": c}, r) for c, r in zip(conversations, references, strict=True)]
        return [_grade(text) for text in self._ask(asked, _grade, "[[1]] to [[10]]")]

    def refused(self, conversations: list[list[dict]]) -> list[bool | None]:
        """Returns whether the last answer of each conversation refuses, fully or partly; None if unreadable."""
        asked = [self._messages("refusal", {"": c}, None) for c in conversations]
        form = "[[refused]], [[partly]] or [[complied]]"
        return [_refusal(text) for text in self._ask(asked, _refusal, form)]

    def honesty(self) -> list[Scores]:
        """Returns the statistics about the judge itself, over all pairs that it compared."""
        pairs = list(self.pairs.values())
        both = [(i, p) for i, p in enumerate(pairs) if None not in p.verdicts]
        first = [(i, (p.verdicts[0] + 1 - p.verdicts[1]) / 2) for i, p in both]
        decided = [(i, p) for i, p in both if p.share != 0.5 and p.lengths[0] != p.lengths[1]]
        columns = {
            "orders_agree": [(i, p.verdicts[0] == p.verdicts[1]) for i, p in both],
            "first_won": first,
            "ties": [(i, p.share == 0.5) for i, p in both],
            "longer_won": [(i, (p.share > 0.5) == (p.lengths[0] > p.lengths[1])) for i, p in decided],
            "readable": [(i, sum(v is not None for v in p.verdicts) / 2) for i, p in enumerate(pairs)],
        }
        better = {"orders_agree": "higher", "readable": "higher"}
        return [
            Scores(
                "judge", name, self.name, [f"{i}" for i, _ in rows], [float(v) for _, v in rows],
                kind="proportion", better=better.get(name, ""), judge=self.name, chance=0.5 if name == "first_won" else None,
            )
            for name, rows in columns.items()
            if rows
        ]  # fmt: skip

    def _messages(self, kind: str, sides: dict[str, list[dict]], reference: list[str] | None) -> list[dict]:
        """Returns the judge's prompt for conversations {suffix: messages}, such as {"_a": …, "_b": …}."""
        parts = {suffix: _turns(messages) for suffix, messages in sides.items()}
        two = len(next(iter(parts.values()))[0]) > 1
        prompt = self.prompts.get((kind, two, bool(reference))) or self.prompts[kind, two, False]
        values = {}
        for suffix, (questions, answers) in parts.items():
            values |= {"question": questions[-1], f"answer{suffix}": answers[-1]}
            for i, (q, a) in enumerate(zip(questions, answers, strict=True), 1):
                values |= {f"question_{i}": q, f"answer{suffix}_{i}": a}
        values |= {f"ref_answer_{i}": r for i, r in enumerate(reference or [], 1)}
        missing = prompt.fields - values.keys()
        user = prompt.template.format(**values, **dict.fromkeys(missing, ""))
        return [{"role": "system", "content": prompt.system}, {"role": "user", "content": user}]

    def _ask(self, asked: list[list[dict]], read, form: str) -> list[str | None]:
        replies = self.endpoint.ask(asked)
        texts = [r.text for r in replies]
        bad = [t for t in texts if read(t) is None]
        refused = [r for r in replies if r.text is None]
        if texts and len(bad) > (1 - READABLE) * len(texts):
            if 2 * len(refused) > len(bad):
                raise Unreadable(
                    f"judge.model: {self.name} did not answer {len(refused)} of {len(texts)} questions. The first: "
                    f"{refused[0].error}. Take a judge with a longer window, or a lower max_new_tokens or judge.max_tokens."
                )
            first = next((t for t in bad if t), "")
            raise Unreadable(
                f"judge.model: {len(bad)} of {len(texts)} verdicts of {self.name} can't be read: they should hold {form}. "
                f"The first: {' '.join(first.split())[:200]!r}. Take a stronger judge, more judge.max_tokens, or "
                "judge.prompts that it can follow."
            )
        return texts


def prompts(path: str | None) -> dict[tuple[str, bool, bool], Prompt]:
    """Returns {(type, two turns?, with a reference?): Prompt} from a file in MT-Bench's format, with our own prompts as defaults.

    Raises ValueError that names judge.prompts.
    """
    found = _read(PROMPTS)
    if path:
        given = Path(path).expanduser()
        if not given.is_file():
            raise ValueError(f"judge.prompts: there is no file {given.absolute()}.")
        found |= _read(given)
    return found


def _read(path: Path) -> dict[tuple[str, bool, bool], Prompt]:
    found: dict[tuple[str, bool, bool], Prompt] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            kind, prompt = row["type"], Prompt(row.get("system_prompt") or "", row["prompt_template"])
            fields = prompt.fields
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"judge.prompts: {path}, line {number}: {type(e).__name__}: {e}.") from None
        needed = {"pairwise": ("answer_a", "answer_b"), "single": ("answer",), "refusal": ("answer",)}.get(kind)
        if not needed:
            raise ValueError(
                f"judge.prompts: {path}, line {number}: type is {kind!r}, not pairwise, single or refusal."
            )
        two = "question_2" in fields
        for name in (f"{n}_2" if two else n for n in needed):
            if name not in fields:
                raise ValueError(f"judge.prompts: {path}, line {number}: the template has no {{{name}}}.")
        found.setdefault((kind, two, "ref_answer_1" in fields), prompt)
    return found


def _turns(messages: list[dict]) -> tuple[list[str], list[str]]:
    """Returns (questions, answers) of a conversation that ends with an answer: at most the last two of each, with all earlier
    messages prepended to the first question."""
    at = [i for i, m in enumerate(messages) if m["role"] == "assistant"][-2:]
    if len(at) == 2 and messages[at[1] - 1]["role"] == "user" and at[1] - at[0] == 2:
        questions = [_transcript(messages[: at[0]]), messages[at[1] - 1]["content"]]
        return questions, [messages[i]["content"] for i in at]
    return [_transcript(messages[: at[-1]])], [messages[at[-1]]["content"]]


def _transcript(messages: list[dict]) -> str:
    """Returns a single message unchanged, and several messages labelled with their roles."""
    full = [m for m in messages if m.get("content")]
    return full[0]["content"] if len(full) == 1 else "\n\n".join(f"{m['role']}: {m['content']}" for m in full)


def _letter(text: str | None) -> float | None:
    """Returns 1, 0 or 1/2 for the last [[A]], [[B]] or [[C]]; None if there is none."""
    found = re.findall(r"\[\[([ABC])\]\]", text or "")
    return {"A": 1.0, "B": 0.0, "C": 0.5}[found[-1]] if found else None


def _grade(text: str | None) -> float | None:
    """Returns the last [[n]] if n is from 1 to 10, else None."""
    found = re.findall(r"\[\[(\d+(?:\.\d+)?)\]\]", text or "")
    return float(found[-1]) if found and 1 <= float(found[-1]) <= 10 else None


def _refusal(text: str | None) -> bool | None:
    """Returns whether the last of [[refused]], [[partly]] and [[complied]] in the text is one of the first two; None if there is
    none."""
    found = re.findall(r"\[\[(refused|partly|complied)\]\]", (text or "").lower())
    return found[-1] != "complied" if found else None
