"""Teachers: stored and served ones give the same results as the teacher in memory, for its likeliest tokens; a truncated shard, a
killed replica and a killed job change nothing; answers by the teacher and by the student."""

import contextlib
import json
import math
import os
import random
import shutil
import subprocess
import tempfile
import time

import pytest
import torch

from lib.methods.distillation import teacher, trainer
from lib.run import Run
from tests import warm
from tests.conftest import PATIENCE, REPO, free_port, run_job
from tests.stages import stage

ARGS = ["--data.limit", "32", "--data.heldout_limit", "8", "--train.max_steps", "4", "--train.logging_steps", "1", "--train.max_length", "512", "--scale.global_batch", "4", "--scale.micro_batch", "2", "--train.save_steps", "2", "--train.report_to", "none", "--scale.precision", "fp32"]  # fmt: skip

UNTIL_IT_RUNS = """
import time
import ray
from ray import serve
ray.init(logging_level="ERROR", log_to_driver=False)
while (app := serve.status().applications.get("t")) is None or app.status != "RUNNING":
    time.sleep(0.2)
"""


def distil(run, student: str, of: str, *more: str, env: dict | None = None):
    return run_job("distill", "--run", str(run), "--model.base", student, "--train.teacher", of, *ARGS, *more, env=env)


def losses(run) -> list[float]:
    return [r["loss"] for r in Run(str(run)).metrics() if "loss" in r]


def test_a_rest_is_all_other_tokens_and_a_divergence_of_groups_is_no_larger():
    p, q = (torch.tensor(x).log_softmax(-1) for x in ([[2.0, 0.5, -1.0, -2.0]], [[0.0, 1.0, -3.0, 0.5]]))
    said = teacher.grouped(p, 2)
    assert said.tokens_NK.tolist() == [[0, 1]]
    assert said.logp_NK.exp()[0].tolist() == pytest.approx([*p.exp()[0, :2].tolist(), p.exp()[0, 2:].sum().item()])
    few = teacher.grouped_as(q, said.tokens_NK)
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        assert 0 < trainer.divergence(said.logp_NK, few, kind).item() < trainer.divergence(p, q, kind).item()
    every = teacher.grouped(p, 9)  # with all tokens but one, the remainder is that one, so nothing is lost
    grouped = trainer.divergence(every.logp_NK, teacher.grouped_as(q, every.tokens_NK), "forward_kl").item()
    assert grouped == pytest.approx(trainer.divergence(p, q, "forward_kl").item(), abs=1e-6)


