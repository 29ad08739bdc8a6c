"""Run directories with tiny random models, as training would leave them."""

import json

import pytest

from lib.evals import judge
from lib.evals.endpoint import Endpoint
from lib.evals.judge import Panel
from lib.run import Run
from tests.evals.api import Api


@pytest.fixture(scope="session")
def make_run(tiny_model, tmp_path_factory):
    """make_run("sft") → path of a finished run; its model is `tiny_model` with every weight moved by `noise`."""
    from lib.models import template_sha256

    root = tmp_path_factory.mktemp("runs")

    def make(name: str, stage: str = "sft", noise: float = 0.0, seed: int = 0, template: str | None = None) -> str:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        run = Run(str(root / name))
        torch.manual_seed(seed)
        tok = AutoTokenizer.from_pretrained(tiny_model)
        kind = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
        model = kind.from_pretrained(tiny_model, **({"num_labels": 1} if stage == "reward" else {}))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(noise * torch.randn_like(p))
        model.save_pretrained(run.at("model"))
        tok.save_pretrained(run.at("model"))
        job = {
            "run": run.path,
            "stage": stage,
            "model": {"base": tiny_model},
            "data": {"source": "demo"},
            "train": {"learning_rate": 1e-3},
        }
        run.write_json("job.yaml", job)
        log = [{"step": s, "loss": 2.0 / s, "epoch": s / 10} for s in range(1, 11)] + [{"step": 10, "eval_loss": 0.3}]
        run.write_text("metrics.jsonl", "".join(json.dumps(r) + "\n" for r in log))
        run.write_json(
            "provenance.json",
            {
                "status": "finished", "stage": stage, "parent": tiny_model,
                "template_sha256": template or template_sha256(tok),
                "model_sha256": name, "steps": 10, "tokens": 1000, "seconds": {"train": 2.0, "total": 5.0},
                "command": f"python jobs/{stage}.py --config configs/{stage}.yaml",
                "train": {"learning_rate": 1e-3, "seed": 42},
            },
        )  # fmt: skip
        return run.path

    return make


@pytest.fixture(scope="session")
def runs(make_run, tiny_model) -> dict[str, str]:
    """{"base": model folder, "sft", "dpo", "reward": run directories}"""
    made = {
        "base": tiny_model,
        "sft": make_run("sft", noise=0.02, seed=1),
        "dpo": make_run("dpo", "dpo", noise=0.03, seed=2),
    }
    return made | {"reward": make_run("reward", "reward", noise=0.02, seed=3)}


@pytest.fixture(scope="session")
def local_ray():
    """One Ray for the tests of a session; never another cluster on the machine."""
    import ray

    from lib.launch import connect

    with pytest.MonkeyPatch.context() as m:
        m.delenv("RAY_ADDRESS", raising=False)
        connect()
        yield
        ray.shutdown()


@pytest.fixture
def api():
    """api(say) → Api; closed at the end."""
    made = []

    def make(say) -> Api:
        made.append(Api(say))
        return made[-1]

    yield make
    for a in made:
        a.server.shutdown()
        a.server.server_close()


@pytest.fixture
def panel(tmp_path):
    """panel(Judge) → Panel that keeps its replies in a run of the test's."""
    return lambda j: Panel(j, Endpoint(j, Run(str(tmp_path / "run"))), judge.prompts(j.prompts))
