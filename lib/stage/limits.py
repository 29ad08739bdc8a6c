"""Checks on the driver for settings of a training job that conflict with each other or with this machine. Messages name the key.

Checks that TRL, transformers and PEFT make themselves are run by building their objects (lib/stage/preflight.py).
"""

from __future__ import annotations

import importlib.util
import os

from lib.config import ranges
from lib.config.adapters import ADAPTERS
from lib.config.job import Job
from lib.data import Check
from lib.distributed import strategy
from lib.errors import nearest
from lib.models import adapter_limits
from lib.models.quantization import qat

LOSSES = {
    "sft": ("nll", "dft"),
    "dpo": (
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
        "apo_down", "discopop", "sft", "sigmoid_norm",
    ),
    "kto": ("kto", "apo_zero_unpaired"),
    "simpo": ("simpo", "cpo"),
    "grpo": ("grpo", "bnpo", "dapo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"),
}  # fmt: skip
"""{stage: values of train.loss_type}."""

DIVERGENT = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
"""Losses of DPO that train.f_divergence_type changes."""


def problems(job: Job, gpu: bool) -> list[str]:
    """Returns what is wrong with the values of a training job, each message beginning with its key."""
    out = ranges.values(job.to_dict())
    for check in (_scale, _model, _data, _train, _schedule, _eval):
        out += check(job, gpu)
    return out


def heldout(job: Job, checked: Check) -> list[str]:
    """Returns the problem if settings measure held-out rows and there are none."""
    t = job.train
    keys = [k for k, off in (("eval_strategy", "no"), ("eval_on_start", False)) if t.get(k, off) != off]
    if not keys or checked.heldout_rows != 0:
        return []
    asked = " and ".join(f"train.{k}: {t[k]}" for k in keys)
    return [
        f"{asked}: there are no held-out rows to measure. Raise data.heldout_fraction, name data.heldout, or leave it out."
    ]


def revision(given: str | None, base: str) -> list[str]:
    """Returns the problem if model.revision is set and the base, as lib/models/locate.py located it, isn't on a hub."""
    if given is None or not ("://" in base or base.startswith("package:") or os.path.isabs(base)):
        return []
    return [f"model.revision: {given} would be a commit on a hub, and {base} is none of its models. Leave it out."]


def _scale(job: Job, gpu: bool) -> list[str]:
    s, out = job.scale, []
    if min(s.workers, s.global_batch, s.micro_batch, s.cpus_per_worker, s.min_workers or 1) < 1:
        return []  # reported by lib/config/ranges.py
    for n in range(s.min_workers or s.workers, s.workers + 1):
        try:
            strategy.split_batch(s.global_batch, s.micro_batch, n)
        except ValueError as e:
            out.append(str(e))
            break
    if s.min_workers is not None:
        if not 1 <= s.min_workers <= s.workers:
            out.append(f"scale.min_workers: must be between 1 and scale.workers ({s.workers}), is {s.min_workers}.")
        if s.strategy != "ddp":
            out.append(
                f"scale.min_workers: {s.strategy} checkpoints are cut for a fixed number of workers. Use strategy: ddp."
            )
    if s.strategy != "ddp" and s.workers == 1 and not (gpu and s.offload):
        out.append(
            f"scale.strategy: {s.strategy} shards over workers, and there is one. Set scale.workers: 2 or more, or strategy: ddp."
        )
    if s.offload and s.strategy == "ddp":
        out.append("scale.offload: ddp has nothing to offload. Use strategy: zero2, zero3 or fsdp.")
    if s.precision == "fp16" and not gpu and not os.environ.get("RAY_ADDRESS"):
        out.append("scale.precision: fp16 arithmetic needs a GPU. Use auto, bf16 or fp32.")
    return out


def _model(job: Job, gpu: bool) -> list[str]:
    m, out = job.model, []
    given = [k for k in ("size", "tokenizer", "vocab_size") if getattr(m, k) is not None and m.base != "none"]
    out += [f"model.{key}: goes with model.base: none, and the base is {m.base}. Leave it out." for key in given]
    out += adapter_limits.problems(job)
    if m.quantization != "none" and m.adapter == "none":
        out.append(f"model.quantization: {m.quantization} weights can't be trained. Set model.adapter: lora (QLoRA).")
    elif m.quantization != "none" and not ADAPTERS[m.adapter].quantized:
        can = ", ".join(name for name, a in ADAPTERS.items() if a.quantized)
        out.append(
            f"model.quantization: {m.adapter} doesn't train on {m.quantization} weights. Set model.adapter to one of {can}."
        )
    if m.quantization != "none" and job.scale.strategy != "ddp":
        out.append(f"model.quantization: {m.quantization} runs with scale.strategy: ddp, not {job.scale.strategy}.")
    for key in (
        "arrow_config",
        "corda_config",
        "eva_config",
        "kasa_config",
        "lora_ga_config",
        "runtime_config",
        "use_bdlora",
    ):
        if m.peft.get(key) is not None:
            out.append(f"model.peft.{key}: takes an object of PEFT's, which a config can't hold. Leave it out.")
    if m.peft.get("init_lora_weights") in ("eva", "corda"):
        out.append(
            f"model.peft.init_lora_weights: {m.peft['init_lora_weights']} starts from activations, which aren't collected here. Leave it out."
        )
    return out + qat.problems(job)