def test_what_was_kept_is_what_the_model_says_and_a_damaged_shard_is_worked_out_anew(tiny_model, tmp_path):
    """Batches differ from those for which distributions were stored; computed by two workers; read again without the model; one
    shard truncated."""
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    dice, loaded = random.Random(0), []
    rows = []
    for _ in range(70):  # two shards
        ids, prompt = [dice.randrange(1024) for _ in range(dice.randrange(6, 20))], dice.randrange(1, 5)
        rows.append((ids, [-100] * prompt + ids[prompt:]))
    collate = DataCollatorForLanguageModeling(pad_token_id=0)
    whole = teacher.Whole(AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32"), 2.0, 1024)

    def load():
        loaded.append(1)
        return whole

    def kept(number: int, of: int, load=load):
        return teacher.Kept(
            str(tmp_path / "kept"), rows, "tiny", 8, 2.0, load, collate, "cpu", (number, of), 3, lambda: None
        )

    with pytest.raises(FileNotFoundError):  # the other worker's shard, for which a job's barrier waits
        kept(0, 2)
    both = kept(1, 2)  # starts when the first has already finished its share
    assert len(loaded) == 2
    batch = collate([{"input_ids": i, "labels": label} for i, label in rows[60:68]])
    said, want = both.about(batch), whole.likeliest(batch, 8)
    assert torch.equal(said.tokens_NK, want.tokens_NK) and torch.allclose(said.logp_NK, want.logp_NK, atol=1e-5)
    kept(0, 1, load=None)
    (shard,) = (tmp_path / "kept").glob("*/000001/said.safetensors")
    written = shard.read_bytes()
    shard.write_bytes(written[: len(written) // 2])
    again = kept(0, 1).about(batch)
    assert len(loaded) == 3 and shard.read_bytes() == written and torch.equal(again.logp_NK, said.logp_NK)
    # One bit of the numbers is flipped; the file is still readable.
    shard.write_bytes(written[:-9] + bytes([written[-9] ^ 1]) + written[-8:])
    again = kept(0, 1).about(batch)
    assert len(loaded) == 4 and shard.read_bytes() == written and torch.equal(again.logp_NK, said.logp_NK)


def test_answers_that_were_damaged_are_written_anew(tmp_path):
    """Otherwise a shard that lost a line would give each later prompt the answer of the next one."""
    from datasets import Dataset

    from lib.generation.generator import Answer
    from lib.generation.sampling import Sampling
    from lib.methods.distillation import teacher_answers

    asked = []

    class Echo:
        def generate(self, prompts, sampling):
            asked.append(len(prompts))
            return [[Answer(f"to {p[0]['content']}", [1], True)] for p in prompts]

    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": str(i)}], "completion": []} for i in range(70)])

    def written():
        found = teacher_answers.written(rows, str(tmp_path), "me", Echo, Sampling(), (0, 1), lambda: None)
        assert [r["completion"][0]["content"] for r in found] == [f"to {i}" for i in range(70)]

    written()
    written()
    assert asked == [64, 6]
    (shard,) = tmp_path.glob("*/00000000/answers.jsonl")
    shard.write_text("".join(shard.read_text().splitlines(keepends=True)[1:]))
    written()
    assert asked == [64, 6, 64]


def test_a_vocabulary_that_is_padded_further_changes_nothing(tiny_model):
    """As in Qwen2.5: 151,936 rows in its 0.5B and 152,064 in its 7B, with the same tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain, padded = (AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32") for _ in range(2))
    padded.resize_token_embeddings(1088)
    with torch.no_grad():
        padded.get_input_embeddings().weight[1024:] = 3.0  # untrained rows may be likely
    tokens = teacher.width(AutoTokenizer.from_pretrained(tiny_model))
    ids = torch.arange(5, 45).reshape(2, 20)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    small, large = (teacher.Whole(m, 1.0, tokens) for m in (plain, padded))
    student, _ = teacher.logits(padded, {"input_ids": ids}, teacher.labelled(batch))
    assert student.shape[1] == 1088
    args = trainer.DistillConfig(output_dir="", use_cpu=True)
    for said in (large.about(batch), large.likeliest(batch, 8)):
        assert said.logp_NK.exp().sum(1).tolist() == pytest.approx([1.0] * 38, abs=1e-5)
    torch.testing.assert_close(large.about(batch).logp_NK, small.about(batch).logp_NK)
    assert torch.equal(large.likeliest(batch, 8).tokens_NK, small.likeliest(batch, 8).tokens_NK)
    for said in (large.about(batch), large.likeliest(batch, 8), large.likeliest(batch, tokens)):
        assert trainer.soft_loss(said, student[:, :tokens], args)[0].abs().max() < 1e-5


@pytest.mark.parametrize(
    ("args", "says"),
    [({"replicas": 0}, "replicas: must be at least 1"), ({"cpus": "-1"}, "cpus: must be"), ({"run": "REWARD"}, "run: .* reward model")],
)  # fmt: skip
def test_a_teacher_that_cannot_be_served(args, says, runs):
    import click

    from serve.teacher import app

    with pytest.raises(click.ClickException, match=says):
        app({"run": runs["reward" if "run" in args else "sft"]} | {k: v for k, v in args.items() if k != "run"})


@pytest.mark.slow
def test_few_kept_tokens_say_how_much_is_outside(runs, local_ray, tmp_path):
    done = distil(tmp_path / "run", runs["sft"], runs["base"], "--train.top_k", "8", env=local_ray)
    assert done.returncode == 0, done.stderr[-2000:]
    first = Run(str(tmp_path / "run")).metrics()[0]
    assert 0.9 < first["teacher_outside"] < 1  # a random teacher is nearly uniform over 1,024 tokens: 1 − 8/1024
    assert list((tmp_path / "run" / "teacher").glob("*/000000/said.safetensors"))


@pytest.mark.slow
def test_the_students_own_answers_come_out_the_same_after_a_kill(runs, local_ray, tmp_path):
    """Half of the batches are the student's own answers; killed after step 2, it resumes to the same bits."""
    more = ["--train.on_policy", "0.5", "--train.answer_tokens", "8", "--train.hard_weight", "0"]
    whole = distil(tmp_path / "whole", runs["sft"], runs["base"], *more, env=local_ray)
    assert whole.returncode == 0, whole.stderr[-2000:]
    process = subprocess.Popen([warm.python(), "jobs/distill.py", "--run", str(tmp_path / "killed"), "--model.base", runs["sft"], "--train.teacher", runs["base"], *ARGS, *more], cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    killed = Run(str(tmp_path / "killed"))
    while process.poll() is None and not killed.fs.exists(killed.at("checkpoints/checkpoint-2/DONE.json")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = run_job("distill", "--resume", killed.path, env=local_ray)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(killed.path) == losses(tmp_path / "whole")
    assert killed.provenance()["model_sha256"] == Run(str(tmp_path / "whole")).provenance()["model_sha256"]


@pytest.mark.slow
def test_answers_of_a_teacher_with_other_tokens(runs, local_ray, tmp_path):
    """Sequence-level distillation: the teacher writes its answers once; a student with another vocabulary learns the texts."""
    from transformers import AutoTokenizer

    other = shutil.copytree(runs["base"], tmp_path / "other")
    tok = AutoTokenizer.from_pretrained(other)
    tok.add_tokens(["zebra"])
    tok.save_pretrained(other)
    more = ["--train.answers", "teacher", "--train.answer_tokens", "6", "--train.answer_temperature", "1", "--train.hard_weight", "1"]  # fmt: skip
    config = json.loads((other / "generation_config.json").read_text())
    config["eos_token_id"] = list(range(300))  # so that a random model's answer ends
    (other / "generation_config.json").write_text(json.dumps(config))
    done = distil(tmp_path / "run", runs["sft"], str(other), *more, env=local_ray)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for f in (tmp_path / "run" / "teacher").glob("answers-*/*/answers.jsonl") for line in f.read_text().splitlines()]  # fmt: skip
    finished = [x for x in lines if x["finished"]]
    assert len(lines) == 40 and 0 < len(finished) < 40
    assert "were not finished and are left out" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            ["--train.teacher", "serve:t", "--train.top_k", "8"],
            "train.teacher: serve:t can only be reached from the cluster that it runs in",
        ),
        (["--train.on_policy", "0.5", "--train.top_k", "8"], "train.top_k: the student's own answers can't be scored"),
        (["--train.keep", "/nowhere"], "train.keep: there is nothing to keep"),
        (["--train.top_k", "0"], "train.top_k: must be 1 or more"),
    ],
)
def test_wrong_requests(runs, tmp_path, more, says):
    done = distil(tmp_path / "run", runs["sft"], runs["base"], *more)
    assert done.returncode == 2 and says in done.stderr, done.stderr


def test_a_student_answers_prompts_and_no_plain_texts(tiny_model, tmp_path):
    from types import SimpleNamespace

    from lib import data
    from lib.methods.distillation import lessons
    from lib.stage import training_cli

    (tmp_path / "a.txt").write_text("the red lamp\n\nthe small stone\n")
    words = ["--model.base", tiny_model, "--data.source", str(tmp_path / "a.txt"), "--data.heldout_fraction", "0"]
    job = training_cli.parse(stage("distill"), words).job
    args, rows = (
        SimpleNamespace(teacher=tiny_model, keep=None, bf16=False, on_policy=0.5),
        data.load(job.data, ("text",)),
    )
    with pytest.raises(ValueError, match=r"train.on_policy: the student answers prompts"):
        lessons.trainer(job, args, rows, {"processing_class": None})


@pytest.mark.slow
@pytest.mark.soak
def test_a_served_teacher_is_killed_while_the_student_trains(runs, local_ray, tmp_path):
    """Two replicas; one is killed after the second step: training continues, and its losses are those of the undisturbed run."""
    import psutil

    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(REPO)}
    env["RAY_AUTH_MODE"] = "disabled"  # otherwise it would depend on the machine's history whether a token is required
    python, port = warm.python(), free_port()
    here = tempfile.mkdtemp(prefix="t", dir="/tmp")  # short, since it contains Ray's sockets

    def ray(*words, **options):
        command = [python, "-m", "ray.scripts.scripts", *words]
        subprocess.run(command, cwd=REPO, env=env, check=True, capture_output=True, **options)

    head = ["start", "--head", f"--port={port}", "--num-cpus=3", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={here}"]  # fmt: skip
    before = {p.pid for p in psutil.process_iter()}
    address = {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_AUTH_MODE": "disabled"}
    try:
        ray(*head)
        config = tmp_path / "teacher.yaml"
        app = {"name": "t", "route_prefix": "/", "import_path": "serve.teacher:app"}
        app["args"] = {"run": runs["base"], "replicas": 2, "cpus": 0.5}
        import yaml

        config.write_text(yaml.safe_dump({"http_options": {"port": free_port()}, "applications": [app]}))
        log = (tmp_path / "serve.log").open("w")
        server = subprocess.Popen(
            [python, "-m", "ray.serve.scripts", "run", str(config)], cwd=REPO, env=env | address, stdout=log, stderr=log
        )
        more = ["--train.top_k", "1023", "--train.max_steps", "12"]

        def replicas():
            found = psutil.process_iter(["cmdline"])  # None for a zombie
            return [p for p in found if p.pid not in before and "ServeReplica:t" in (p.info["cmdline"] or [""])[0]]

        waiting = subprocess.Popen([python, "-c", UNTIL_IT_RUNS], env=env | address)
        while waiting.poll() is None and server.poll() is None:
            time.sleep(0.2)
        waiting.kill()
        assert waiting.wait() == 0, (tmp_path / "serve.log").read_text()[-3000:]
        quiet = distil(tmp_path / "quiet", runs["sft"], "serve:t", *more, env=address)
        assert quiet.returncode == 0, quiet.stderr[-2000:]
        process = subprocess.Popen([warm.python(), "jobs/distill.py", "--run", str(tmp_path / "killed"), "--model.base", runs["sft"], "--train.teacher", "serve:t", *ARGS, *more], cwd=REPO, env=env | address, stdout=log, stderr=log)  # fmt: skip
        while process.poll() is None and len(losses(tmp_path / "killed")) < 2:
            time.sleep(0.02)
        replicas()[0].kill()
        assert process.wait(PATIENCE) == 0, (tmp_path / "serve.log").read_text()[-3000:]
        assert len(losses(tmp_path / "quiet")) == 12 and losses(tmp_path / "killed") == losses(tmp_path / "quiet")
        whole = distil(tmp_path / "whole", runs["sft"], runs["base"], "--train.max_steps", "12", env=local_ray)
        assert whole.returncode == 0 and losses(tmp_path / "quiet") == pytest.approx(
            losses(tmp_path / "whole"), abs=2e-5
        )
        server.terminate()
        server.wait(PATIENCE)
    finally:
        found = psutil.process_iter(["cmdline"])
        mine = [
            p for p in found if p.pid not in before and _about(p.info["cmdline"] or [], here, str(config), f":{port} ")
        ]
        mine += [c for p in mine for c in p.children(recursive=True)]
        for p in mine:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended with the previous one
                p.kill()
        psutil.wait_procs(mine, 30)
        shutil.rmtree(here, ignore_errors=True)


def _about(cmdline: list[str], *paths: str) -> bool:
    """Returns whether the command line contains one of the paths, which no other test uses."""
    return any(path in " ".join(cmdline) for path in paths)


def test_the_log_of_a_share_is_a_number():
    """A remainder of nothing gives no NaN in any divergence."""
    p = torch.tensor([[0.0, -200.0, -200.0]]).log_softmax(-1)
    said = teacher.grouped(p, 1)
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        assert math.isfinite(trainer.divergence(said.logp_NK, said.logp_NK, kind).item())
