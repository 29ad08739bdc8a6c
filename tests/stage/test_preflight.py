"""Settings that TRL, transformers and PEFT reject or ignore are rejected on the driver, by building what a worker will build."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from lib.config.job import Job, Model, Scale
from lib.stage import preflight
from lib.stage.plan import Plan
from tests import warm
from tests.conftest import PATIENCE, REPO

SFT = "trl.trainer.sft_config:SFTConfig"


def found(base: str, train: dict | None = None, lora: dict | None = None, gpu: bool = False, stage="sft", config=SFT, **model) -> list[str]:  # fmt: skip
    """Returns the messages about a job with these settings, in this process."""
    adapter = "none" if lora is None else "lora"
    job = Job("run", stage, Model(base, adapter=adapter, peft=lora or {}, **model), train=train or {})
    return preflight.check(job, config, gpu)


Q = {"target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"train": {"dataloader_prefetch_factor": 2}}, "train.dataloader_prefetch_factor: "),
        ({"train": {"accelerator_config": {"bogus": 1}}}, "train.accelerator_config: "),
        ({"train": {"debug": "bogus"}}, "train.debug: bogus is not a valid DebugOption"),
        ({"train": {"tf32": True}}, "train.tf32: "),
        ({"train": {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"bogus": 1}}}, "train.lr_scheduler_kwargs: "),
        ({"train": {"lr_scheduler_type": "cosine_with_min_lr"}}, "train.lr_scheduler_type: "),
        ({"train": {"optim_args": "momentum=1"}}, "train.optim_args: adamw_torch takes nothing of"),
        ({"train": {"optim": "galore_adamw"}}, "train.optim: "),
        ({"train": {"gradient_checkpointing_kwargs": {"use_rentrant": True}}}, "Nearest: use_reentrant."),
        ({"train": {"torch_compile_backend": "bogus"}}, "train.torch_compile_backend: there is no bogus"),
        ({"train": {"eos_token": "<|im_ned|>"}}, "train.eos_token: <|im_ned|> is no token of"),
        ({"train": {"model_init_kwargs": {"bogus": 1}}}, "train.model_init_kwargs: from_pretrained takes no bogus"),
        ({"attn_implementation": "bogus"}, "model.attn_implementation: there is no bogus. Known: eager, flash"),
        ({"attn_implementation": "flash_attn_2"}, "Nearest: flash_attention_2"),
        ({"lora": {"target_modules": ["q_prj"]}}, "model.peft.target_modules: q_prj matches nothing in the base. Nearest: q_proj"),
        ({"lora": {"target_modules": ["q_proj", "gate"]}}, "model.peft.target_modules: gate matches nothing in the base."),
        ({"lora": {"target_modules": "all_linear"}}, "model.peft.target_modules: all_linear matches nothing"),
        ({"lora": {"target_modules": []}}, "model.peft.target_modules: "),
        ({"lora": {"target_modules": ["norm"]}}, "model.peft.target_modules: Target module LlamaRMSNorm"),
        ({"lora": {"target_modules": ["lm_head"]}}, "model.peft.target_modules: TRL's trainers read the output layer"),
        ({"lora": Q | {"modules_to_save": ["lmhead"]}}, "model.peft.modules_to_save: lmhead matches nothing"),
        ({"lora": Q | {"exclude_modules": ["k_prj"]}}, "model.peft.exclude_modules: k_prj matches nothing"),
        ({"lora": Q | {"rank_pattern": {"k_prj": 4}}}, "model.peft.rank_pattern: k_prj matches nothing"),
        ({"lora": Q | {"layers_to_transform": 99}}, "model.peft.layers_to_transform: "),
        ({"lora": Q | {"layer_replication": [[0, 99]]}}, "model.peft.layer_replication: "),
        ({"lora": Q | {"layer_replication": [[0, 2], [1, 2]]}}, "model.peft.layer_replication: layers that share their weights"),
        ({"lora": Q | {"lora_bias": True}}, "model.peft.lora_bias: q_proj has no bias that lora_bias could be merged into"),
        ({"lora": Q | {"trainable_token_indices": [4]}}, "model.peft.trainable_token_indices: TRL's trainers read the output layer's own"),
        ({"lora": Q | {"trainable_token_indices": {"lm_head": [4]}}}, "model.peft.trainable_token_indices: TRL's trainers read"),
        ({"lora": Q | {"trainable_token_indices": [4096]}}, "model.peft.trainable_token_indices: the base has tokens 0 to 1023"),
        ({"lora": Q | {"loftq_config": {"loftq_bits": 4}}}, "model.peft.loftq_config: `loftq_config` specified but will be ignored"),
        ({"lora": Q | {"velora_config": {"rnak": 1}}}, "model.peft.velora_config: velora_config takes no rnak"),
        ({"lora": Q | {"layers_pattern": "layers"}}, "model.peft.layers_pattern: "),
        ({"train": {"loss_weights": [1.0, 2.0]}, "stage": "dpo", "config": "trl.trainer.dpo_config:DPOConfig"}, "train.loss_weights: "),
    ],
)  # fmt: skip
def test_refused(asked, says, tiny_model):
    said = found(tiny_model, **asked)
    assert len(said) == 1 and says in said[0], said


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"train": {"tf32": True, "bf16_full_eval": True}, "gpu": True},
        {"attn_implementation": "flash_attention_2", "gpu": True},
        {"attn_implementation": "sdpa", "lora": {}},
        {"lora": {"target_modules": "all-linear", "use_dora": True, "init_lora_weights": "pissa"}},
        {"lora": Q | {"modules_to_save": ["lm_head"], "rank_pattern": {"q_proj": 4}, "layers_to_transform": [1]}},
        {"lora": Q, "stage": "reward", "config": "trl.trainer.reward_config:RewardConfig"},
        {
            "train": {"keep_layers": 1, "teacher": "t"},
            "stage": "distill",
            "config": "lib.methods.distillation.trainer:DistillConfig",
        },
        {"train": {"model_init_kwargs": {"dtype": "bfloat16", "attention_dropout": 0.1, "use_safetensors": True}}},
        {"train": {"optim": "rmsprop", "optim_args": "alpha=0.9", "warmup_steps": 0.03, "eos_token": "<|im_end|>"}},
    ],
)
def test_right(asked, tiny_model):
    assert found(tiny_model, **asked) == []


def test_a_base_that_could_not_be_saved(tiny_model, tmp_path):
    """transformers would fail only after the last step, when model/ is written."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    greedy = {"do_sample": False, "temperature": 0.5, "transformers_version": "5.0.0"}
    (base / "generation_config.json").write_text(json.dumps(greedy))
    said = found(str(base))
    assert len(said) == 1 and said[0].startswith("model.base: ") and "temperature" in said[0]


