"""Random wrong configs, covering every section of every stage, are rejected before Ray with their key, unless they turn out to be valid."""

import math
import random
import re
import typing

import pytest
import yaml

from lib.config import adapters, config_file, trl_fields
from lib.config.job import Data, Eval, Job, Model, Scale
from lib.evals import cli as eval_cli
from lib.evals import plan as eval_plan
from lib.methods.quantization import job as quantize_job
from lib.stage import preflight
from tests import stages

TRAINED = {
    "sft": ("trl.trainer.sft_config:SFTConfig", ("chat", "text"), ()),
    "dpo": ("trl.trainer.dpo_config:DPOConfig", ("preference",), ()),
    "reward": ("trl.trainer.reward_config:RewardConfig", ("preference",), ()),
    "kto": ("lib.methods.preference.kto:StepKTOConfig", ("labelled",), ()),
    "orpo": ("lib.methods.preference.orpo:ORPOConfig", ("preference",), ()),
    "simpo": ("lib.methods.preference.simpo:SimPOConfig", ("preference",), ()),
    "distill": ("lib.methods.distillation.trainer:DistillConfig", ("chat", "text"), ("teacher",)),
    "prune": ("lib.methods.pruning.config:PruneConfig", ("chat", "text"), ("teacher",)),
    "draft": ("lib.methods.speculative_draft:DraftConfig", ("chat",), ("teacher",)),
}
STAGES = [*TRAINED, "eval", "quantize"]

COUNT = 150
SECTIONS = ("model.peft",)

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

FREE = {
    "run", "bert_encoder", "judge.model", "judge.key_env", "train.run_name", "train.project", "train.hub_model_id",
    "train.hub_revision", "train.trackio_space_id", "train.trackio_bucket_id", "train.length_column_name",
    "model.peft.megatron_core",
    "lm_eval.system_instruction",
    "data.source",  # may be a dataset on the hub, which the workers load
}  # fmt: skip
"""Keys for which any text is valid."""
ZERO = {
    "lm_eval.num_fewshot", "data.heldout_fraction", "accuracy_floor", "samples", "seed", "usd_per_hour", "judge.usd_per_million_in",
    "judge.usd_per_million_out", "scale.max_failures", "model.peft.lora_dropout", "train.seed", "train.data_seed",
    "train.adam_beta1", "train.adam_beta2", "train.adam_epsilon", "train.answer_temperature",
    "train.center_rewards_coefficient", "train.dataloader_num_workers", "train.eval_delay", "train.f_alpha_divergence_coef",
    "train.hard_weight", "train.label_smoothing", "train.label_smoothing_factor", "train.ld_alpha", "train.local_rank",
    "train.max_grad_norm", "train.neftune_noise_alpha", "train.on_policy", "train.ref_model_mixup_alpha",
    "train.router_aux_loss_coef", "train.warmup_steps", "train.weight_decay",
    "train.desirable_weight", "train.undesirable_weight", "train.simpo_gamma", "train.cpo_alpha",
}  # fmt: skip
"""Keys for which 0 is valid: it turns them off, or is an ordinary value."""
MORE = {
    "usd_per_hour", "judge.usd_per_million_in", "judge.usd_per_million_out", "judge.timeout_s", "kl_ceiling",
    "train.learning_rate", "train.weight_decay", "train.max_grad_norm", "train.num_train_epochs", "train.eval_delay",
    "train.adam_epsilon", "train.beta", "train.answer_temperature", "train.center_rewards_coefficient", "train.discopop_tau",
    "train.f_alpha_divergence_coef", "train.neftune_noise_alpha", "train.router_aux_loss_coef", "train.soft_temperature",
    "train.desirable_weight", "train.undesirable_weight", "train.simpo_gamma", "train.cpo_alpha",
}  # fmt: skip
"""Keys for which 1.5 is valid: neither a share nor a count."""
LESS = {
    "train.max_steps": (-1,),  # num_train_epochs decides
    "scale.max_failures": (-1,),  # always
    "train.local_rank": (-1,),  # not started by torchrun
    "train.f_alpha_divergence_coef": (-1, -0.5),
}


def legitimate(key: str, kind: object, value) -> bool:
    if value is None:
        return config_file.takes(kind, type(None))
    if isinstance(value, bool):
        return config_file.takes(kind, bool)
    if value == "":  # same as null
        return (config_file.takes(kind, type(None)) or key in FREE | {"train.debug"}) and not key.startswith(
            ("model.", "data.", "run")
        )
    if isinstance(value, str):
        return key in FREE
    if value == [1]:  # the second layer, the second token
        return key in ("model.peft.layers_to_transform", "model.peft.trainable_token_indices")
    numbers = {0: key in ZERO, 1.5: key in MORE}
    return numbers.get(value, value in LESS.get(key, ())) if isinstance(value, int | float) else False


