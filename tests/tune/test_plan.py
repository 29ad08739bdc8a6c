"""What is checked before a search starts Ray, and what a trial's job is."""

import json
import sys

import pytest
import yaml

from lib.config.command_line import Request
from lib.errors import UsageError
from lib.stage import preflight, training_cli
from tests import warm
from tests.conftest import PATIENCE
from tune import plan, settings

SPACE = {"train.learning_rate": {"loguniform": [1e-4, 1e-2]}, "model.peft.r": {"choice": [2, 4]}}


@pytest.fixture
def made(tiny_model, chats_file, tmp_path):
    """made(changed keys of the search, changed keys of the job) → Plan"""

    def make(search: dict | None = None, job: dict | None = None) -> plan.Plan:
        base = {
            "model": {"base": tiny_model, "adapter": "lora"},
            "data": {"source": chats_file},
            "train": {"max_length": 128},
        }
        base["data"]["heldout_fraction"] = 0.3
        (tmp_path / "job.yaml").write_text(json.dumps(base | (job or {})))
        tree = {"run": str(tmp_path / "search"), "stage": "sft", "config": str(tmp_path / "job.yaml"), "space": SPACE}
        (tmp_path / "search.yaml").write_text(json.dumps(tree | (search or {})))
        request: Request = settings.parse(["--config", str(tmp_path / "search.yaml")])
        return plan.make(request.job)

    return make


def test_a_plan_names_the_space_and_the_limits(made):
    p = made({"budget": {"trials": 5, "hours": 2}, "scheduler": "asha"})
    said = dict(p.lines())
    assert p.mode == "min" and p.corners == 4 and said["budget"] == "5 trials or 2 hours"
    assert [line for label, line in p.lines() if label == "space"] == [
        "train.learning_rate: loguniform 0.0001 to 0.01",
        "model.peft.r: choice 2, 4",
    ]


def test_a_trials_job_has_its_settings_and_those_of_the_search(made):
    p = made({"set": {"train.warmup_steps": 2}, "every": 5})
    t = p.before.propose({"train.learning_rate": 2e-3, "model.peft.r": 4}, "search")
    (job,) = p.jobs(t)
    assert (job.train["learning_rate"], job.model.peft["r"], job.train["warmup_steps"]) == (2e-3, 4, 2)
    assert (job.train["save_steps"], job.train["eval_steps"], job.train["eval_strategy"]) == (5, 5, "steps")
    assert job.data.heldout_half == "first" and job.run.endswith("search/trials/0000")
    (again,) = p.jobs(p.before.propose(t.settings, "confirm", of=0, seed=2))
    assert (again.train["seed"], again.data.heldout_half) == (44, "second")


def test_best_yaml_is_the_trials_job(made, tmp_path):
    """Read back by the stage's own parser, whatever its keys look like."""
    p = made({"set": {"train.warmup_steps": 2}})
    t = p.before.propose({"train.learning_rate": 2e-3, "model.peft.r": 4}, "search")
    (tmp_path / "best.yaml").write_text(p.yaml(t, p.jobs(t)[0].run))
    assert [training_cli.parse(p.steps[0].stage, ["--config", str(tmp_path / "best.yaml")]).job] == p.jobs(t)


def test_the_halves_of_the_heldout_rows_are_all_of_them(made):
    from lib import data

    base = made().base.data
    rows = {h: [] for h in ("both", "first", "second")}
    for half, found in rows.items():
        base.heldout_half = half
        check = data.check(
            base, ("chat",), True, lambda kind, side, row, place, to=found: side == "heldout" and to.append(place)
        )
        assert check.heldout_rows == len(found) and check.rows == 64 - len(rows["both"])
    assert sorted(rows["first"] + rows["second"]) == sorted(rows["both"]) and rows["first"] and rows["second"]


def test_a_search_goes_on_only_as_it_began(made, tmp_path):
    p = made()
    p.before.add("start")
    kept = json.loads(json.dumps(vars(p.settings), default=vars)) | {"job_sha256": p.identity()}
    p.before.run.write_text("search.yaml", yaml.safe_dump(kept))
    assert made({"budget": {"trials": 99}, "concurrent": 1}).settings.budget.trials == 99
    with pytest.raises(UsageError, match=r"^every: the search in .* has 10, this one 20\.\nrun: name another --run"):
        made({"every": 20})
    with pytest.raises(UsageError, match=r"^config: .*job.yaml has changed since the search in .* began"):
        made(job={"train": {"max_length": 100}})


