"""Checks that a resumed run is the one that was started: the same settings, weights, rows and chat template.

Paths don't count: the run, its base, its teacher and its data may be moved, copied or linked, as long as the bytes are the
same.
"""

from __future__ import annotations

import hashlib
import re

from lib.config.job import Job
from lib.run import Run

MAY_CHANGE = {
    "run", "makes", "scale.workers", "scale.min_workers", "scale.max_failures", "scale.cpus_per_worker", "scale.micro_batch", "eval",
    "data.incomplete", "rollouts.workers", "rollouts.without",
}  # fmt: skip
"""Keys that may change on resume, because they don't move a sample to another step. `makes` follows from the stage."""


def problems(run: Run, job: Job, identities: dict[str, str], checked, template: str | None) -> list[str]:
    """Returns the differences from what the run was started with, one line per key. identities: {key that names a model: its
    identity}; checked: a lib.data Check; template: the chat template's text, or None if it can't be read yet."""
    before = run.provenance()
    named = {"model.base": before.get("parent_sha256")} | before.get("identities", {})
    moved = {key for key, sha in identities.items() if sha and named.get(key) == sha}
    data = before.get("data", {})
    if checked and data.get("complete") and checked.complete and data["sha256"] == checked.sha256:
        moved |= {"data.source", "data.heldout"}
    digest = template_digest(template)
    if digest and before.get("chat_template_sha256") == digest:
        moved.add("model.chat_template")
    out = _changes(run, job, moved)
    if out:
        return [
            *out,
            f"--resume: {run.path} was started with another configuration. Resume without --config to keep its own, or name another --run.",
        ]
    if checked and data.get("complete") and checked.complete and data["sha256"] != checked.sha256:
        out.append(
            "data.source: its rows are not those that the run was started with. Put them back, or name another --run."
        )
    for key, sha in identities.items():
        if sha and (was := named.get(key)) and was != sha:
            out.append(f"{key}: its weights are not those that the run was started with ({was}, now {sha}).")
    if digest and before.get("chat_template_sha256", digest) != digest:
        out.append("model.chat_template: the template is not the one that the run was started with.")
    return out


def template_digest(text: str | None) -> str | None:
    return hashlib.sha256(text.encode()).hexdigest() if text else None


def _changes(run: Run, job: Job, moved: set[str]) -> list[str]:
    try:
        stored = Job.from_dict(run.job())
    except TypeError as e:
        return [f"{run.at('job.yaml')}: {str(e).split('__init__() ')[-1]}. Restore the file as the run wrote it."]
    old, new = (_flat(j.to_dict()) for j in (stored, job))
    return [
        f"{key}: the run has {old.get(key)!r}, this configuration {new.get(key)!r}."
        for key in sorted(old.keys() | new.keys())
        if not {key, key.split(".")[0]} & (MAY_CHANGE | moved) and _uploaded(old.get(key)) != _uploaded(new.get(key))
    ]


def _uploaded(value):
    """Removes the upload folder from a path inside a `ray job submit` upload: its name differs with each upload."""
    return re.sub(r".*/working_dir_files/[^/]+/", "", value) if isinstance(value, str) else value


def _flat(d: dict, prefix: str = "") -> dict:
    out = {}
    for k, v in d.items():
        out |= _flat(v, f"{prefix}{k}.") if isinstance(v, dict) and v else {f"{prefix}{k}": v}
    return out
