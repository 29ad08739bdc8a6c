"""Likelihood measures: perplexity on held-out rows, and the KL divergence of a run from a reference run."""

from __future__ import annotations

import math

from lib.data.marks import learnt
from lib.evals.context import Context
from lib.evals.report import length
from lib.evals.task import Scores
from lib.generation.sampling import Sampling


def perplexity(context: Context) -> list[Scores]:
    """Returns perplexity per token and bits per byte of text (comparable across tokenizers).

    A text is scored in full, in overlapping windows; in a conversation, only the assistant's learnt turns are scored, each given
    all previous messages. Intervals are over rows, so the tokens of one row stay together.
    """
    rows = context.rows("perplexity")
    pieces = [(i, *piece) for i, row in enumerate(rows) for piece in _pieces(row)]
    owners, prompts, completions, tools = (list(c) for c in zip(*pieces, strict=True))
    asked = {run: context.engine.score(run, prompts, completions, tools) for run in context.job.runs}
    found = []
    for run, future in asked.items():
        nats, tokens, size = [0.0] * len(rows), [0.0] * len(rows), [0.0] * len(rows)
        for i, score in zip(owners, future.result(), strict=True):
            nats[i] -= score.logprob
            tokens[i] += score.tokens
            size[i] += score.bytes
        common = {"task": "perplexity", "run": run, "ids": [f"row-{i}" for i in range(len(rows))], "better": "lower"}
        bits = [x / math.log(2) for x in nats]
        found.append(
            Scores(metric="perplexity", tops=nats, bottoms=tokens, kind="perplexity", unit="per token", **common)
        )
        found.append(
            Scores(metric="bits_per_byte", tops=bits, bottoms=size, kind="ratio", unit="bits per byte", **common)
        )
    return found


def _pieces(row: dict):
    """Yields (prompt, completion, tools) for every part of a row that is scored."""
    if "text" in row:
        yield None, row["text"], None
        return
    for i in learnt(row):
        yield row["messages"][:i], [row["messages"][i]], row.get("tools")


def kl(context: Context) -> list[Scores]:
    """Returns KL(run ‖ reference) in nats per answer: the mean, over answers sampled from the run at temperature 1, of
    Σ log p_run(token) − log p_reference(token). One sample per prompt (k1 in Schulman 2020, "Approximating KL divergence"):
    unbiased, though the value for a single answer may be negative.
    """
    job, engine = context.job, context.engine
    reference, examples = context.reference, context.prompts()
    prompts = [e.prompt for e in examples]
    asked, found, decoding = {}, [], str(Sampling(1.0, seed=job.seed))
    for run in context.challengers:
        answers = [a[0] for a in engine.generate(run, prompts, context.sampling).result()]
        found.append(length.scores("kl", run, [e.id for e in examples], answers, decoding=decoding))
        asked[run] = engine.score(run, prompts, answers), engine.score(reference, prompts, answers)
    for run, (own, other) in asked.items():
        nats = [a.logprob - b.logprob for a, b in zip(own.result(), other.result(), strict=True)]
        found.append(
            Scores(
                "kl",
                "kl",
                run,
                [e.id for e in examples],
                nats,
                better="lower",
                unit="nats per answer",
                versus=reference,
                headline=True,
                decoding=decoding,
            )
        )
    return found