def _data(job: Job, gpu: bool) -> list[str]:
    out = []
    if job.data.reasoning == "mask" and job.stage != "sft":
        out.append(
            f"data.reasoning: mask works in jobs/sft.py only, and this is jobs/{job.stage}.py. Use learn or remove."
        )
    elif job.data.reasoning == "mask" and job.train.get("completion_only_loss") is False:
        out.append(
            "data.reasoning: mask leaves the reasoning out of the loss, and train.completion_only_loss: false has loss on all tokens. "
            "Leave one of them out."
        )
    return out


def _train(job: Job, gpu: bool) -> list[str]:
    t, out = job.train, []
    if t.get("max_steps", -1) == 0 or (t.get("max_steps", -1) < 0 and t.get("num_train_epochs", 1) <= 0):
        out.append(
            "train.max_steps and train.num_train_epochs: together they give no training step. Set one of them above 0."
        )
    if t.get("save_strategy") == "no":
        out.append(
            "train.save_strategy: no would lose the run at the first preemption. Use steps or epoch, and a larger train.save_steps."
        )
    if (order := t.get("train_sampling_strategy")) in ("group_by_length", "batch_rebalance"):
        out.append(
            f"train.train_sampling_strategy: {order} draws other rows for a step if scale.workers changes or the run is resumed. Use random or sequential."
        )
    for key, plain in (("dataset_kwargs", None), ("label_names", None), ("dataset_text_field", "text")):
        if (t.get(key) or plain) != plain:
            out.append(f"train.{key}: lib/data prepares the rows. Leave it out; data.columns renames columns.")
    optim = t.get("optim") or "adamw_torch"
    if t.get("optim_target_modules") and not optim.startswith(("galore", "apollo")):
        out.append(
            f"train.optim_target_modules: {optim} has none, only GaLore's and APOLLO's optimizers. Leave it out."
        )
    if t.get("metric_for_best_model") not in (None, "", "loss", "eval_loss"):
        out.append("train.metric_for_best_model: held-out rows give eval_loss. Leave it out.")
    if t.get("use_liger_kernel") and not importlib.util.find_spec("liger_kernel"):
        out.append("train.use_liger_kernel: liger-kernel is not installed: pip install liger-kernel.")
    init = t.get("model_init_kwargs")
    for section, keys in (("train", t), ("model.peft", job.model.peft)):
        for key, value in keys.items():
            if key.endswith(("_kwargs", "_config")) and not (value is None or isinstance(value, dict)):
                out.append(f"{section}.{key}: must be keys and values, is {value!r}.")
    if t.get("trust_remote_code") or (isinstance(init, dict) and init.get("trust_remote_code")):
        out.append("train.trust_remote_code: running code from a model's repository is not supported. Leave it out.")
    if t.get("hub_token") or t.get("push_to_hub"):
        out.append(
            "train.push_to_hub and train.hub_token: a token would end up in job.yaml. Upload model/ of the finished run "
            "with `hf upload`, which reads HF_TOKEN from the environment."
        )
    if t.get("save_only_model"):
        out.append("train.save_only_model: without the optimizer's state the run couldn't be resumed. Leave it out.")
    if t.get("load_best_model_at_end") or t.get("save_strategy") == "best":
        out.append(
            "train.load_best_model_at_end and save_strategy: best keep the best checkpoint and not the newest, which a "
            "resumed run goes on from. Use save_strategy: steps and choose by metrics.jsonl."
        )
    if t.get("ignore_data_skip"):
        out.append("train.ignore_data_skip: a resumed run would learn its first rows twice. Leave it out.")
    if t.get("eval_strategy", "no") == "no" and t.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy"):
        out.append(
            f"train.lr_scheduler_type: {t['lr_scheduler_type']} goes by the held-out loss. Set train.eval_strategy."
        )
    if t.get("neftune_noise_alpha") and job.stage != "sft":
        out.append(f"train.neftune_noise_alpha: is for jobs/sft.py, and this is jobs/{job.stage}.py. Leave it out.")
    if t.get("padding_free") and not t.get("packing") and t.get("max_length", 1024) is not None:
        out.append(
            "train.padding_free: without train.packing rows are not cut at train.max_length. Set max_length: null, or packing: true."
        )
    if t.get("packing") and t.get("max_length", 1024) is None:
        out.append("train.packing: fills rows of train.max_length tokens. Say how many.")
    if t.get("average_tokens_across_devices") is False:
        out.append(
            "train.average_tokens_across_devices: false would weigh a token by how many others its worker has, so that the loss would "
            "change with scale.workers. Leave it out."
        )
    out += _losses(job)
    trackers = t.get("report_to") or "none"
    for name in [trackers] if isinstance(trackers, str) else trackers:
        out += _tracker(name)
    return out