def test_a_base_of_an_unknown_kind(tiny_model, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "config.json").write_text(json.dumps({"model_type": "bogus"}))
    said = found(str(base))
    assert len(said) == 1 and said[0].startswith("model.base: ") and "bogus" in said[0]


def plan(base: str, finished: bool = False) -> Plan:
    job = Job("run", "sft", Model(base, attn_implementation="bogus"), scale=Scale(device="cpu"))
    return Plan(job, {"model.base": ""}, None, False, finished, [], None, None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))


def test_a_process_that_is_too_slow_leaves_a_note(tiny_model, monkeypatch):
    monkeypatch.setattr(preflight, "LIMIT_S", 0.01)
    planned = plan(tiny_model)
    with preflight.Preflight(SFT, planned.job) as asked:
        asked.ask(planned)
    assert "left to the workers: it took more than 0 s" in planned.notes[0]
    assert asked.process.returncode is not None  # ended with the block


def test_a_process_that_fails_leaves_a_note(tiny_model):
    planned = plan(tiny_model)
    with preflight.Preflight(SFT, planned.job) as asked:
        asked.process.kill()
        asked.ask(planned)
    assert "left to the workers: nothing was printed" in planned.notes[0]


def test_a_finished_run_is_not_asked_about(tiny_model):
    planned = plan(tiny_model, finished=True)
    with preflight.Preflight(SFT, planned.job) as asked:
        asked.ask(planned)
    assert asked.process.returncode == -9


@pytest.mark.slow
def test_settings_that_were_right_once_are_not_tried_again(tiny_model, monkeypatch):
    monkeypatch.setattr(preflight, "LIMIT_S", PATIENCE)
    monkeypatch.setattr(sys, "executable", warm.python())
    planned = plan(tiny_model)
    planned.job = replace(planned.job, model=Model(tiny_model))
    planned.identities["model.base"] = "these weights"
    for started in (True, False):
        with preflight.Preflight(SFT, planned.job) as asked:
            assert bool(asked.process) == started
            asked.ask(planned)
    planned.identities["model.base"] = "others"
    for job in (planned.job, replace(planned.job, train={"max_steps": 3})):
        with preflight.Preflight(SFT, job) as asked:
            asked.ask(planned)
            assert asked.process
    assert not planned.notes


@pytest.mark.slow
def test_a_base_that_is_not_here_yet_is_looked_into_once_it_is(tiny_model, tmp_path, monkeypatch):
    """As when a machine's first job has a base that its workers will unpack or download."""
    monkeypatch.setattr(preflight, "LIMIT_S", PATIENCE)
    monkeypatch.setattr(sys, "executable", warm.python())
    planned = plan(str(tmp_path / "base"))  # its attention kernel doesn't exist
    with preflight.Preflight(SFT, planned.job) as asked:
        asked.ask(planned)
    shutil.copytree(tiny_model, tmp_path / "base")
    with preflight.Preflight(SFT, planned.job) as asked, pytest.raises(ValueError, match="there is no bogus"):
        asked.ask(planned)


@pytest.mark.slow
def test_the_command_refuses_before_ray(tiny_model, chats_file, tmp_path):
    """However slow the machine is: here the command waits."""
    right = ["--model.base", tiny_model, "--data.source", chats_file, "--run", str(tmp_path / "run"), "--model.adapter", "lora"]  # fmt: skip

    def typed(*options: str) -> subprocess.CompletedProcess:
        code = (
            f"import sys; sys.argv = ['jobs/sft.py', *{[*right, *options]!r}]; import lib.stage.preflight, runpy\n"
            f"lib.stage.preflight.LIMIT_S = {PATIENCE}; runpy.run_path('jobs/sft.py', run_name='__main__')"
        )
        return subprocess.run([warm.python(), "-c", code], cwd=REPO, capture_output=True, text=True)

    began = time.time()
    done = typed("--dry-run")
    print(f"dry run: {time.time() - began:.1f} s")
    assert done.returncode == 0 and "left to the workers" not in done.stdout, done.stdout + done.stderr
    done = typed("--model.peft.target_modules", "[q_prj]")
    assert done.returncode == 2 and "model.peft.target_modules: q_prj" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_nothing_heavy_is_imported_to_start_it():
    code = "import sys, lib.stage.preflight; print([m for m in ('torch', 'transformers', 'trl', 'peft', 'ray') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr
