"""A job whose adapter can't be merged: what is evaluated and served is what was trained, also after the run was moved."""

import asyncio
import json
import math
import shutil

import httpx
import pytest

from lib.errors import UsageError
from lib.run import Run
from lib.stage.declared import stages as declared
from serve import serving
from tests import stages
from tests.conftest import run_job
from tests.jobs.test_training import SHORT


@pytest.mark.slow
def test_it_is_evaluated_and_served_without_its_base_and_refused_elsewhere(
    tiny_model, chats_file, pairs_file, local_ray, tmp_path, monkeypatch
):
    base, first, run = tmp_path / "base", Run(tmp_path / "first"), Run(tmp_path / "runs/prefix")
    shutil.copytree(tiny_model, base)
    argv = ["--data.source", chats_file, *SHORT, "--scale.precision", "fp32", "--data.heldout_fraction", "0.3"]
    prefix = ["--model.adapter", "prefix", "--model.peft.num_virtual_tokens", "4", "--train.learning_rate", "0.02"]
    more = ["--model.peft.prefix_projection", "true", "--train.gradient_checkpointing", "true"]
    done = run_job("sft", "--model.base", base, *argv, *prefix, *more, "--run", first.path, env=local_ray)
    assert done.returncode == 0, done.stderr
    assert "which can't be merged" in done.stdout and "engine=transformers" in done.stdout
    [loss] = [row["eval_loss"] for row in first.metrics() if "eval_loss" in row]
    (tmp_path / "runs").mkdir()
    shutil.move(first.path, run.path)
    shutil.rmtree(base)

    given = ["--runs.base", tiny_model, "--runs.prefix", run.path, "--tasks", "perplexity", "--data.source", chats_file]
    done = run_job(
        "eval",
        *given,
        "--dtype",
        "float32",
        "--data.heldout_fraction",
        "0.3",
        "--run",
        tmp_path / "eval",
        env=local_ray,
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "eval/reports/report.json").read_text())["metrics"]
    measured = {m["run"]: math.log(m["value"]) for m in metrics if m["metric"] == "perplexity"}
    assert measured["prefix"] == pytest.approx(loss, abs=1e-5)
    assert abs(measured["base"] - loss) > 0.02

    from lib.generation.sampling import Sampling
    from lib.generation.transformers_generator import TransformersGenerator
    from serve.by_transformers import application

    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: True)
    planned = serving.plan(serving.parse({"run": run.path}))
    assert not planned.vllm  # by engine=auto
    where, question = f"{run.path}/model", [{"role": "user", "content": "what is the red lamp?"}]
    app = application(where, "prefix", "float32", "cpu", None)

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as http:
            body = {"model": where, "messages": question, "max_tokens": 12, "temperature": 0}
            return (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]["content"]

    [[answer]] = TransformersGenerator(where).generate([question], Sampling(max_new_tokens=12))
    assert answer.text and asyncio.run(ask()) == answer.text

    for keys, message in (
        ({"engine": "vllm"}, "vLLM loads whole models. Say engine: transformers"),
        (
            {"task": "embed"},
            "run: .* is a base with an adapter that can't be merged. Name a language model or an embed",
        ),
        ({"adapters.a": run.path}, "has no adapter: it is not a run with model.adapter: lora"),
    ):
        with pytest.raises(ValueError, match=message):
            serving.plan(serving.parse({"run": run.path} | keys))
    for name, stage in declared().items():
        if "causal_lm" in (stage.starts_from or ()):
            with pytest.raises(UsageError) as refused:
                stages.planned(name, ["--model.base", run.path, "--run", str(tmp_path / name)])
            [line] = [line for line in str(refused.value).splitlines() if line.startswith("model.base: ")]
            assert "can't be merged" in line and f"such as {base}, which it was trained from" in line
            assert "or train again with an adapter that is merged (model.adapter: lora)" in line
    done = run_job("quantize", "--model.base", run.path, "--run", tmp_path / "int8", env=local_ray)
    assert done.returncode and "can't be merged" in done.stderr
