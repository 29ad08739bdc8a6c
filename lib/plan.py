"""Everything about a job that can be checked before a worker, a GPU or a weight is touched, and the plan it prints."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from lib import checkpoint, data, hardware, integrity, logs, models, quantized, resume, strategy
from lib.cli import Request, UsageError
from lib.config import Job
from lib.quantize import qat
from lib.run import Run, absolute


@dataclass
class Plan:
    job: Job
    """With paths made absolute and the base settled."""
    identities: dict[str, str]
    """{model.base and the keys of train that name models: identity of the weights (lib/models.py locate)}"""
    check: object
    """lib.data Check: format, rows, held-out rows, content hash."""
    gpu: bool
    finished: bool
    notes: list[str]
    template: str | None
    """Text of the chat template, where it can be read without downloading."""

    def lines(self) -> list[tuple[str, str]]:
        """(label, text) rows for a table."""
        j, s = self.job, self.job.scale
        low = s.min_workers or s.workers
        sizes = {n: strategy.split_batch(s.global_batch, s.micro_batch, n) for n in sorted({low, s.workers})}
        batches = [
            f"{n} workers × {each} examples × {accumulated} accumulated" for n, (each, accumulated) in sizes.items()
        ]
        rows = self.check.rows
        steps = j.train.get("max_steps") or -1
        if steps > 0:
            length = f"{steps} steps"
        elif rows:
            epochs = j.train.get("num_train_epochs", 3.0)
            length = f"{epochs:g} epochs of {rows:,} rows ≈ {int(epochs * -(-rows // s.global_batch)):,} steps"
            if rows % s.global_batch and epochs >= 1 and not j.train.get("dataloader_drop_last"):
                length += ", the last of an epoch filled up with rows of that epoch"
        else:
            length = f"{j.train.get('num_train_epochs', 3.0):g} epochs"
        lora = f"LoRA r={j.model.lora.get('r', 8)}, merged at the end"
        trains = "all weights" if j.model.adapter == "none" else lora
        trains += "" if j.model.quantization == "none" else f", base in {j.model.quantization}"
        trains += "" if j.model.qat == "none" else f", rounded as {j.model.qat} while they train"
        where = os.environ.get("RAY_ADDRESS") or "a Ray started here"
        return [
            ("stage", f"jobs/{j.stage}.py → {j.run}"),
            ("base", f"{j.model.base}  ({self.identities['model.base']})"),
            ("trains", trains),
            *[("data", line.removeprefix("data: ")) for line in self.check.lines()],
            ("batch", f"{s.global_batch} examples a step = " + " or ".join(batches)),
            ("length", length),
            ("scale", f"{s.strategy} on {where}, {'GPU' if self.gpu else 'CPU'}, precision {s.precision}"),
            logs.line(Run(j.run)),
            *[("note", n) for n in self.notes],
        ]


def make(request: Request, rows: tuple[str, ...], named: tuple[str, ...] = ()) -> Plan:
    """Checks a request; rows, named: as main() of lib/launch.py has them. Raises UsageError listing every problem found."""
    job, problems, notes = request.job, [], []
    run = Run(job.run)

    def attempt(f, *args):
        try:
            return f(*args)
        except ValueError as e:
            problems.append(str(e))

    located = attempt(models.locate, job.model.base, job.model.revision)
    base, identity = located or (job.model.base, "")
    identities = {"model.base": identity}
    if located:
        attempt(quantized.refuse, "model.base", base, "trained")
        if job.stage != "reward":
            attempt(models.refuse_reward, "model.base", base)
    if located and base.startswith("package:") and not job.model.base.startswith("package:"):
        notes.append(f"no model hub can be reached: using the same weights from the installed package {base[8:]}")
    for key in named:
        if (job.train.get(key) or "").startswith("serve:"):
            if not os.environ.get("RAY_ADDRESS"):
                problems.append(
                    f"train.{key}: {job.train[key]} is asked in the cluster that it runs in. Submit the job there, or set RAY_ADDRESS."
                )
        elif not job.train.get(key):
            problems.append(f"train.{key}: say which model, such as runs/sft.")
        elif found := attempt(models.locate_for, f"train.{key}", job.train[key]):
            attempt(models.refuse_reward, f"train.{key}", found[0])
            job = replace(job, train=job.train | {key: found[0]})
            identities[f"train.{key}"] = found[1]
    template = job.model.chat_template
    if template:  # beside the code, also where that was uploaded; else where the runs are
        template = os.path.abspath(template) if os.path.exists(template) else absolute(template)
    if template and not Path(template).is_file():
        problems.append(f"model.chat_template: there is no file {template}.")
    checked = attempt(data.check, job.data, rows)
    gpu = attempt(_device, job)
    for check in (_scale, _model, _train, _eval):
        problems += check(job, bool(gpu))
    job = replace(
        job, run=run.path, model=replace(job.model, base=base, chat_template=template), data=data.absolute(job.data)
    )
    text = models.template_text(job.model) if not problems else None
    if checked and checked.tool_rows and text is not None and "tool" not in text:
        problems.append(
            f"model.chat_template: {checked.tool_rows:,} rows of data.source call tools, and the template of {base} leaves calls out: "
            "their answers would be empty. Give a template that writes tool_calls."
        )
    finished = False
    if run.is_run():
        finished = run.finished()
        if request.resume:
            problems += resume.problems(run, job, identities, checked, text)
            if finished and not problems and (why := integrity.damage(run)):
                finished, (step, _) = False, checkpoint.latest(run)
                after = f"from checkpoint-{step}" if step else "by training again: no checkpoint is whole"
                notes.append(f"{why}; it is rebuilt {after}")
        else:
            status = run.provenance().get("status", "before its first step")
            state = "is finished" if finished else f"stopped ({status})"
            there = f"{run.path} already holds a run, which {state}. Go on with --resume {shlex.quote(job.run)}, or name another --run."
            # A dry run writes nothing, so the run that is there is in nobody's way yet.
            notes.append(there) if request.dry_run else problems.append(f"run: {there}")
    elif run.exists() and run.files():
        problems.append(f"run: {run.path} exists and is not a run. Name another --run.")
    if problems:
        raise UsageError("\n".join(problems))
    return Plan(job, identities, checked, bool(gpu), finished, notes, text)


def _device(job: Job) -> bool:
    """Whether the job trains on GPUs; on a cluster (RAY_ADDRESS) device: auto is settled after connecting."""
    s = job.scale
    if os.environ.get("RAY_ADDRESS"):
        return s.device == "gpu"
    gpus, cpus = hardware.local_gpus(), hardware.local_cpus()
    if s.device == "gpu" and not gpus:
        raise ValueError(
            "scale.device: gpu, but this machine has none. Use device: auto, or submit to a cluster with GPUs."
        )
    use = gpus > 0 and s.device != "cpu"
    have, what, each = (gpus, "GPUs", 1) if use else (cpus, "CPU cores", s.cpus_per_worker)
    if s.workers * each > have:
        raise ValueError(
            f"scale.workers: {s.workers} × {each} {what} are needed, this machine has {have}. Use {max(have // each, 1)}, or submit to a cluster."
        )
    return use


def _scale(job: Job, gpu: bool) -> list[str]:
    s, out = job.scale, []
    for key in ("workers", "global_batch", "micro_batch", "cpus_per_worker"):
        if getattr(s, key) < 1:
            out.append(f"scale.{key}: must be at least 1, is {getattr(s, key)}.")
    if out:
        return out
    for n in range(s.min_workers or s.workers, s.workers + 1):
        try:
            strategy.split_batch(s.global_batch, s.micro_batch, n)
        except ValueError as e:
            out.append(str(e))
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
    if m.lora and m.adapter == "none":
        out.append("model.lora: is set, but model.adapter is none. Set model.adapter: lora.")
    if m.quantization != "none" and m.adapter == "none":
        out.append(f"model.quantization: {m.quantization} weights can't be trained. Set model.adapter: lora (QLoRA).")
    if m.quantization != "none" and job.scale.strategy != "ddp":
        out.append(f"model.quantization: {m.quantization} runs with scale.strategy: ddp, not {job.scale.strategy}.")
    if m.lora.get("r", 8) < 1:
        out.append(f"model.lora.r: must be at least 1, is {m.lora['r']}.")
    return out + qat.problems(job)


def _train(job: Job, gpu: bool) -> list[str]:
    t, out = job.train, []
    if t.get("learning_rate", 1.0) <= 0:
        out.append(f"train.learning_rate: must be above 0, is {t['learning_rate']}.")
    if t.get("max_steps", -1) == 0 or (t.get("max_steps", -1) < 0 and t.get("num_train_epochs", 1) <= 0):
        out.append(
            "train.max_steps and train.num_train_epochs: together they ask for no step. Set one of them above 0."
        )
    if (kept := t.get("save_total_limit")) is not None and kept < 1:
        out.append(f"train.save_total_limit: must be 1 or more, is {kept}. null keeps every checkpoint.")
    if (order := t.get("train_sampling_strategy")) in ("group_by_length", "batch_rebalance"):
        out.append(
            f"train.train_sampling_strategy: {order} draws the rows of a step anew on other workers and after a resume. Use random or sequential."
        )
    if t.get("save_strategy") == "no":
        out.append(
            "train.save_strategy: no would lose the run at the first preemption. Use steps or epoch, and a larger train.save_steps."
        )
    if t.get("trust_remote_code"):
        out.append("train.trust_remote_code: running code from a model's repository is not supported. Leave it out.")
    if t.get("hub_token") or t.get("push_to_hub"):
        out.append(
            "train.push_to_hub and train.hub_token: a token would end up in job.yaml. Upload model/ of the finished run "
            "with `hf upload`, which reads HF_TOKEN from the environment."
        )
    if t.get("save_only_model"):
        out.append("train.save_only_model: without the optimizer's state no run could go on. Leave it out.")
    if t.get("load_best_model_at_end") or t.get("save_strategy") == "best":
        out.append(
            "train.load_best_model_at_end and save_strategy: best keep the best checkpoint and not the newest, which a "
            "resumed run goes on from. Use save_strategy: steps and choose by metrics.jsonl."
        )
    trackers = t.get("report_to") or "none"
    for name in [trackers] if isinstance(trackers, str) else trackers:
        out += _tracker(name)
    return out


def _tracker(name: str) -> list[str]:
    import importlib.util

    known = {"none": None, "tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
    if name not in known:
        from lib.cli import nearest

        return [f"train.report_to: there is no {name}. Known: {', '.join(known)}.{nearest(name, known)}"]
    if known[name] and not importlib.util.find_spec(known[name]):
        return [f"train.report_to: {name} is not installed: pip install {name}."]
    return []


def _eval(job: Job, gpu: bool) -> list[str]:
    from lib.evals import tasks
    from lib.evals.job import after, needs

    try:
        for name in job.eval.tasks:
            tasks.get(name)
    except ValueError as e:
        return [f"eval.tasks: {e}"]
    return [f"eval.tasks: {p}" for p in needs(after(job))] if job.eval.tasks else []
