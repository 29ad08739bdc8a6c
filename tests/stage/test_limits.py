"""Values that a key's type allows but that make no sense are rejected on the driver before any process starts."""

import importlib.util
import re
from pathlib import Path

import pytest

from lib.config import adapters, command_line, ranges, trl_fields
from lib.config.job import Model
from lib.evals import plan as eval_plan
from lib.evals.job import EvalJob
from lib.evals.judging.openai_client import Judge
from lib.evals.report.gate import Rule
from lib.methods.quantization import job as quantize_job
from lib.methods.quantization.job import QuantizeJob, Source
from lib.stage import limits
from tests.stages import planned, stage

CONFIGS = {name: stage(name).config for name in ("sft", "dpo", "pretrain", "embed", "classify")}


@pytest.fixture
def refused(tiny_model, chats_file, pairs_file, tmp_path, monkeypatch):
    """refused(stage, *options) → the error message for a job that is valid except for the options."""
    monkeypatch.setattr("lib.runtime.hardware.local_gpus", lambda: 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def said(stage: str, *options: str) -> str:
        source = pairs_file if stage == "dpo" else chats_file
        argv = ["--model.base", tiny_model, "--data.source", source, "--run", str(tmp_path / "run"), *options]
        with pytest.raises(ValueError) as e:
            planned(stage, argv)
        return str(e.value)

    return said


@pytest.mark.parametrize(
    ("stage", "options", "says"),
    [
        ("sft", ["--train.learning_rate", ".nan"], "train.learning_rate: must be a number of less than 20 digits, is nan."),
        ("sft", ["--train.learning_rate", ".inf"], "train.learning_rate: must be a number"),
        ("sft", ["--train.max_length", "0"], "train.max_length: must be at least 2"),
        ("sft", ["--train.max_length=-5"], "train.max_length: must be at least 2"),
        ("sft", ["--train.weight_decay=-1"], "train.weight_decay: must be at least 0, is -1.0."),
        ("sft", ["--train.max_grad_norm=-1"], "train.max_grad_norm: must be at least 0"),
        ("sft", ["--train.adam_beta1", "1.5"], "train.adam_beta1: must be at least 0 and below 1, is 1.5."),
        ("sft", ["--train.adam_beta2", "1"], "train.adam_beta2: must be at least 0 and below 1"),
        ("sft", ["--train.save_steps", "0"], "train.save_steps: must be above 0"),
        ("sft", ["--train.save_steps", "2.5"], "train.save_steps: must be a whole number of steps, or a share"),
        ("sft", ["--train.save_total_limit=-1"], "train.save_total_limit: must be at least 1"),
        ("sft", ["--train.logging_steps", "0"], "train.logging_steps: must be above 0"),
        ("sft", ["--train.seed=-1"], "train.seed: must be at least 0"),
        ("sft", ["--train.seed", "4294967296"], "train.seed: must be at least 0 and at most 4294967295"),
        ("sft", ["--train.max_steps", "1" + 30 * "0"], "train.max_steps: must be a number of less than 20 digits"),
        ("sft", ["--train.max_steps", "100000000000"], "train.max_steps: must be at least -1 and at most 1e10"),
        ("sft", ["--train.loss_type", "bogus"], "train.loss_type: there is no bogus. Known: nll, dft."),
        ("dpo", ["--data.reasoning", "mask"], "data.reasoning: mask works in jobs/sft.py only, and this is jobs/dpo.py. Use learn or remove."),
        ("sft", ["--data.reasoning", "mask", "--train.completion_only_loss", "false"], "data.reasoning: mask leaves the reasoning out of the loss"),
        ("dpo", ["--train.neftune_noise_alpha", "5"], "train.neftune_noise_alpha: is for jobs/sft.py, and this is jobs/dpo.py."),
        ("sft", ["--train.packing_strategy", "bdf"], "train.packing_strategy: there is no bdf. Known: bfd, bfd_split, wrapped. Nearest: bfd"),
        ("sft", ["--train.truncation_mode", "keep_strat"], "Nearest: keep_start"),
        ("sft", ["--train.padding_free", "true"], "train.padding_free: without train.packing"),
        ("sft", ["--train.packing", "true", "--train.max_length", "null"], "train.packing: fills rows of train.max_length"),
        ("sft", ["--train.ignore_data_skip", "true"], "train.ignore_data_skip: a resumed run"),
        ("sft", ["--train.label_names", "[x]"], "train.label_names: lib/data prepares"),
        ("sft", ["--train.lr_scheduler_type", "reduce_lr_on_plateau"], "train.lr_scheduler_type: reduce_lr_on_plateau goes by"),
        ("sft", ["--train.gradient_checkpointing_kwargs", "3"], "train.gradient_checkpointing_kwargs: must be keys and values"),
        ("sft", ["--train.model_init_kwargs", "{trust_remote_code: true}"], "train.trust_remote_code"),
        ("sft", ["--train.eval_strategy", "steps", "--data.heldout_fraction", "0"], "train.eval_strategy: steps: there are no held-out rows"),
        ("sft", ["--train.eval_on_start", "true", "--data.heldout_fraction", "0"], "train.eval_on_start: True: there are no held-out rows"),
        ("sft", ["--model.adapter", "lora", "--model.peft.lora_dropout", "1.5"], "model.peft.lora_dropout: must be at least 0 and below 1"),
        ("sft", ["--model.adapter", "lora", "--model.peft.lora_alpha", "0"], "model.peft.lora_alpha: must be above 0"),
        ("sft", ["--model.adapter", "lora", "--model.peft.rank_pattern", "{q_proj: 0}"], "model.peft.rank_pattern: must be at least 1"),
        ("sft", ["--model.adapter", "lora", "--model.peft.init_lora_weights", "eva"], "model.peft.init_lora_weights: eva starts"),
        ("dpo", ["--model.adapter", "pissa"], "model.adapter: pissa changes the base's weights, and the base without the adapter"),
        ("kto", ["--model.adapter", "lora", "--model.peft.init_lora_weights", "olora"], "model.peft.init_lora_weights: olora changes"),
        ("dpo", ["--model.adapter", "lora", "--model.peft.bias", "all"], "model.peft.bias: all trains some of the base's weights"),
        ("sft", ["--model.adapter", "lora", "--model.peft.inference_mode", "true"], "model.peft.inference_mode can't be set: it follows from the stage"),
        ("sft", ["--model.revision", "main"], "model.revision: main would be a commit on a hub"),
        ("sft", ["--eval.limit=-1"], "eval.limit: must be at least 1"),
        ("sft", ["--eval.max_new_tokens", "0"], "eval.max_new_tokens: must be at least 1"),
        ("sft", ["--scale.max_failures=-7"], "scale.max_failures: must be at least -1"),
        ("sft", ["--scale.min_workers", "0"], "scale.min_workers: must be at least 1"),
        ("sft", ["--data.split", "test"], "data.split: test selects part of a hub dataset"),
        ("sft", ["--data.name", "en"], "data.name: en selects part"),
        ("sft", ["--data.source", ""], "data.source: is empty"),
        ("sft", ["--run", " "], "run: is empty"),
        ("dpo", ["--train.loss_type", "[bogus]"], "train.loss_type: there is no bogus. Known: sigmoid"),
        ("dpo", ["--train.loss_type", "[]"], "train.loss_type: there is none"),
        ("dpo", ["--train.loss_weights", "[1, 2]"], "train.loss_weights: 2 weights for 1 losses"),
        ("dpo", ["--train.loss_weights", "[0]"], "train.loss_weights: all are 0"),
        ("dpo", ["--train.beta", "0"], "train.beta: must be above 0"),
        ("dpo", ["--train.loss_type", "[exo_pair]"], "train.label_smoothing: exo_pair"),
        ("dpo", ["--train.loss_type", "[aot]", "--train.f_divergence_type", "forward_kl"], "train.f_divergence_type: aot"),
        ("dpo", ["--train.loss_type", "[aot]", "--train.use_weighting", "true"], "train.use_weighting: aot"),
        ("dpo", ["--train.loss_type", "[sigmoid, sft]", "--train.use_weighting", "true"], "train.use_weighting: sft of train.loss_type"),
        ("dpo", ["--train.loss_type", "[aot]"], "train.loss_type: aot sorts the pairs on one device at a time"),
        ("dpo", ["--train.loss_type", "[sigmoid, aot_unpaired]", "--scale.micro_batch", "32", "--scale.workers", "2"], "Set scale.workers: 1 and scale.micro_batch: 32"),
        ("sft", ["--train.average_tokens_across_devices", "false"], "train.average_tokens_across_devices: false would weigh"),
        ("dpo", ["--train.f_divergence_type", "kl"], "train.f_divergence_type: there is no kl. Known: reverse_kl"),
    ],
)  # fmt: skip
def test_values_that_mean_nothing(stage, options, says, refused):
    assert says in refused(stage, *options)


@pytest.mark.parametrize(
    "options",
    [
        ["--train.save_steps", "0.5", "--train.logging_steps", "1", "--train.warmup_steps", "0.03"],
        ["--train.max_steps=-1", "--train.max_grad_norm", "0", "--scale.max_failures=-1", "--train.seed", "0"],
        ["--train.eval_strategy", "steps"],
        ["--train.max_length", "null", "--train.padding_free", "true"],
        ["--train.include_num_input_tokens_seen", "all", "--data.limit", "1", "--train.label_smoothing_factor", "0.1"],
    ],
)
def test_values_at_their_limits_are_right(options, tiny_model, chats_file, tmp_path, monkeypatch):
    monkeypatch.setattr("lib.runtime.hardware.local_gpus", lambda: 0)
    argv = ["--model.base", tiny_model, "--data.source", chats_file, "--run", str(tmp_path / "run"), *options]
    planned("sft", argv)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"limit": -1}, "limit: must be at least 1, is -1."),
        ({"seed": -1}, "seed: must be at least 0"),
        ({"usd_per_hour": float("nan")}, "usd_per_hour: must be a number"),
        ({"accuracy_floor": 65.0}, "accuracy_floor: must be at least 0 and at most 1, is 65.0."),
        ({"workers": 99}, "workers: 99 models at the same time need as many CPU cores, this machine has 2. Use 2"),
        ({"judge": Judge(usd_per_million_in=-1.0)}, "judge.usd_per_million_in: must be at least 0"),
        ({"gate": [Rule("perplexity", "base", at_most=float("inf"))]}, "gate: must be a number"),
        ({"task_data": {"demo": "x.jsonl"}}, "task_data.demo: no task of that name takes a file"),
        ({"task_data": {"perplexity": "nowhere.jsonl"}}, "task_data.perplexity: nowhere.jsonl doesn't exist"),
        ({"tasks": ["bertscore"], "task_data": {"bertscore": "no.jsonl"}}, "task_data.bertscore: no.jsonl doesn't exist"),
    ],
)  # fmt: skip
def test_evaluations(change, says, tiny_model, chats_file, monkeypatch):
    monkeypatch.setattr("lib.runtime.hardware.local_gpus", lambda: 0)
    monkeypatch.setattr("lib.runtime.hardware.local_cpus", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    good = {"runs": {"base": tiny_model}, "tasks": ["perplexity"]}
    with pytest.raises(ValueError) as e:
        eval_plan.plan(EvalJob(**good | change))
    assert says in str(e.value) and "data.source" not in str(e.value)


def test_a_file_for_a_task_has_no_split_of_the_data(tiny_model, chats_file):
    """data.split selects a part of data.source."""
    job = EvalJob(runs={"base": tiny_model}, tasks=["perplexity"], task_data={"perplexity": chats_file})
    job.data.source, job.data.split, job.data.name = "org/name", "validation", "en"
    assert eval_plan.plan(job).checks["perplexity"].heldout_rows == 64


def test_quantisations(tiny_model, chats_file, monkeypatch):
    monkeypatch.setattr("lib.runtime.hardware.local_gpus", lambda: 0)
    monkeypatch.setattr("lib.runtime.hardware.local_cpus", lambda: 2)
    job = QuantizeJob(model=Source(tiny_model), tasks=[], limit=0, workers=3, task_data={"gsm8kk": "x"}, seed=-1)
    job.data.source = chats_file
    with pytest.raises(ValueError) as e:
        quantize_job.plan(command_line.Request(job))
    for says in ("limit: must be", "workers: 3 models", "task_data.gsm8kk: no task", "Nearest: gsm8k", "seed: must be"):
        assert says in str(e.value)


def test_known_words_are_the_installed_libraries():
    """Their lists, read from the libraries' source, if they have one."""
    from transformers.training_args import trainer_log_levels

    trainers = Path(importlib.util.find_spec("trl").submodule_search_locations[0], "trainer")
    dpo, sft = ((trainers / f"{stage}_trainer.py").read_text(encoding="utf-8") for stage in ("dpo", "sft"))
    assert set(limits.LOSSES["dpo"]) == set(re.findall(r'loss_type == "(\w+)"', dpo))
    assert f"args.loss_type not in {limits.LOSSES['sft']!r}".replace("'", '"') in sft
    assert set(ranges.WORDS["train.f_divergence_type"]) == set(re.findall(r'f_divergence_type == "(\w+)"', dpo))
    found = re.search(r"f_divergence_loss_types = (\{.*?\})", dpo)
    assert set(re.findall(r'"(\w+)"', found[1])) == limits.DIVERGENT
    for key in ("train.log_level", "train.log_level_replica"):
        assert set(ranges.WORDS[key]) == set(trainer_log_levels)
    texts = {k: f.help for k, f in trl_fields.read(CONFIGS["sft"]).items()}
    for key in ("packing_strategy", "train_sampling_strategy", "include_num_input_tokens_seen"):
        for word in ranges.WORDS[f"train.{key}"]:
            assert not isinstance(word, str) or word in texts[key], (key, word)


def test_every_key_with_limits_exists():
    kinds = {f"train.{k}" for stage in CONFIGS for k in trl_fields.read(CONFIGS[stage])}
    kinds |= {f"model.{k}" for k in vars(Model())}
    kinds |= {f"model.peft.{k}" for config in adapters.configs() for k in trl_fields.read(config)}
    assert {k for k in (*ranges.RANGES, *ranges.WORDS) if k.startswith(("train.", "model."))} <= kinds
