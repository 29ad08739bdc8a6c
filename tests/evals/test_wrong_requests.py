"""Wrong requests to jobs/eval.py: each is rejected before Ray starts, and the error names the key and a valid value."""

import json
import subprocess
import sys

import pytest
import yaml

from lib.evals import cli, registry
from lib.evals.job import EvalJob
from lib.evals.plan import plan
from lib.run import Run
from tests import warm
from tests.conftest import PATIENCE, REPO


def parse(*argv: str) -> EvalJob:
    return cli.parse(list(argv)).job


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rums.sft", "x"], r"--rums is not a key.*--runs"),
        (["--max_new_token", "3"], r"--max_new_token is not a key.*--max_new_tokens"),
        (["--data.sorce", "demo"], r"--data.sorce is not a key.*--data.source"),
        (["--limit", "many"], "limit"),
        (["--dtype", "bf16"], "dtype"),
        (["--config", "configs/evl.yaml"], r"no file configs/evl.yaml.*configs/eval.yaml"),
    ],
)
def test_wrong_options(argv, message):
    with pytest.raises(ValueError, match=message):
        parse(*argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [demo]", r"task is not a key.*tasks"),
        ("data: {limt: 3}", r"data.limt is not a key.*data.limit"),
        ("data: demo", "data is a section"),
        ("limit: lots", "limit"),
        ("tasks: [demo", "not valid YAML"),
    ],
)
def test_wrong_yaml(text, message, tmp_path):
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse("--config", str(tmp_path / "e.yaml"))


def test_ways_to_say_it(tmp_path):
    (tmp_path / "e.yaml").write_text("runs: {base: a/b}\nlimit: 7\ndata: {columns: {theirs: text}}\n")
    got = parse(
        "--config", str(tmp_path / "e.yaml"), "--runs.sft", "runs/sft", "--tasks", "demo", "kl", "--data.limit=3"
    )
    assert got.runs == {"base": "a/b", "sft": "runs/sft"} and got.tasks == ["demo", "kl"] and got.limit == 7
    assert got.data.columns == {"theirs": "text"} and got.data.limit == 3
    assert list(parse("--config", str(REPO / "configs/eval.yaml"), "--runs.sft", "x", "--runs.dpo", "y").runs) == [
        "base",
        "sft",
        "dpo",
    ]
    assert parse("--tasks=demo,kl", "--limit", "null").tasks == ["demo", "kl"]
    assert parse("--limit", "null").limit is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": []}, "tasks: there are none to run. Known: demo"),
        ({"tasks": ["perplexty"]}, r"tasks: there is no perplexty. Nearest: perplexity"),
        ({"tasks": ["demo"], "runs": {}}, r"runs: demo needs at least one"),
        ({"tasks": ["preference_accuracy"], "reward": None}, r"reward: preference_accuracy tests a reward run"),
        ({"tasks": ["kl"], "runs": {"sft": "SFT"}}, r"runs: kl compare two runs, and there is one"),
        ({"tasks": ["win_rate"], "reference": "stf"}, r"reference: stf is not one of runs \(sft, dpo\). Nearest: sft"),
        ({"tasks": ["win_rate"], "reference": "dpo"}, r"reference: dpo is the last of runs"),
        ({"limit": 0}, "limit: must be at least 1, is 0"),
        ({"workers": 0}, "workers: must be at least 1"),
        ({"runs": {"sft": "SFT", "dpo": "REWARD"}}, r"runs.dpo: .* is a reward model. Name a language model"),
        ({"reward": "SFT"}, r"reward: .*holds LlamaForCausalLM, not a reward model"),
        ({"runs": {"sft": "SFT", "reward": "DPO"}}, r"runs.reward: reward is what the reward run is called here"),
    ],
)
def test_wrong_jobs(change, message, runs):
    paths = {"SFT": runs["sft"], "DPO": runs["dpo"], "REWARD": runs["reward"]}
    good = {"runs": {"sft": "SFT", "dpo": "DPO"}, "reward": runs["reward"]} | change
    good["runs"] = {k: paths[v] for k, v in good["runs"].items()}
    good["reward"] = paths.get(good["reward"], good["reward"])
    with pytest.raises(ValueError, match=message):
        plan(EvalJob(**good))


def test_a_wrong_run_names_the_existing_ones(runs):
    """A misspelt run directory: the error names the nearest existing run."""
    with pytest.raises(ValueError, match=r"runs.sft: .*sftt.*sft"):
        plan(EvalJob(runs={"sft": runs["sft"] + "t"}))


def test_an_unfinished_run(make_run):
    run = Run(make_run("unfinished"))
    run.write_json("provenance.json", {"status": "failed"})
    with pytest.raises(ValueError, match=r"runs.x: .*(failed|no model)"):
        plan(EvalJob(runs={"x": run.path}))


def test_another_template_than_in_training(make_run):
    with pytest.raises(ValueError, match=r"runs.x: the chat template of .* is not the one it was trained with"):
        plan(EvalJob(runs={"x": make_run("template", template="0" * 64)}))


