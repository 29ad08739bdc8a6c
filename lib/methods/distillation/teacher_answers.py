"""Sequence-level distillation (Kim and Rush 2016, https://arxiv.org/abs/1606.07947): a teacher answers the prompts of a dataset
once, and a student learns these answers. Only text is exchanged, so teacher and student may have different tokens.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from lib.generation.sampling import Sampling
from lib.methods.distillation.teacher import SHARD, whole
from lib.run import Run
from lib.runtime import manifest
from lib.runtime.logs import say


def written(
    rows, folder: str, identity: str, load: Callable, sampling: Sampling, share: tuple[int, int],
    barrier: Callable[[], None],
):  # fmt: skip
    """Returns {"prompt", "completion"} rows with the teacher's answers instead of the data's. Answers that weren't finished within
    sampling.max_new_tokens are left out. load: loads the teacher as a Generator, called only if shards of answers are missing in
    `folder`; share: (rank, number of workers). Raises ValueError if no answer was finished."""
    if "prompt" not in rows.column_names:
        raise ValueError(
            "train.answers: teacher answers prompts, and data.source holds plain texts. Say answers: data."
        )
    prompts = rows["prompt"]
    key = hashlib.sha256(repr((identity, str(sampling), sampling.max_new_tokens, list(prompts))).encode()).hexdigest()[
        :16
    ]
    store, starts = Run(f"{folder}/answers-{key}"), list(range(0, len(prompts), SHARD))
    there = set(store.folders(""))
    mine = [
        s for s in starts[share[0] :: share[1]] if f"{s:08}" not in there or not whole(store, f"{s:08}")
    ]  # as in lib/methods/distillation/teacher.py, Kept
    generator = load() if mine else None
    for n, start in enumerate(mine):
        answers = generator.generate([list(p) for p in prompts[start : start + SHARD]], sampling)
        with tempfile.TemporaryDirectory() as scratch:
            lines = [json.dumps({"text": a[0].text, "finished": a[0].finished}) + "\n" for a in answers]
            Path(scratch, "answers.jsonl").write_text("".join(lines), encoding="utf-8")
            manifest.seal(Path(scratch))
            store.put(scratch, f"{start:08}")
        if share[0] == 0 and (n + 1) % max(1, len(mine) // 5) == 0:
            say(f"teacher: {n + 1} of {len(mine)} shards of answers in {store.path}")
    barrier()
    found = [json.loads(line) for s in starts for line in store.read_text(f"{s:08}/answers.jsonl").splitlines()]
    finished = [i for i, answer in enumerate(found) if answer["finished"]]
    if not finished:
        raise ValueError(
            f"train.answer_tokens: none of the teacher's {len(found):,} answers ended within {sampling.max_new_tokens} tokens. Raise it."
        )
    if share[0] == 0 and len(finished) < len(found):
        say(
            f"teacher: {len(found) - len(finished):,} of {len(found):,} answers were not finished and are left out",
        )
    texts = iter([found[i]["text"] for i in finished])
    kept = rows.select(finished)
    return kept.map(
        lambda row: row | {"completion": [{"role": "assistant", "content": next(texts)}]}, load_from_cache_file=False
    )
