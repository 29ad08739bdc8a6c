"""Wrong configs, made at random over every section of every stage: refused before Ray with their key, or legitimate after all."""

import importlib
import math
import random
import typing

import pytest
import yaml

from lib import cli, config_file, fields, plan, preflight
from lib.config import Data, Eval, Job, Model, Scale
from lib.evals import cli as eval_cli
from lib.evals import job as eval_job
from lib.quantize import job as quantize_job

TRAINED = {
    "sft": ("trl.trainer.sft_config:SFTConfig", ("chat", "text"), ()),
    "dpo": ("trl.trainer.dpo_config:DPOConfig", ("preference",), ()),
    "reward": ("trl.trainer.reward_config:RewardConfig", ("preference",), ()),
    "distill": ("lib.distillation:DistillConfig", ("chat", "text"), ("teacher",)),
    "prune": ("lib.prune.config:PruneConfig", ("chat", "text"), ("teacher",)),
    "draft": ("lib.draft:DraftConfig", ("chat",), ("teacher",)),
}
STAGES = [*TRAINED, "eval", "quantize"]

NUMBERS = [math.nan, math.inf, -1, -0.5, 1.5, 0, 10**30, "ten", "1:30", [1], {"a": 1}, True]
WRONG = {
    bool: ["maybe", 2, [True], {}],
    int: NUMBERS,
    float: NUMBERS,
    list: ["bogus", 3, ["bogus"], [[]], {"a": 1}],
    dict: ["bogus", [1], {"bogus": 1}, 3],
    str: ["", "bogus", [1], {"a": 1}, True],
}
"""Values that are probably wrong for a key of the type."""


def kinds(stage: str) -> dict[str, object]:
    """{key: type} of all keys of a stage's YAML."""
    if stage == "eval":
        return eval_cli.KEYS.kinds
    if stage == "quantize":
        return quantize_job.KEYS.kinds
    out = {"run": str}
    for name, cls in {"model": Model, "data": Data, "scale": Scale, "eval": Eval}.items():
        out |= config_file.types_of(cls, f"{name}.")
    del out["model.lora"]
    for name, cls in (("model.lora", cli.LORA), ("train", TRAINED[stage][0])):
        out |= {f"{name}.{k}": f.type for k, f in fields.read(cls).items()}
    return out


def wrong(rng: random.Random, key: str, kind: object):
    """(key as it is written, value): of another type, out of any range, null, or under a misspelt name."""
    if rng.random() < 0.1:
        at = rng.randrange(key.rfind(".") + 1, len(key))
        return key[:at] + "_q" + key[at:], 1
    if rng.random() < 0.1:
        return key, None
    outer = [typing.get_origin(k) or k for k in (kind, *typing.get_args(kind))]
    pools = [pool for t, pool in WRONG.items() if t in outer] or [["bogus", 3, [1]]]
    return key, rng.choice(rng.choice(pools))


def tree(stage: str, base: str, source: dict[str, str], run: str) -> dict:
    """A config that is right."""
    data = {"source": source["preference" if stage in ("dpo", "reward") else "chat"]}
    if stage == "eval":
        return {"run": run, "runs": {"base": base}, "tasks": ["perplexity"], "data": data, "workers": 1}
    if stage == "quantize":
        return {"run": run, "model": {"base": base}, "data": data, "tasks": [], "method": "w8a8"}
    train = {"teacher": base} if TRAINED[stage][2] else {}
    train |= {"method": "depth", "keep_layers": 1} if stage == "prune" else {}
    adapter = {} if stage in ("prune", "distill", "draft") else {"adapter": "lora", "lora": {"r": 4}}
    return {"run": run, "model": {"base": base} | adapter, "data": data, "train": train, "scale": {"global_batch": 8}}


def put(config: dict, key: str, value) -> dict:
    *sections, last = key.split(".")
    for name in sections:
        config = config.setdefault(name, {})
    config[last] = value
    return config


def plan_it(stage: str, path: str) -> Job | None:
    """What jobs/<stage>.py checks before it starts anything, in this process. Raises ValueError."""
    if stage == "eval":
        return eval_job.plan(eval_cli.parse(["--config", path])[0]) and None
    if stage == "quantize":
        return quantize_job.plan(quantize_job.parse(["--config", path])[0]) and None
    config, rows, named = TRAINED[stage]
    request = cli.parse(stage, config, ["--config", path])
    module = importlib.import_module(f"jobs.{stage}")
    check = {"distill": "lessons.check", "prune": "check", "draft": "check"}.get(stage)
    if check:
        found = module.lessons.check if "." in check else module.check
        found(request.job, fields.filled(config, request.job.train))
    planned = plan.make(request, rows, named)
    if problems := preflight.check(planned.job, config, planned.gpu):
        raise ValueError("\n".join(problems))
    return planned.job
