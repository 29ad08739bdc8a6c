"""On the workers: renders every row before the model is loaded, and makes generation stop at the ends of turns that were learnt."""

from __future__ import annotations

import json
from pathlib import Path

from lib import data
from lib.config.adapters import virtual_tokens
from lib.config.job import Job
from lib.rendering.base import base
from lib.rendering.counts import Counts
from lib.rendering.sequences import Settings, sequences
from lib.rendering.verdict import verdict
from lib.runtime.failure import StopTraining

BATCH = 1000


def count(job: Job, args, loaded: data.Loaded, share: tuple[int, int]) -> dict[str, Counts]:
    """Returns {"train": Counts, "heldout": Counts} of all rows, the same on every worker. args: the stage's TRL config; share:
    (rank, number of workers), among which the rows are divided. Raises StopTraining for the problems that the plan reports, since
    its sample may have missed them."""
    settings = Settings.of(job.makes, args, job.data.reasoning, virtual_tokens(job.model))
    known = base(job.model, settings)
    if why := known.unfit(loaded.kind, settings):
        raise StopTraining(why)
    counts = {}
    for side, rows in (("train", loaded.train), ("heldout", loaded.heldout)):
        counts[side] = _over_workers(_count(rows or [], side, loaded.kind, settings, known, share))
    problems, _ = verdict(counts["train"] + counts["heldout"], job, settings, known.window)
    if problems:
        raise StopTraining(" ".join(problems))
    return counts


def summary(counts: dict[str, Counts]) -> dict:
    """Returns the counts as provenance.json stores them."""
    return {"of_all_rows": True} | {side: c.summary() for side, c in counts.items()}


def _count(rows, side: str, kind: str, settings: Settings, known, share: tuple[int, int]) -> Counts:
    out = Counts(kind)
    for start in range(BATCH * share[0], len(rows), BATCH * share[1]):
        columns = rows[start : start + BATCH]
        batch = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for n, (made, found) in enumerate(sequences(known.tokenizer, kind, batch, settings), start + 1):
            out.add(f"row {n} of {side}", kind, batch[n - start - 1], made, found, settings, known)
    return out


def _over_workers(mine: Counts) -> Counts:
    import torch.distributed as dist

    if not dist.is_initialized():
        return mine
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return sum(parts[1:], parts[0])


def stop_at_turn_ends(folder: Path, counts: dict[str, Counts], tokenizer) -> None:
    """Adds the tokens that ended the learnt turns to eos_token_id in the generation config of the model in `folder`."""
    ends = tokenizer.convert_tokens_to_ids(sorted({token for c in counts.values() for token in c.ends}))
    file = folder / "generation_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known = config.get("eos_token_id")
    known = known if isinstance(known, list) else [] if known is None else [known]
    if more := [i for i in ends if i not in known]:
        file.write_text(json.dumps(config | {"eos_token_id": known + more}, indent=2) + "\n", encoding="utf-8")