def kinds(stage: str) -> dict[str, object]:
    """Returns {key: type} of all keys of a stage's YAML."""
    if stage == "eval":
        return eval_cli.KEYS.kinds
    if stage == "quantize":
        return quantize_job.KEYS.kinds
    out = {"run": str}
    for name, cls in {"model": Model, "data": Data, "scale": Scale, "eval": Eval}.items():
        out |= config_file.types_of(cls, f"{name}.")
    del out["model.peft"]
    for name, cls in (("model.peft", adapters.LORA), ("train", TRAINED[stage][0])):
        out |= {f"{name}.{k}": f.type for k, f in trl_fields.read(cls).items()}
    return out


def wrong(rng: random.Random, key: str, kind: object):
    """Returns (key as written, value): of another type, out of range, null, or under a misspelt name."""
    if rng.random() < 0.1:
        at = rng.randrange(key.rfind(".") + 1, len(key))
        return key[:at] + "_q" + key[at:], 1
    if rng.random() < 0.1:
        return key, None
    outer = [typing.get_origin(k) or k for k in (kind, *typing.get_args(kind))]
    pools = [pool for t, pool in WRONG.items() if t in outer] or [["bogus", 3, [1]]]
    return key, rng.choice(rng.choice(pools))


def tree(stage: str, base: str, source: dict[str, str], run: str) -> dict:
    """Returns a valid config."""
    data = {"source": source["preference" if stage in ("dpo", "reward", "kto", "orpo", "simpo") else "chat"]}
    if stage == "eval":
        return {"run": run, "runs": {"base": base}, "tasks": ["perplexity"], "data": data, "workers": 1}
    if stage == "quantize":
        return {"run": run, "model": {"base": base}, "data": data, "tasks": [], "method": "w8a8"}
    train = {"teacher": base} if TRAINED[stage][2] else {}
    train |= {"method": "depth", "keep_layers": 1} if stage == "prune" else {}
    adapter = {} if stage in ("prune", "distill", "draft") else {"adapter": "lora", "peft": {"r": 4}}
    return {"run": run, "model": {"base": base} | adapter, "data": data, "train": train, "scale": {"global_batch": 8}}


def put(config: dict, key: str, value) -> dict:
    whole = config
    *sections, last = key.split(".")
    for name in sections:
        config = config.setdefault(name, {})
    config[last] = value
    return whole


def plan_it(stage: str, path: str) -> Job | None:
    """Runs the checks that jobs/<stage>.py makes before it starts anything, in this process. Raises ValueError."""
    if stage == "eval":
        return eval_plan.plan(eval_cli.parse(["--config", path]).job) and None
    if stage == "quantize":
        return quantize_job.plan(quantize_job.parse(["--config", path])) and None
    planned = stages.planned(stage, ["--config", path])
    if problems := preflight.check(planned.job, stages.stage(stage).config, planned.device.gpu):
        raise ValueError("\n".join(problems))
    return planned.job


@pytest.mark.slow
def test_every_wrong_config_is_refused_with_its_key(tiny_model, chats_file, pairs_file, tmp_path, monkeypatch):
    monkeypatch.setattr("lib.runtime.hardware.local_gpus", lambda: 0)
    monkeypatch.setattr("lib.runtime.hardware.local_cpus", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    rng, source = random.Random(14), {"chat": chats_file, "preference": pairs_file}
    path, run, left, refused = tmp_path / "c.yaml", str(tmp_path / "runs" / "x"), [], 0
    for stage in STAGES:  # valid before anything is made wrong
        path.write_text(yaml.safe_dump(tree(stage, tiny_model, source, run)))
        plan_it(stage, str(path))
    for _ in range(COUNT):
        stage = rng.choice(STAGES)
        known = kinds(stage)
        sections = sorted({".".join(k.split(".")[:-1]) for k in known})
        section = rng.choice(sections)
        name = rng.choice(sorted(k for k in known if ".".join(k.split(".")[:-1]) == section and k not in SECTIONS))
        key, value = wrong(rng, name, known[name])
        path.write_text(yaml.safe_dump(put(tree(stage, tiny_model, source, run), key, value)))
        said = None
        try:
            plan_it(stage, str(path))
        except ValueError as e:
            said = str(e)
        refused += said is not None
        named = said and (re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", said) or "model.peft: is set, but" in said)
        if not named and not (said is None and key == name and legitimate(key, known[name], value)):
            left.append(f"{stage} {key}: {value!r} → {said or 'accepted'}")
    assert not left, "\n".join(left)
    assert refused > 0.8 * COUNT and not (tmp_path / "runs").exists()