WRONG = [
    ({"spase": {}}, "spase is not a key of this job. Nearest: space, stage."),
    ({"stage": "sfft"}, "stage: there is no training stage sfft. Known: "),
    ({"stage": "eval"}, "stage: there is no training stage eval."),
    ({"config": "configs/no.yaml"}, "--config: there is no file "),
    ({"space": {}}, "space: names no key to vary"),
    (
        {"space": {"train.learning_rat": {"uniform": [0.1, 1]}}},
        "train.learning_rat is not a key of this job. Nearest: --train.learning_rate",
    ),
    ({"space": {"train.learning_rate": {"uniform": [-1, 1]}}}, "train.learning_rate: must be above 0, is -1"),
    (
        {"space": {"train.learning_rate": {"choice": ["fast"]}}},
        "train.learning_rate: must be a number (float), is fast",
    ),
    (
        {"space": {"train.learning_rate": {"uniform": [1, 0]}}},
        "space.train.learning_rate: uniform must have its lower end first",
    ),
    ({"space": {"train.save_steps": {"choice": [1]}}}, "space.train.save_steps: can't be set: it follows from every."),
    ({"space": {"train.seed": {"randint": [0, 9]}}}, "space.train.seed: must not vary: the best seed is luck"),
    (
        {"space": {"scale.workers": {"choice": [1, 2]}}},
        "space.scale.workers: must not vary: all trials need the same processes.",
    ),
    (
        {"space": {"train.label_smoothing_factor": {"choice": [0, 0.1]}}},
        "metric: eval_loss means something else at each",
    ),
    ({"set": {"model.peft.r": 2}}, "space.model.peft.r: is also in `set`."),
    ({"set": {"model.peft.rr": 2}}, "model.peft.rr is not a key of this job."),
    ({"set": {"data": {"limit": 3}}}, "set.data: is a section. Name its key with dots: data.NAME."),
    ({"set": {"run": "x"}}, "set.run: can't be set: it follows from run."),
    ({"search": "grid"}, "space.train.learning_rate: search: grid needs listed values"),
    ({"search": "tpe"}, "search: must be one of"),
    ({"second_objective": "seconds", "scheduler": "asha"}, "second_objective: seconds: only with search: optuna and"),
    ({"second_objective": "seconds", "search": "random"}, "second_objective: seconds: only with search: optuna and"),
    ({"scheduler": "ashaa"}, "scheduler: must be one of"),
    ({"every": 0}, "every: must be at least 1, is 0."),
    ({"halving": 1}, "halving: must be above 1, is 1"),
    ({"concurrent": 0}, "concurrent: must be at least 1, is 0."),
    ({"budget": {"trials": None}}, "budget: set trials, hours or usd"),
    ({"budget": {"usd": 2}}, "budget.usd: set usd_per_hour"),
    ({"budget": {"hours": -1}}, "budget.hours: must be above 0, is -1"),
    ({"budget": {"euros": 1}}, "budget.euros is not a key of this job."),
    ({"budget": 3}, "budget is a section of keys, but holds 3."),
    ({"metric": " "}, "metric: is empty."),
    ({"metric": "dmo.exact"}, "metric: there is no task dmo. Nearest: demo."),
    ({"metric": "demo.exakt"}, "metric: demo has no exakt. Nearest: exact."),
    ({"metric": "mt_bench"}, "evaluate: judge.url: mt_bench needs a judge."),
    ({"metric": "demo", "evaluate": {"limt": 3}}, "evaluate: --limt is not a key of this job. Nearest: --limit"),
    ({"metric": "demo", "evaluate": {"limit": 0}}, "evaluate: limit: must be"),
    ({"metric": "demo", "evaluate": {"engine": "vllm"}}, "evaluate.engine: can't be set: it follows from the trial"),
    ({"metric": "demo", "evaluate": {"runs.trial": "x"}}, "evaluate.runs.trial: can't be set"),
    ({"metric": "demo", "evaluate": {"decoding": ["greedy", "t=1"]}}, "evaluate.decoding: name one"),
    ({"metric": "demo", "stop_by": "demo.exact"}, "stop_by: demo.exact: must be a column of metrics.jsonl"),
    ({"evaluate": {"limit": 3}}, "evaluate: has no effect, since metric is a column"),
    ({"stop_by": "loss"}, "stop_by: only with a task as metric."),
    (
        {"metric": "demo", "scheduler": "asha", "space": {"train.label_smoothing_factor": {"choice": [0, 0.1]}}},
        "stop_by: eval_loss means something else at each",
    ),
    (
        {"scheduler": "pbt"},
        "space.model.peft.r: can't change during training. With scheduler: pbt, vary only train.learning_rate and",
    ),
    ({"scheduler": "pbt", "budget": {"trials": 1}}, "budget.trials: must be at least 2 with scheduler: pbt"),
    (
        {"scheduler": "pbt", "space": {"train.weight_decay": {"uniform": [0, 1]}}},
        "space.train.weight_decay: must stay above 0",
    ),
    (
        {"set": {"data.heldout_fraction": 0}},
        "metric: eval_loss: there are no held-out rows to measure. Raise data.heldout_fraction",
    ),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_a_wrong_search_is_refused_with_the_key(made, change, says):
    with pytest.raises(UsageError) as e:
        made(change)
    assert says in str(e.value)


def test_a_corner_that_is_no_job_is_named(made):
    """A rank of 70,000 is beyond what the job allows, but only one end of the space has it."""
    with pytest.raises(UsageError, match=r"model.peft.r: must be .* is 70000\. \(with .*r 70000\)"):
        made({"space": SPACE | {"model.peft.r": {"choice": [2, 70000]}}})


def test_what_only_the_trainer_refuses_is_refused_before_the_search(made, monkeypatch):
    """One of two values, which the plan accepts."""
    monkeypatch.setattr(preflight, "LIMIT_S", PATIENCE)
    monkeypatch.setattr(sys, "executable", warm.python())
    planned = made({"space": {"train.optim_args": {"choice": ["amsgrad=True", "bogus=1"]}}})
    with pytest.raises(UsageError, match="takes nothing of 'bogus=1'"):
        plan.preflight(planned)


def test_keys_of_the_job_can_be_set_on_the_command_line(tmp_path):
    (tmp_path / "search.yaml").write_text(json.dumps({"set": {"data.limit": 3, "scale.workers": 2}, "space": SPACE}))
    words = [
        "--config",
        str(tmp_path / "search.yaml"),
        "--set.data.limit",
        "160",
        "--set.model.peft.target_modules=[q_proj]",
    ]
    s = settings.parse([*words, "--space.train.warmup_steps", "{randint: [0, 5]}", "--every", "7", "--dry-run"]).job
    assert s.set == {"data.limit": 160, "scale.workers": 2, "model.peft.target_modules": ["q_proj"]}
    assert s.space == SPACE | {"train.warmup_steps": {"randint": [0, 5]}} and s.every == 7
    with pytest.raises(UsageError, match=r"^--set.data.limit: \[1 is not valid YAML"):
        settings.parse(["--set.data.limit", "[1"])


def test_a_task_as_the_metric_is_in_the_plan(made):
    p = made({"metric": "demo", "evaluate": {"limit": 20, "max_new_tokens": 8}, "scheduler": "asha"})
    said = dict(p.lines())
    assert (
        p.mode == "max" and said["compares"] == "demo of 20 examples, measured of each finished trial, higher is better"
    )
    assert said["stopping"].startswith("asha by eval_loss") and [p.half(r) for r in ("start", "search", "confirm")] == [
        "first",
        "first",
        "second",
    ]
    assert (
        made({"metric": "win_rate", "evaluate": {"data.source": "demo"}}).mode == "max"
        and made({"metric": "perplexity"}).mode == "min"
    )
    # A setting that changes the loss can be searched if no loss is compared.
    space = {"train.label_smoothing_factor": {"choice": [0, 0.1]}}
    assert made({"metric": "demo", "space": space}).corners == 2


def test_every_problem_is_named_at_once(made):
    with pytest.raises(UsageError) as e:
        made({"every": 0, "halving": 0, "space": {"train.seed": {"choice": [1]}}})
    assert len(str(e.value).splitlines()) == 3
