"""Ballots: pairs of answers of two runs that people compare without knowing whose is whose, and what they said.

Votes are kept in <eval run>/votes.jsonl, one line each, the last one of a rater about a pair counting; what the raters
agree on is <eval run>/pairs.jsonl, preference pairs that jobs/reward.py and jobs/dpo.py train on as they are.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass

from lib.evals.statistics import Estimate, proportion
from lib.run import Run

CHOICES = ("left", "right", "tie", "skip", "undo")


@dataclass(frozen=True)
class Ballot:
    id: str
    prompt: list[dict]
    answers: tuple[str, str]
    """Of the first run and of the second."""


def ballots(run: Run, pair: tuple[str, str], task: str | None = None) -> list[Ballot]:
    """Every prompt that both runs answered differently in the evaluation `run`, in an order drawn once.

    Raises ValueError: no such evaluation, run or task in it, or no pair whose answers differ.
    """
    from lib.cli import nearest

    if not run.fs.exists(run.at("reports/examples.jsonl")):
        raise ValueError(f"--run: {run.path} has no reports/examples.jsonl. Evaluate first: python jobs/eval.py …")
    rows = [json.loads(line) for line in run.read_text("reports/examples.jsonl").split("\n") if line]
    there = list(dict.fromkeys(r["run"] for r in rows))
    for name in pair:
        if name not in there:
            raise ValueError(
                f"--pair: {name} answered nothing in {run.path}.{nearest(name, there)} It has {', '.join(there)}."
            )
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    if task and task not in tasks:
        raise ValueError(f"--task: {task} is not in {run.path}.{nearest(task, tasks)} It has {', '.join(tasks)}.")
    asked: dict[tuple, dict] = {}
    for r in rows:
        if r["run"] in pair and (not task or r["task"] == task):
            asked.setdefault((r["task"], r["id"], r["decoding"]), {"prompt": r["prompt"]})[r["run"]] = r["answer"]
    both = {key: row for key, row in asked.items() if all(name in row for name in pair)}
    found = [
        Ballot(" ".join(key), row["prompt"], (row[pair[0]], row[pair[1]]))
        for key, row in both.items()
        if row[pair[0]].strip() != row[pair[1]].strip()
    ]
    if not found:
        raise ValueError(f"--pair: {' and '.join(pair)} have no differing answers to the same prompt in {run.path}.")
    return random.Random(0).sample(found, len(found))


class Box:
    """The votes on `ballots` for the pair of runs; thread-safe, and as it was after a restart."""

    def __init__(self, run: Run, pair: tuple[str, str], ballots: list[Ballot]):
        self.run, self.pair, self.ballots, self.lock = run, pair, ballots, threading.Lock()
        self.by_id = {b.id: b for b in ballots}
        self.votes: dict[tuple[str, str], str] = {}
        lines = run.read_text("votes.jsonl").split("\n") if run.fs.exists(run.at("votes.jsonl")) else []
        for row in (json.loads(line) for line in lines if line):
            if row["pair"] == list(pair) and row["id"] in self.by_id:
                self._count(row["rater"], row["id"], row["vote"])

    def first_on_left(self, rater: str, ballot: str) -> bool:
        """Whether the first run's answer stands left: a coin per rater and ballot, the same after a restart."""
        return hashlib.sha256(f"{rater} {ballot}".encode()).digest()[0] < 128

    def next(self, rater: str) -> Ballot | None:
        """The rater's first ballot without a vote; None when there is none left."""
        return next((b for b in self.ballots if (rater, b.id) not in self.votes), None)

    def vote(self, rater: str, ballot: str, choice: str) -> None:
        """choice: left, right or tie as the rater saw it, or skip, or undo. Raises ValueError for anything else."""
        if ballot not in self.by_id:
            raise ValueError(f"id: there is no ballot {ballot!r}.")
        if choice not in CHOICES:
            raise ValueError(f"vote: {choice!r} is not one of {', '.join(CHOICES)}.")
        if choice in ("left", "right"):
            choice = "first" if (choice == "left") == self.first_on_left(rater, ballot) else "second"
        row = {"time": round(time.time(), 1), "pair": list(self.pair), "rater": rater, "id": ballot, "vote": choice}
        with self.lock:
            self.run.append_text("votes.jsonl", json.dumps(row) + "\n")
            self._count(rater, ballot, choice)
            self.run.write_text("pairs.jsonl", "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in self.pairs()))

    def last(self, rater: str) -> str | None:
        """The ballot that an undo would take back."""
        mine = [ballot for who, ballot in self.votes if who == rater]
        return mine[-1] if mine else None

    def pairs(self) -> list[dict]:
        """{prompt, chosen, rejected} of every ballot that more raters gave to one answer than to the other."""
        out = []
        for b in self.ballots:
            said = Counter(v for (_, ballot), v in self.votes.items() if ballot == b.id)
            if said["first"] != said["second"]:
                better, worse = b.answers if said["first"] > said["second"] else b.answers[::-1]
                turns = [[{"role": "assistant", "content": text}] for text in (better, worse)]
                out.append({"prompt": b.prompt, "chosen": turns[0], "rejected": turns[1]})
        return out

    def win_rate(self) -> Estimate | None:
        """How often the second run's answer was preferred, over ballots, raters averaged; a tie counts half."""
        value = {"first": 0.0, "second": 1.0, "tie": 0.5}
        by_ballot: dict[str, list[float]] = {}
        for (_, ballot), v in self.votes.items():
            if v in value:
                by_ballot.setdefault(ballot, []).append(value[v])
        return proportion([sum(v) / len(v) for v in by_ballot.values()]) if by_ballot else None

    def agreement(self) -> tuple[float, int] | None:
        """(Fleiss' kappa, ballots) over the ballots that as many raters judged as the most judged one, two at least."""
        said: dict[str, Counter] = {}
        for (_, ballot), v in self.votes.items():
            if v in ("first", "second", "tie"):
                said.setdefault(ballot, Counter())[v] += 1
        raters = max((sum(c.values()) for c in said.values()), default=0)
        full = [[c[v] for v in ("first", "second", "tie")] for c in said.values() if sum(c.values()) == raters]
        return (fleiss_kappa(full), len(full)) if raters > 1 else None

    def _count(self, rater: str, ballot: str, choice: str) -> None:
        self.votes.pop((rater, ballot), None)
        if choice != "undo":
            self.votes[rater, ballot] = choice


def fleiss_kappa(table: list[list[int]]) -> float:
    """Agreement beyond chance of the same number of raters (Fleiss 1971; with two raters Scott's pi).

    table[i][j]: how many raters put item i into category j. 1 where everybody always said the same.
    """
    n, raters = len(table), sum(table[0])
    agree = sum(sum(x * (x - 1) for x in row) for row in table) / (n * raters * (raters - 1))
    chance = sum((sum(column) / (n * raters)) ** 2 for column in zip(*table, strict=True))
    return 1.0 if chance == 1 else (agree - chance) / (1 - chance)
