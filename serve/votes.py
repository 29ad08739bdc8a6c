"""Ballots (pairs of two runs' answers, compared without knowing which run wrote which) and the votes on them.

Votes are stored in <eval run>/votes.jsonl, one per line; a rater's last vote on a pair counts. <eval run>/pairs.jsonl has the
majority's preference pairs, which jobs/reward.py and jobs/dpo.py can train on directly.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass

from lib.evals.statistics.intervals import Estimate, proportion
from lib.run import Run

CHOICES = ("left", "right", "tie", "skip", "undo")


@dataclass(frozen=True)
class Ballot:
    id: str
    prompt: list[dict]
    answers: tuple[str, str]
    """The answers of the first and the second run."""


def ballots(run: Run, pair: tuple[str, str], task: str | None = None) -> list[Ballot]:
    """Returns a ballot for every prompt that the two runs answered differently in the evaluation `run`, in a fixed random order.

    Raises ValueError: no such evaluation, no such run or task in it, or no differing answers.
    """
    from lib.errors import nearest

    if not run.fs.exists(run.at("reports/examples.jsonl")):
        raise ValueError(f"--run: {run.path} has no reports/examples.jsonl. Evaluate first: python jobs/eval.py …")
    rows = [json.loads(line) for line in run.read_text("reports/examples.jsonl").split("\n") if line]
    there = list(dict.fromkeys(r["run"] for r in rows))
    for name in pair:
        if name not in there:
            raise ValueError(
                f"--pair: {name} has no answers in {run.path}.{nearest(name, there)} It has {', '.join(there)}."
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
    """The votes on `ballots` for the pair of runs. Thread-safe; votes survive a restart."""

    def __init__(self, run: Run, pair: tuple[str, str], ballots: list[Ballot]):
        self.run, self.pair, self.ballots, self.lock = run, pair, ballots, threading.Lock()
        self.by_id = {b.id: b for b in ballots}
        self.votes: dict[tuple[str, str], str] = {}
        lines = run.read_text("votes.jsonl").split("\n") if run.fs.exists(run.at("votes.jsonl")) else []
        for row in (json.loads(line) for line in lines if line):
            if row["pair"] == list(pair) and row["id"] in self.by_id:
                self._count(row["rater"], row["id"], row["vote"])

    def first_on_left(self, rater: str, ballot: str) -> bool:
        """Returns whether the first run's answer is shown left: a coin toss per rater and ballot that a restart doesn't change."""
        return hashlib.sha256(f"{rater} {ballot}".encode()).digest()[0] < 128

    def next(self, rater: str) -> Ballot | None:
        """Returns the rater's first ballot without a vote, or None if none is left."""
        return next((b for b in self.ballots if (rater, b.id) not in self.votes), None)

    def vote(self, rater: str, ballot: str, choice: str) -> None:
        """Stores a vote. choice: left, right or tie as the rater saw it, skip, or undo. Raises ValueError for anything else."""
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
        """Returns the ballot that an undo would revert."""
        mine = [ballot for who, ballot in self.votes if who == rater]
        return mine[-1] if mine else None

    def pairs(self) -> list[dict]:
        """Returns {prompt, chosen, rejected} of every ballot on which one answer got more votes than the other."""
        out = []
        for b in self.ballots:
            counts = Counter(v for (_, ballot), v in self.votes.items() if ballot == b.id)
            if counts["first"] != counts["second"]:
                better, worse = b.answers if counts["first"] > counts["second"] else b.answers[::-1]
                turns = [[{"role": "assistant", "content": text}] for text in (better, worse)]
                out.append({"prompt": b.prompt, "chosen": turns[0], "rejected": turns[1]})
        return out

    def win_rate(self) -> Estimate | None:
        """Returns how often the second run's answer was preferred, averaged over raters, then over ballots; a tie counts half."""
        value = {"first": 0.0, "second": 1.0, "tie": 0.5}
        by_ballot: dict[str, list[float]] = {}
        for (_, ballot), v in self.votes.items():
            if v in value:
                by_ballot.setdefault(ballot, []).append(value[v])
        return proportion([sum(v) / len(v) for v in by_ballot.values()]) if by_ballot else None

    def agreement(self) -> tuple[float, int] | None:
        """Returns (Fleiss' kappa, number of ballots) over the ballots with the most raters, or None if that is fewer than two raters."""
        counts: dict[str, Counter] = {}
        for (_, ballot), v in self.votes.items():
            if v in ("first", "second", "tie"):
                counts.setdefault(ballot, Counter())[v] += 1
        raters = max((sum(c.values()) for c in counts.values()), default=0)
        full = [[c[v] for v in ("first", "second", "tie")] for c in counts.values() if sum(c.values()) == raters]
        return (fleiss_kappa(full), len(full)) if raters > 1 else None

    def _count(self, rater: str, ballot: str, choice: str) -> None:
        self.votes.pop((rater, ballot), None)
        if choice != "undo":
            self.votes[rater, ballot] = choice


def fleiss_kappa(table: list[list[int]]) -> float:
    """Returns Fleiss' kappa, the agreement beyond chance (Fleiss 1971; with two raters, Scott's pi).

    table[i][j]: how many raters put item i into category j, with the same number of raters for each item. 1 if all always agree.
    """
    n, raters = len(table), sum(table[0])
    agree = sum(sum(x * (x - 1) for x in row) for row in table) / (n * raters * (raters - 1))
    chance = sum((sum(column) / (n * raters)) ** 2 for column in zip(*table, strict=True))
    return 1.0 if chance == 1 else (agree - chance) / (1 - chance)
