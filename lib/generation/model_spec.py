"""Locates a model for an evaluation and checks its files before any weights are loaded."""

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
    trained_template: str | None = None
    dtype: str = "auto"
    makes: str = "causal_lm"
    """Its kind (lib/stage/stage.py, Makes)."""
    vllm: bool = False
    """Whether vLLM runs it instead of transformers; False for a reward run."""

    @property
    def reward(self) -> bool:
        """Whether it scores answers instead of generating them."""
        return self.makes == "reward"


def find(key: str, name: str, base: str, dtype: str, makes: str = "causal_lm", also: tuple[str, ...] = ()) -> Spec:
    """Locates a model of kind `makes`, or of a kind in `also`, and checks its files. Raises ValueError, beginning with `key`, if they don't
    fit."""
    from lib.generation.reward_model import check_config
    from lib.models import load, locate

    try:
        where, identity = locate.locate_for(key, base)
    except ValueError as e:
        raise ValueError(f"{e}{_runs_near(base, str(e))}") from None
    reward = makes == "reward"
    if not reward:
        locate.require(key, where, (makes, *also))
    trained = load.parent_template(where)
    run = Run(where) if trained is not None or (Path(where).is_dir() and Run(where).is_run()) else None
    if reward and (run or Path(where).is_dir()):  # the worker checks a model that isn't downloaded yet
        config = run.read_text("model/config.json") if run else Path(where, "config.json").read_text()
        check_config(run.path if run else where, json.loads(config))
    if run and trained and run.fs.exists(run.at("model/chat_template.jinja")):
        found = hashlib.sha256(run.read_text("model/chat_template.jinja").encode()).hexdigest()
        if found != trained:
            raise ValueError(
                f"{key}: the chat template of {run.path} is not the one it was trained with (sha256 {found[:12]}, "
                f"{trained[:12]} in provenance.json). Restore its model/chat_template.jinja, or train it again."
            )
    return Spec(name, where, identity, trained, dtype, makes)


def _runs_near(base: str, message: str) -> str:
    """Returns a sentence that lists the runs in the folder of a missing run; "" if `message` lists them already."""
    folder = Path(absolute(base)).parent
    if "://" in base or "Nearest" in message or Path(absolute(base)).exists():
        return ""
    there = sorted(p.parent.name for p in folder.glob("*/job.yaml"))
    either = "" if "no run" in message else f" There is no run {absolute(base)} either."
    return f"{either} Runs in {folder}: {', '.join(there) or 'none'}."
