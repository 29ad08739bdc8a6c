"""The work of a quantisation, by Ray tasks that each have a process of their own: make the run, and measure a model."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import yaml

from lib import checkpoint, launch, models
from lib.config import Scale
from lib.hardware import worker_env
from lib.quantize.job import Plan, QuantizeJob, stored
from lib.quantize.measure import TOGETHER, Needs, needs
from lib.quantize.methods import METHODS, quantize
from lib.quantized import FORMATS
from lib.run import Run
from lib.worker import publish


def apart(f, *args):
    """f(*args) by a process of its own, on a GPU where the cluster has one; Ray must be connected. Raises what it raised."""
    import ray

    gpu = int(ray.cluster_resources().get("GPU", 0) > 0)
    env = worker_env(Scale(), bool(gpu))
    # max_calls: the process ends with the task, so that the next one's memory is its own.
    task = ray.remote(num_cpus=1, num_gpus=gpu, max_calls=1, max_retries=1, runtime_env={"env_vars": env})(f)
    return ray.get(task.remote(*args))


def produce(planned: Plan) -> None:
    """Makes the run: job.yaml, model/, provenance.json with status finished at the very end. Ray must be connected."""
    began, j = time.time(), planned.job
    run, kept = Run(j.run), stored(j)
    run.write_text("job.yaml", yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))
    kind = FORMATS[METHODS[j.method].format]
    packages = ("torch", "ray", "transformers", "safetensors", *kind.distributions())
    data = planned.check.summary()
    begun = launch.origin("quantize", kept, j.model.base, planned.spec.identity, data, packages)
    run.write_json("provenance.json", begun)
    made = apart(make, j)
    made["seconds"]["total"] = time.time() - began
    launch.record(run, {"status": "finished", "failure": None, **made})


def make(job: QuantizeJob) -> dict:
    """Writes the run's model/; returns what provenance.json is to hold of it. A model/ that a killed process left is replaced."""
    import resource

    import torch

    began, run = time.time(), Run(job.run)
    if not run.is_run():
        raise ValueError(f"run: this node can't see {run.path}. On several nodes it must be s3:// or a mounted folder.")
    folder = checkpoint.scratch(run) / "export"
    shutil.rmtree(folder, ignore_errors=True)
    source = models.path(job.model.base)
    if not Path(source).is_dir():  # a hub name; without the pickles that some repositories hold too
        from huggingface_hub import snapshot_download

        source = snapshot_download(source, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"])
    template = quantize(job.method, source, str(folder / "model"), None if job.dtype == "auto" else job.dtype)
    made = time.time()
    sizes = {"before": weights(Path(source)), job.method: weights(folder / "model")}
    gpu = torch.cuda.is_available()
    return {
        "method": job.method,
        "bytes": sizes,
        "template_sha256": template,
        "model_sha256": publish(run, folder),
        "hardware": torch.cuda.get_device_name() if gpu else "cpu × 1",
        "peak_memory_bytes": torch.cuda.max_memory_allocated()
        if gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": {"quantize": made - began, "export": time.time() - made},
    }


def weights(folder: Path) -> int:
    """Bytes of the files that hold weights."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))


def measure(base: str, vllm: bool, job: QuantizeJob, prompts: list) -> Needs:
    """What the model at `base` (as lib.models.locate returned it, or the run itself) needs to answer."""
    return needs(models.path(base), vllm, job.dtype, prompts, job.max_new_tokens, threads=1)


def prompts(job: QuantizeJob) -> list:
    """Held-out prompts to measure with: what comes before the last answer of a conversation, or the first half of a text.

    Raises ValueError where there are none.
    """
    from lib import data

    heldout = data.load(job.data, ("chat", "text"), training=False).heldout
    if heldout is None or not len(heldout):
        raise ValueError(f"data.source: {job.data.source} has no held-out rows to answer. Raise data.heldout_fraction.")
    found = []
    for i in range(min(TOGETHER, len(heldout))):
        row = heldout[i]
        if "text" in row:
            found.append(row["text"][: max(1, len(row["text"]) // 2)])
        else:
            last = max(k for k, m in enumerate(row["messages"]) if m["role"] == "assistant")
            found.append(row["messages"][:last])
    return found
