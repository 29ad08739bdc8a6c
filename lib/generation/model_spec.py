"""A model that an evaluation needs: found, and checked by what its files tell, before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from lib.run import Run, absolute


@dataclass(frozen=True)
class Spec:
    """A model to load: `base` and `identity` as lib.models.locate.locate returned them."""

    name: str
    base: str
    identity: str = ""
    reward: bool = False
    trained_template: str | None = None
    dtype: str = "auto"
    vllm: bool = False
    """Run by vLLM, not by transformers; a reward run never is."""


def find(key: str, name: str, base: str, dtype: str, reward: bool = False) -> Spec:
    """Locates a model and checks what its files tell. Raises ValueError that begins with `key`."""
    from lib.generation.reward_model import check_config
    from lib.models import load, locate

    try:
        where, identity = locate.locate_for(key, base)
    except ValueError as e:
        raise ValueError(f"{e}{_runs_near(base, str(e))}") from None
    if not reward:
        locate.require(key, where)
    trained = load.parent_template(where)
    run = Run(where) if trained is not None or (Path(where).is_dir() and Run(where).is_run()) else None
    if reward and (run or Path(where).is_dir()):  # the worker checks one that isn't here yet
        config = run.read_text("model/config.json") if run else Path(where, "config.json").read_text()
        check_config(run.path if run else where, json.loads(config))
    if run and trained and run.fs.exists(run.at("model/chat_template.jinja")):
        found = hashlib.sha256(run.read_text("model/chat_template.jinja").encode()).hexdigest()
        if found != trained:
            raise ValueError(
                f"{key}: the chat template of {run.path} is not the one it was trained with (sha256 {found[:12]}, "
                f"{trained[:12]} in provenance.json). Put its model/chat_template.jinja back, or train it again."
            )
    return Spec(name, where, identity, reward, trained, dtype)


def _runs_near(base: str, said: str) -> str:
    """What runs there are in the folder that a missing one was looked for in, unless the message says so already."""
    folder = Path(absolute(base)).parent
    if "://" in base or "Nearest" in said or Path(absolute(base)).exists():
        return ""
    there = sorted(p.parent.name for p in folder.glob("*/job.yaml"))
    either = "" if "no run" in said else f" There is no run {absolute(base)} either."
    return f"{either} Runs in {folder}: {', '.join(there) or 'none'}."
