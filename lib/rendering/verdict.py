"""Turns counts into the problems that stop a job and the notes in its plan."""

from __future__ import annotations

from lib.config.job import Job
from lib.rendering.counts import Counts
from lib.rendering.losses import THOUGHTS
from lib.rendering.sequences import Settings

SHARE = 0.05
"""Largest share of examples that may be dropped, cut, made alike, endless, or differ from the generation prompt; more is an error."""

NOUNS = {
    "chat": "answers", "labelled": "answers", "preference": "pairs", "text": "texts", "contrastive": "rows", "classified": "rows",
    "pair": "rows", "prompt": "prompts", "problem": "prompts",
}  # fmt: skip


def verdict(counts: Counts, job: Job, settings: Settings, window: int | None) -> tuple[list[str], list[str]]:
    """Returns (problems, notes). With data.incomplete: accept, the only problems are a template that fails and no examples left."""
    problems, notes = [], []
    if settings.objective and settings.max_length and window and settings.max_length + settings.specials > window:
        added = f" and the {settings.specials} special tokens of {settings.objective}" if settings.specials else ""
        return [
            f"train.max_length: {settings.max_length:,}{added} are more than the {window:,} positions of model.base. "
            f"Set train.max_length: {window - settings.specials}."
        ], []
    if counts.examples and counts.dropped == counts.examples:
        longest = f"the longest row has {counts.longest:,} tokens"
        return [
            f"train.max_length: nothing to learn is within {settings.max_length:,} tokens ({longest}). Raise train.max_length."
        ], []
    if counts.failed:
        problems.append(
            f"model.chat_template: the chat template fails at {counts.failed:,} of {counts.rows:,} rows, "
            f"such as {counts.first['failed']}. Change those rows, or give a template that renders them."
        )
    for share, limit, text, remedy in _findings(counts, settings, window):
        if share > limit and job.data.incomplete == "error":
            above = f" That is {share:.0%}; more than {limit:.0%} is an error." if limit else ""
            problems.append(f"{text}.{above} {remedy}, or set data.incomplete: accept to train on the rest.")
        else:
            notes.append(f"{text}.")
    return problems, notes


def _findings(c: Counts, settings: Settings, window: int | None):
    """Yields (share of the examples, the share above which it is an error, the finding, its remedy)."""
    noun, total = NOUNS.get(c.kind, "examples"), max(c.examples, 1)

    def of(n: int) -> str:
        return f"{n:,} of {c.examples:,} {noun}"

    for what, n in sorted(c.lost.items(), key=lambda item: -item[1]):
        text = f"model.chat_template: the chat template leaves out {what} in {of(n)} (such as {c.first[what]})"
        choose = "Set data.reasoning: learn to write it into the answers, mask or remove" if what == THOUGHTS else ""
        yield n / total, 0.0, text, choose or "Give a template that writes them"
    if c.parted:
        place, end = c.first["parted"].split(": ", 1)
        text = (
            f"model.chat_template: the generation prompt ends in {end} (such as {place}), where {of(c.parted)} have other tokens: "
            "the model would be used in a context that it isn't trained in"
        )
        yield (
            c.parted / total,
            SHARE,
            text,
            "Give a template whose generation prompt equals the beginning of its answers",
        )
    if c.endless:
        text = f"model.chat_template: {of(c.endless)} have no token that ends the turn (such as {c.first['endless']}): the model would not learn to stop"
        yield c.endless / total, SHARE, text, "Give a template that ends an assistant's turn with a special token"
    longest = f"the longest has {c.longest:,} tokens"
    longest += f", and the prompt has {settings.virtual}" if settings.virtual else ""
    if gone := c.dropped + c.cut:
        fits = f"Set train.max_length: {settings.virtual + (c.longest if window is None else min(c.longest, window))}"
        fits += (
            ", or train.packing: true with packing_strategy: wrapped, which splits texts"
            if c.kind == "text" and not settings.reads_only
            else ""
        )
        end = "beginning" if settings.keep_end else "end"
        parts = [f"{c.dropped:,} are dropped"] * bool(c.dropped) + [f"{c.cut:,} lose their {end}"] * bool(c.cut)
        text = f"train.max_length: {settings.max_length:,} tokens are too few for {of(gone)} ({longest}): {', '.join(parts)}"
        yield gone / total, SHARE, text, fits
    if c.alike:
        cut = "" if settings.max_length is None else f" within train.max_length {settings.max_length:,}"
        text = (
            f"data.source: in {of(c.alike)} chosen and rejected are the same tokens{cut} (such as {c.first['alike']})"
        )
        yield c.alike / total, SHARE, text, "Raise train.max_length, or leave those pairs out"
    if c.outside:
        if settings.answers:
            text = f"train.max_completion_length: {of(c.outside)} and an answer of {settings.answer_tokens:,} tokens are longer"
            remedy = f"Set train.max_completion_length: {max(1, window - c.longest)}"
            yield c.outside / total, 0.0, f"{text} than the {window:,} positions of model.base ({longest})", remedy
            return
        text = f"train.max_length: {of(c.outside)} are longer than the {window:,} positions of model.base ({longest})"
        yield c.outside / total, 0.0, text, f"Set train.max_length: {settings.virtual + window}"
