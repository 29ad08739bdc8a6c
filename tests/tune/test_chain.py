"""A chain of jobs as what a search varies."""

import json

import pytest
import yaml

from lib.errors import UsageError
from lib.run import Run
from lib.runtime import checkpoint
from tests.conftest import PATIENCE, run_job
from tests.tune.test_search import of, search, start
from tune import plan, settings


@pytest.fixture
def config(tiny_model, chats_file, pairs_file, tmp_path):
    """config(changed keys of the step before, changed keys of the search) → YAML of a search over an SFT and the DPO that starts from it"""

    def write(step: dict | None = None, search: dict | None = None) -> str:
        job = {"model": {"base": tiny_model}, "scale": {"precision": "fp32", "global_batch": 16, "micro_batch": 16}}
        job["train"] = {"max_length": 128, "max_steps": 6, "logging_steps": 1, "lr_scheduler_type": "constant"}
        for name, data in (("sft", chats_file), ("dpo", pairs_file)):
            data = {"source": data, "heldout_fraction": 0.3}
            (tmp_path / f"{name}.yaml").write_text(json.dumps(job | {"data": data}))
        space = {"sft.train.learning_rate": {"loguniform": [1e-4, 1e-1]}, "train.beta": {"choice": [0.1, 0.5]}}
        keys = {
            "run": str(tmp_path / "search"), "stage": "dpo", "config": str(tmp_path / "dpo.yaml"),
            "before": {"sft": {"stage": "sft", "config": str(tmp_path / "sft.yaml")} | (step or {})},
            "set": {"model.base": "{sft}"}, "space": space, "metric": "eval_rewards/margins", "every": 2, "confirm": 0,
        }  # fmt: skip
        (tmp_path / "search.yaml").write_text(json.dumps(keys | (search or {})))
        return str(tmp_path / "search.yaml")

    return write


@pytest.fixture
def chain(config):
    """chain(…, as config's) → Plan"""
    return lambda *changed: plan.make(settings.parse(["--config", config(*changed)]).job)


def test_a_trial_may_be_a_chain_of_jobs(chain, tmp_path):
    p = chain()
    t = p.before.propose({"sft.train.learning_rate": 2e-3, "train.beta": 0.5}, "search")
    sft, dpo = p.jobs(t)
    assert (sft.stage, sft.train["learning_rate"], sft.data.heldout_half) == ("sft", 2e-3, "both")
    assert (dpo.stage, dpo.train["beta"], dpo.data.heldout_half) == ("dpo", 0.5, "first")
    assert dpo.model.base == sft.run and sft.run.endswith("trials/0000-sft") and dpo.run.endswith("trials/0000")
    again = p.jobs(p.before.propose(t.settings, "confirm", of=0, seed=2))
    assert [job.train["seed"] for job in again] == [44, 44]
    steps = yaml.safe_load(p.yaml(t, "runs/best"))["steps"]
    assert list(steps) == ["sft", "dpo"] and steps["sft"]["set"] == {"train.learning_rate": 2e-3}
    assert (
        steps["dpo"]["set"]["train.beta"] == 0.5 and ("before", f"sft: {tmp_path}/sft.yaml of jobs/sft.py") in p.lines()
    )


CHAINS = [
    ({"stage": "sfft"}, {}, "before.sft.stage: there is no training stage sfft."),
    ({"stagee": "sft"}, {}, "before.sft.stagee is not a key of a step. Nearest: stage."),
    ({"config": None}, {}, "before.sft.config: must be a str, is None."),
    ({"config": "no.yaml"}, {}, "there is no file"),
    ({"set": {"run": "x"}}, {}, "before.sft.set.run: can't be set: it follows from run."),
    ({"set": {"train.learning_rate": 1}}, {}, "space.sft.train.learning_rate: is also in `set`."),
    ({"set": {"scale.workers": 2}}, {}, "before.sft: scale.workers: must be 1, as in the job after it, is 2."),
    ({"set": {"model.adapter": "lorra"}}, {}, "model.adapter: must be one of"),
    ({}, {"space": {"train.beta": {"choice": [0.1, 0.5]}}}, "before.sft: no key of the space varies it."),
    ({}, {"set": {"model.base": "x"}}, "before.sft: no later job starts from it."),
    ({}, {"space": {"sft.train.seed": {"choice": [1, 2]}}}, "space.sft.train.seed: must not vary"),
    (
        {},
        {"space": {"sft.train.learning_rate": {"choice": [-1, 1]}}},
        "before.sft: train.learning_rate: must be above 0",
    ),
    ({}, {"scheduler": "pbt"}, "before: can't be combined with scheduler: pbt."),
    ({}, {"before": {"train": {"stage": "sft", "config": "x"}}}, "before.train: must have another name"),
]


@pytest.mark.parametrize(("step", "search", "says"), CHAINS)
def test_a_wrong_chain_is_refused_with_the_key(chain, step, search, says):
    with pytest.raises(UsageError) as e:
        chain(step, search)
    assert says in str(e.value)


@pytest.mark.slow
def test_the_best_chain_trains_to_the_same_bits_as_a_pipeline(config, local_ray, tmp_path):
    """It goes on after the budget in dollars, at $1 a second, has cut it off in the first job of its first chain."""
    keys = {"budget": {"trials": 2, "usd": 0.01}, "usd_per_hour": 3600, "concurrent": 1, "scheduler": "asha"}
    yaml_file = config({"set": {"train.save_steps": 2}}, keys)
    process = start(yaml_file, env=local_ray)
    said, _ = process.communicate(timeout=PATIENCE)
    (cut,) = Run(tmp_path / "search").read_json("report.json", "")["trials"]
    first = Run(f"{cut['run']}-sft")
    assert process.returncode == 1 and cut["status"] == "running" and cut["seconds"] > 0.01, said
    assert checkpoint.steps(first) == [2] and first.provenance()["status"] == "interrupted"
    assert not Run(cut["run"]).exists()
    said, report = search(yaml_file, "--budget.usd", "1000", env=local_ray)
    assert f"python jobs/pipeline.py --config {tmp_path}/search/best.yaml" in said
    trials = of(report, "search")
    for t in report["trials"]:
        sft, dpo = Run(f"{t['run']}-sft"), Run(t["run"])
        assert sft.finished() and dpo.job()["model"]["base"] == sft.path
        assert t["tokens"] == t["reports"][-1]["num_input_tokens_seen"] + sft.provenance()["tokens"]
    assert len({Run(f"{t['run']}-sft").provenance()["model_sha256"] for t in trials}) == 2
    done = run_job("pipeline", "--config", tmp_path / "search/best.yaml", env=local_ray)
    assert done.returncode == 0, done.stderr
    best = report["trials"][report["best"]]["run"]
    again = Run(tmp_path / "search/best/dpo").provenance()
    assert again["model_sha256"] == Run(best).provenance()["model_sha256"]
