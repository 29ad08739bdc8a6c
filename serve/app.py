"""A run behind an OpenAI-compatible API, as a Ray Serve application.

serve run serve.app:app run=runs/dpo                       # http://127.0.0.1:8000/v1
serve run serve.app:app run=runs/sft replicas=2 at_once=16 port=8001
serve deploy configs/serve/pair.yaml                       # several, on a cluster

from openai import OpenAI
OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-").chat.completions.create(model="dpo", messages=[…])
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from ray import serve

from lib.run import Run, cache
from lib.runtime import logs
from serve import engines, session
from serve.guard import Guard
from serve.keeper import Keeper
from serve.serving import IDLE_S, Plan, parse, plan

ARRIVING = 1000
"""Most requests that a replica hasn't read yet; beyond that, Ray Serve's proxy answers 503."""


def app(args: dict[str, Any]) -> serve.Application:
    """Returns the application for these arguments (serve/serving.py). Raises ClickException, before starting anything, if one is wrong."""
    from lib.config.job import Scale
    from lib.runtime.hardware import gpus, worker_env

    try:
        planned = plan(parse(args))
    except ValueError as e:
        raise click.ClickException(str(e)) from None  # `serve run` prints it without a traceback
    s = planned.serving
    if (run := click.get_current_context(silent=True)) and run.info_name == "run":
        session.begin(run.params, s.port, s.timeout_s)
    gpu = gpus() > 0
    click.echo(f"logs    {log(planned)}: the engine's output")
    if s.max_replicas:
        most = {"min_replicas": s.replicas, "max_replicas": s.max_replicas, "downscale_delay_s": s.idle_s or IDLE_S}
        copies = {"autoscaling_config": most | {"target_ongoing_requests": max(1, s.at_once // 2)}}
    else:
        copies = {"num_replicas": s.replicas}
    return Endpoint.options(
        **copies,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(gpu), "runtime_env": {"env_vars": worker_env(Scale(), gpu)}},
        # More than a replica accepts, so that the replica itself answers 429 with Retry-After; Serve would answer 503.
        max_ongoing_requests=ARRIVING + s.at_once + s.waiting,
        max_queued_requests=ARRIVING,
        graceful_shutdown_timeout_s=s.timeout_s + 5,  # the guard ends each request at timeout_s
        health_check_period_s=2,  # the delay until a dead replica is replaced
    ).bind(planned)


def log(planned: Plan) -> Path:
    """Returns the file for the output of the engine and its libraries: in the served run if it is local, else in the cache."""
    name, run = f"serve-{engines.called(planned)}.log", Run(planned.base)
    here = not run.remote and Path(run.path).is_dir() and run.is_run()
    return Path(run.at(f"logs/{name}")) if here else cache("logs", name)


@serve.deployment
@serve.ingress()
class Endpoint:
    """One replica: the engine's own HTTP application, behind the guard."""

    def __init__(self, planned: Plan):
        logs.keep(log(planned))
        self.planned = planned

    async def __serve_build_asgi_app__(self):
        engine = engines.vllm if self.planned.vllm else engines.transformers
        self.keeper = Keeper(lambda: engine(self.planned))
        await self.keeper.begin()
        return Guard(self.planned, self.keeper)

    async def check_health(self) -> None:
        await self.keeper.check()