def _losses(job: Job) -> list[str]:
    """Returns problems with losses: unknown ones, those that TRL's trainers don't combine, and those that would change with scale."""
    t, s, out = job.train, job.scale, []
    named = t.get("loss_type")
    kinds = [named] if isinstance(named, str) else named or []
    known = LOSSES.get(job.stage, ("nll",))
    for name in kinds:
        if name not in known:
            out.append(f"train.loss_type: there is no {name}. Known: {', '.join(known)}.{nearest(str(name), known)}")
    if isinstance(named, list) and not named:
        out.append("train.loss_type: there is none. Leave it out for the default.")
    if t.get("loss_weights") is not None and len(t["loss_weights"]) != len(kinds or [""]):
        out.append(
            f"train.loss_weights: {len(t['loss_weights'])} weights for {len(kinds or [''])} losses of train.loss_type."
        )
    elif t.get("loss_weights") is not None and not any(t["loss_weights"]):
        out.append("train.loss_weights: all are 0, so that nothing would be learnt.")
    if t.get("f_divergence_type", "reverse_kl") != "reverse_kl" and (bad := sorted(set(kinds) - DIVERGENT)):
        out.append(f"train.f_divergence_type: {', '.join(bad)} of train.loss_type has reverse_kl only.")
    if t.get("use_weighting") and (bad := sorted(set(kinds) & {"aot", "aot_unpaired"})):
        out.append(f"train.use_weighting: {', '.join(bad)} of train.loss_type sorts rows, which have no weights then.")
    if t.get("use_weighting") and "sft" in kinds:
        out.append(
            "train.use_weighting: sft of train.loss_type is a mean over tokens, and pairs are weighted. Leave one of them out."
        )
    if (sorting := sorted(set(kinds) & {"aot", "aot_unpaired"})) and (s.workers > 1 or s.micro_batch < s.global_batch):
        out.append(
            f"train.loss_type: {', '.join(sorting)} sorts the pairs on one device at a time, so that another scale.micro_batch would be "
            f"another loss. Set scale.workers: 1 and scale.micro_batch: {s.global_batch}, or take another loss."
        )
    if "exo_pair" in kinds and not t.get("label_smoothing"):
        out.append("train.label_smoothing: exo_pair of train.loss_type needs one above 0, such as 1e-3.")
    return out


def _tracker(name: str) -> list[str]:
    known = {"none": None, "tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
    if name not in known:
        return [f"train.report_to: there is no {name}. Known: {', '.join(known)}.{nearest(name, known)}"]
    if (module := known[name]) and not importlib.util.find_spec(module):
        return [f"train.report_to: {name} is not installed: pip install {name}."]
    return []


def _schedule(job: Job, gpu: bool) -> list[str]:
    out = []
    for key, changes in vars(job.schedule).items():
        wrong = [step for step in changes if not step.isdigit()]
        out += [f"schedule.{key}: {step} is not a step: must be a whole number from 0." for step in wrong]
    if job.schedule.weight_decay and not job.train.get("weight_decay"):
        out.append(
            "schedule.weight_decay: needs train.weight_decay above 0, from which the parameters that decay are recognised."
        )
    kind = job.train.get("lr_scheduler_type")
    if job.schedule.learning_rate and kind in ("reduce_lr_on_plateau", "greedy"):
        out.append(
            f"schedule.learning_rate: train.lr_scheduler_type: {kind} chooses the learning rate itself. Use another."
        )
    return out


def _eval(job: Job, gpu: bool) -> list[str]:
    from lib.evals import registry
    from lib.evals.job import after, needs

    try:
        for name in job.eval.tasks:
            registry.get(name)
    except ValueError as e:
        return [f"eval.tasks: {e}"]
    return [f"eval.tasks: {p}" for p in needs(after(job))] if job.eval.tasks else []
