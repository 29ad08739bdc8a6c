"""A teacher for distillation as a Ray Serve application, with any number of replicas.

serve run serve.teacher:app --name teacher run=runs/quickstart/sft replicas=2
RAY_ADDRESS=auto python jobs/distill.py --config configs/distill.yaml --train.teacher serve:teacher --train.top_k 64

Students call it through Ray; over HTTP only a status line is reachable.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import click
from ray import serve


@dataclass
class Teaching:
    run: str
    """A run directory, local or s3://, a model folder or a hub name."""
    replicas: int = 1
    """Copies of the model, each with a GPU where there are any."""
    cpus: float = 1.0
    """CPU cores (and threads) of each replica."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and arithmetic."""


def app(args: dict[str, Any]) -> serve.Application:
    """Returns the application. Raises ClickException, before starting anything, if an argument is wrong."""
    from lib.config.job import Scale
    from lib.models import locate
    from lib.runtime.hardware import gpus, worker_env
    from serve import serving

    try:
        teaching = serving.read(Teaching, args, "serve.teacher")
        serving.at_least(teaching, replicas=1, cpus=0.001)
        base, identity = locate.locate_for("run", teaching.run)
        locate.require("run", base)
    except ValueError as e:
        raise click.ClickException(str(e)) from None
    gpu = gpus() > 0
    actor = {"num_cpus": teaching.cpus, "num_gpus": int(gpu)}
    actor["runtime_env"] = {"env_vars": worker_env(Scale(), gpu)}
    return Teacher.options(num_replicas=teaching.replicas, ray_actor_options=actor, max_ongoing_requests=8).bind(
        base, identity, teaching.dtype, max(1, int(teaching.cpus))
    )


@serve.deployment
class Teacher:
    def __init__(self, base: str, identity: str, dtype: str, threads: int):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from lib.methods.distillation.teacher import width
        from lib.methods.distillation.trainer import vocabulary
        from lib.models import locate
        from lib.models.window import positions
        from lib.runtime.device import of_worker

        torch.set_num_threads(threads)
        where = locate.path(base)
        self.device = of_worker()
        self.model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype).to(self.device)
        tokenizer = AutoTokenizer.from_pretrained(where)
        self.tokens = width(tokenizer)
        self.known = {"base": base, "identity": f"{identity} {dtype}", "vocabulary": vocabulary(tokenizer)}
        self.known["positions"] = positions(self.model.config)
        self.turn = asyncio.Lock()  # two forward passes at once would share the cores and both finish late

    def who(self) -> dict:
        return self.known

    async def about(self, ids: list[list[int]], labels: list[list[int]], k: int, temperature: float):
        """Returns (tokens (N, K), log-probabilities (N, K + 1)) as numpy arrays; see Said in lib/methods/distillation/teacher.py."""
        async with self.turn:
            return await asyncio.to_thread(self._about, ids, labels, k, temperature)

    def _about(self, ids, labels, k, temperature):
        import torch
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        from lib.methods.distillation.teacher import Whole

        rows = [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]
        batch = DataCollatorForLanguageModeling(pad_token_id=0)(rows)
        with torch.inference_mode():
            batch = {name: value.to(self.device) for name, value in batch.items()}
            found = Whole(self.model, temperature, self.tokens).likeliest(batch, k)
        return found.tokens_NK.int().cpu().numpy(), found.logp_NK.cpu().numpy()

    def __call__(self, request) -> str:
        return "A teacher for distillation. Students call it through Ray (train.teacher: serve:NAME).\n"