def test_win_rate_on_other_data_needs_a_judge(runs, pairs_file):
    asked = EvalJob(runs={"sft": runs["sft"], "dpo": runs["dpo"]}, tasks=["win_rate"])
    asked.data.source = pairs_file
    with pytest.raises(ValueError, match="reward: win_rate needs a judge"):
        plan(asked)


def test_no_held_out_rows(runs, pairs_file):
    asked = EvalJob(runs={"sft": runs["sft"]}, tasks=["perplexity"])
    asked.data.source, asked.data.heldout_fraction = pairs_file, 0.0
    with pytest.raises(ValueError, match=r"data.source: .* no held-out rows"):
        plan(asked)


def test_data_of_the_wrong_kind(runs, chats_file):
    asked = EvalJob(reward=runs["reward"], tasks=["preference_accuracy"])
    asked.data.source = chats_file
    with pytest.raises(ValueError, match=r"data\.source"):
        plan(asked)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"decoding": ["contrastive_bse"]}, r"decoding: contrastive_bse: bse is not one of runs \(base, sft\).*base"),
        ({"decoding": ["reward_beam_4"]}, "reward: reward_beam_4 asks a reward run"),
        ({"engine": "vllm"}, "engine: vllm is not installed here"),
    ],
)
def test_decodings_that_need_what_is_not_there(settings, says, runs, monkeypatch):
    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: False)
    with pytest.raises(ValueError, match=f"^{says}"):
        plan(EvalJob(runs={k: runs[k] for k in ("base", "sft")}, **settings))


def test_vllm_is_taken_where_it_is_and_can(runs, monkeypatch):
    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: True)
    asked = EvalJob(runs={"base": runs["base"]})
    assert asked.vllm() and plan(asked).specs[0].vllm and ("engine", "vLLM") in plan(asked).lines()
    asked.decoding = ["beam_4"]
    assert not asked.vllm() and ("engine", "transformers") in plan(asked).lines()
    asked.engine = "vllm"
    with pytest.raises(ValueError, match=r"^engine: vllm has no beam_4\. Say engine: transformers"):
        plan(asked)


def test_all_problems_at_once(runs):
    with pytest.raises(ValueError) as e:
        plan(EvalJob(runs={"a": "./nowhere"}, tasks=["kl", "dmo"], limit=0))
    assert [line.split(":")[0] for line in str(e.value).splitlines()] == ["tasks", "runs.a", "runs", "limit"]


def test_every_name_can_be_got():
    assert all(callable(registry.get(name)) for name in registry.names())
    with pytest.raises(ValueError, match="Known: demo"):
        registry.task("kl")  # measured, but not a task with its own score


HEAVY = ("torch", "transformers", "datasets", "ray", "vllm", "trl", "lm_eval")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--help"], 0, "--max_new_tokens"),
        (["--runs.a", "./nowhere", "--tasks", "dmo"], 2, "tasks: there is no dmo"),
    ],
)
def test_help_and_refusals_import_nothing_that_takes_seconds(args, code, says):
    script = (
        f"import atexit, runpy, sys; sys.argv = ['jobs/eval.py', *{args!r}]\n"
        f"atexit.register(lambda: print('heavy:', [m for m in {HEAVY!r} if m in sys.modules]))\n"
        "runpy.run_path('jobs/eval.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == code and says in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert "heavy: []" in done.stdout


def test_dry_run_starts_nothing(runs, tmp_path):
    config = tmp_path / "e.yaml"
    config.write_text(
        yaml.safe_dump({"run": str(tmp_path / "out"), "runs": {"sft": runs["sft"]}, "tasks": ["demo", "perplexity"]})
    )
    command = [warm.python(), "jobs/eval.py", "--config", str(config), "--dry-run"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and "Dry run" in done.stdout and "demo, perplexity" in done.stdout
    assert not (tmp_path / "out").exists()


def test_schema_knows_every_key():
    done = subprocess.run(
        [sys.executable, "jobs/eval.py", "--schema"], cwd=REPO, capture_output=True, text=True, timeout=PATIENCE
    )
    told = json.loads(done.stdout)
    assert set(told["properties"]) == set(EvalJob.__dataclass_fields__) and told["additionalProperties"] is False
    assert told["properties"]["limit"]["description"].startswith("Maximum")


def test_the_shipped_config_parses():
    assert parse("--config", str(REPO / "configs/eval.yaml")).reference == "sft"


@pytest.mark.parametrize(
    "file", sorted(REPO.glob("configs/eval*.yaml")) + sorted(REPO.glob("configs/eval/*.yaml")), ids=str
)
def test_shipped_configurations_load(file, tmp_path, monkeypatch):
    from lib.evals import cli
    from lib.evals.plan import plan

    monkeypatch.setenv("SHOESTRING_HOME", str(tmp_path))  # the checkout may have the quickstart's runs
    request = cli.parse(["--config", str(file)]).job
    with pytest.raises(ValueError) as refused:  # the runs they name don't exist, and nothing else is wrong
        plan(request)
    assert all(
        line.split(":")[0].startswith(("runs.", "reward", "task_data.")) for line in str(refused.value).splitlines()
    )
