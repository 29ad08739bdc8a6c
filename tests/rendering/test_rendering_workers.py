"""Every row is rendered on the workers as TRL's trainers do it, and the exported model stops where the learnt turns end."""

import json
from types import SimpleNamespace

import pytest

from lib import data
from lib.config.job import Data, Job, Model
from lib.rendering import whole
from lib.rendering.base import base
from lib.rendering.sequences import Settings, sequences
from lib.runtime.failure import StopTraining
from tests.conftest import run_job
from tests.rendering.test_rendering import ALL, assistant, lengths, user


def job_of(tiny_model: str, rows: list[dict], folder, **data) -> Job:
    (folder / "w.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = Data(source=str(folder / "w.jsonl"), heldout_fraction=0.0, **data)
    return Job(str(folder / "run"), "sft", Model(tiny_model), section)


def test_workers_count_every_row_and_refuse_what_the_plan_did_not_see(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "BATCH", 3)
    rows = [{"messages": [user(q), assistant(a)]} for q, a in lengths(4, 6)]

    def count(job: Job, share=(0, 1)):
        return whole.count(job, SimpleNamespace(max_length=60), data.load(job.data, ("chat", "text")), share)

    with pytest.raises(StopTraining, match=r"train.max_length: 60 .*10 of 20 answers"):
        count(job_of(tiny_model, rows, tmp_path))
    job = job_of(tiny_model, rows, tmp_path, incomplete="accept")
    counts, shares = count(job), [count(job, (n, 2))["train"] for n in (0, 1)]
    assert vars(shares[0] + shares[1]) | {"first": None} == vars(counts["train"]) | {"first": None}
    assert (counts["train"].dropped, counts["train"].cut) == (4, 6)
    assert whole.summary(counts)["train"]["examples"] == 20


def test_generation_stops_where_turns_end(tiny_model, tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    tok = AutoTokenizer.from_pretrained(tiny_model)
    GenerationConfig(eos_token_id=tok.eos_token_id).save_pretrained(tmp_path)
    counts = SimpleNamespace(ends={"<|endoftext|>": 3, "<|im_end|>": 2})
    whole.stop_at_turn_ends(tmp_path, {"train": counts}, tok)
    ids = tok.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == ids


@pytest.mark.slow
def test_sequences_are_those_of_the_trainers(tiny_model, tmp_path):
    """Token for token, label for label, and the dropped rows, compared with TRL's own preparation."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    from lib.data import per_answer

    plain = {"output_dir": str(tmp_path), "max_length": 80, "report_to": "none", "use_cpu": True, "bf16": False}
    pairs = [
        {"prompt": [user(q)], "chosen": [assistant(a + "red")], "rejected": [assistant(a + "salt salt")]}
        for q, a in lengths(4, 6)
    ]
    turns = [{"messages": [user(q), assistant(a), user("more?"), assistant("no")]} for q, a in lengths(4, 6)]

    def ours(stage: str, kind: str, rows: list[dict], args):
        settings = Settings.of(stage, args)
        known = base(Model(tiny_model), settings)
        return settings, [found for _, found in sequences(known.tokenizer, kind, rows, settings)]

    args = SFTConfig(**plain)
    trained = SFTTrainer(tiny_model, args, train_dataset=per_answer(Dataset.from_list(turns))).train_dataset
    settings, found = ours("sft", "chat", turns, args)
    made = [(settings.cut(s.ids), settings.learnt(s)) for row in found for s in row]
    left = [(ids, [-100] * (len(ids) - learnt) + ids[len(ids) - learnt :]) for ids, learnt in made if learnt]
    assert left == [(row["input_ids"], row["labels"]) for row in trained] and len(left) < len(made)

    args = SFTConfig(**plain)
    texts = [{"text": a + q} for q, a in lengths(4, 6)]
    trained = SFTTrainer(tiny_model, args, train_dataset=Dataset.from_list(texts)).train_dataset
    settings, found = ours("sft", "text", texts, args)
    assert [settings.cut(s.ids) for row in found for s in row] == list(trained["input_ids"])

    args = DPOConfig(**plain)
    trained = DPOTrainer(tiny_model, args=args, train_dataset=Dataset.from_list(pairs)).train_dataset
    settings, found = ours("dpo", "preference", pairs, args)
    left = [(s[0].ids[: s[0].start], s[0].ids[s[0].start :], s[1].ids[s[1].start :]) for s in found if s[0].start < 80]
    assert left == [(r["prompt_ids"], r["chosen_ids"], r["rejected_ids"]) for r in trained] and len(left) == 16

    args = KTOConfig(**plain, per_device_train_batch_size=2)
    answers = [{"prompt": r["prompt"], "completion": r["rejected"], "label": i % 2 == 0} for i, r in enumerate(pairs)]
    trained = KTOTrainer(tiny_model, args=args, train_dataset=Dataset.from_list(answers)).train_dataset
    settings, found = ours("kto", "labelled", answers, args)
    left = [(s.ids[: s.start], s.ids[s.start :]) for (s,) in found if settings.learnt(s)]
    assert left == [(r["prompt_ids"], r["completion_ids"]) for r in trained] and len(left) == 16

    args = RewardConfig(**plain)
    trained = RewardTrainer(tiny_model, args=args, train_dataset=Dataset.from_list(pairs)).train_dataset
    settings, found = ours("reward", "preference", pairs, args)
    left = [tuple(s.ids for s in row) for row in found if max(len(s.ids) for s in row) <= 80]
    assert left == [(r["chosen_ids"], r["rejected_ids"]) for r in trained] and len(left) == 10


@pytest.mark.slow
def test_a_job_counts_all_its_rows_and_its_model_stops_at_the_turns_it_learnt(tiny_model, local_ray, tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    job = job_of(tiny_model, [{"messages": [user(q), assistant(a)]} for q, a in lengths(4, 6)], tmp_path)
    (tmp_path / "t.jinja").write_text(ALL.replace("<|im_end|>", "<|endoftext|>"))
    options = {
        "--model.base": tiny_model, "--model.chat_template": tmp_path / "t.jinja", "--data.source": job.data.source,
        "--data.heldout_fraction": 0, "--data.incomplete": "accept", "--train.max_length": 48, "--train.num_train_epochs": 1,
        "--scale.workers": 2, "--scale.global_batch": 4, "--scale.micro_batch": 2, "--run": job.run,
    }  # fmt: skip
    done = run_job("sft", *[word for option in options.items() for word in option], env=local_ray)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 epochs of 16 rows ≈ 4 steps" in done.stdout
    provenance = json.loads((tmp_path / "run/provenance.json").read_text())
    rendered = provenance["data"]["rendered"]
    assert provenance["steps"] == 4 and rendered["of_all_rows"]
    assert (rendered["train"]["dropped"], rendered["train"]["cut"], rendered["train"]["ends"]) == (
        4,
        6,
        {"<|endoftext|>": 20},
    )
    tok = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    ends = GenerationConfig.from_pretrained(tmp_path / "run/model").eos_token_id
    assert tok.convert_tokens_to_ids("<|endoftext|>") in ends and tok.eos_token_id in ends


def test_masked_reasoning_carries_no_loss(tiny_model, tmp_path):
    """The labels of TRL's batches, decoded: learnt, masked and removed reasoning, packed or not; a prompt is in none of them."""
    from trl import SFTConfig

    from jobs import sft

    said = [assistant(f"so {w}", reasoning_content=f"a {w} stone") for w in ("red", "salt", "stone")]
    rows = [{"messages": [user("<think> what?"), answer]} for answer in [*said, assistant("so red")]]
    blocks = [f"<think>\na {w} stone\n</think>\n\n" for w in ("red", "salt", "stone")] + [""]
    ends = ["so red<|im_end|>\n", "so salt<|im_end|>\n", "so stone<|im_end|>\n", "so red<|im_end|>\n"]
    expected = {
        "learn": [a + b for a, b in zip(blocks, ends, strict=True)],
        "mask": ends,
        "remove": ends,
    }
    for how, packing in (("learn", False), ("mask", False), ("remove", False), ("mask", True)):
        job = job_of(tiny_model, rows, tmp_path, reasoning=how)
        args = SFTConfig(
            str(tmp_path / "out"), report_to="none", use_cpu=True, bf16=False, max_length=512, packing=packing
        )
        trainer = sft.build(job, args, data.load(job.data, ("chat", "text")))
        decode = trainer.processing_class.decode
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
        learnt = [decode([t for t in row if t != -100]) for row in batch["labels"].tolist()]
        assert ("".join(learnt) if packing else learnt) == ("".join(ends) if packing else expected[how])
        whole = "".join(decode(row) for row in batch["input_ids"].tolist())
        assert all((block in whole) is (how != "remove") for block in blocks[:3])
        counts = whole_counts(job, args)
        assert counts.learnt == sum(int((row != -100).sum()) for row in batch["labels"]) and counts.parted == 0
    job = job_of(tiny_model, rows, tmp_path, reasoning="remove")
    args = SFTConfig(str(tmp_path / "out"), report_to="none", use_cpu=True, bf16=False, completion_only_loss=False)
    trained = sft.build(job, args, data.load(job.data, ("chat", "text"))).train_dataset
    assert trained["labels"] == trained["input_ids"]  # the loss is on all tokens
    assert whole_counts(job, args).learnt == sum(map(len, trained["labels"]))


def whole_counts(job: Job, args):
    return whole.count(job, args, data.load(job.data, ("chat", "text")), (0, 1))["train"]
