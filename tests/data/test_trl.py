"""TRL's own trainers accept the loaded rows, including tools."""

import json

import pytest

from lib.config.job import Data
from lib.data import load, per_answer

TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% if 'tool_calls' in m %}CALL {{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    cpu = {"use_cpu": True, "bf16": False, "max_steps": 1, "per_device_train_batch_size": 2, "max_length": 512}
    return {"output_dir": str(tmp_path / "out"), "report_to": [], "save_strategy": "no", "disable_tqdm": True} | cpu


@pytest.fixture
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def loaded(tmp_path, rows, want):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return load(Data(str(path), heldout_fraction=0), want).train


def test_sft_with_tool_calls(tmp_path, settings, tiny_model, tokenizer):
    from trl import SFTConfig, SFTTrainer

    using = {
        "conversations": [
            {"from": "human", "value": "Sky?"},
            {"from": "function_call", "value": '{"name": "look", "arguments": {"up": true}}'},
            {"from": "observation", "value": "grey"},
            {"from": "gpt", "value": "Grey."},
        ],
        "tools": '[{"name": "look", "parameters": {}}]',
    }
    plain = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "tools": ""}
    rows = loaded(tmp_path, [using, plain], ("chat",))
    trainer = SFTTrainer(tiny_model, SFTConfig(**settings), train_dataset=rows, processing_class=tokenizer)
    assert [tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset] == [
        'TOOLS [{"type": "function", "function": {"name": "look", "parameters": {}}}]\n'
        "<|im_start|>user\nSky?<|im_end|>\n"
        '<|im_start|>assistant\nCALL [{"type": "function", "function": {"name": "look", "arguments": {"up": true}}}]'
        "<|im_end|>\n<|im_start|>tool\ngrey<|im_end|>\n<|im_start|>assistant\nGrey.<|im_end|>\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n",
    ]
    assert trainer.train().training_loss > 0


def test_labels_leave_out_what_is_marked(tmp_path, settings, tiny_model, tokenizer):
    """Decodes the labels that aren't -100: a marked answer carries no loss but is in the context of later ones."""
    from trl import SFTConfig, SFTTrainer

    said = [("user", "One?"), ("assistant", "WRONG"), ("user", "Two?"), ("assistant", "Right.")]
    messages = [{"role": role, "content": text} for role, text in said]
    messages[1]["weight"] = 0
    rows = per_answer(loaded(tmp_path, [{"messages": messages}] * 2, ("chat",)))
    trainer = SFTTrainer(tiny_model, SFTConfig(**settings), train_dataset=rows, processing_class=tokenizer)
    assert len(trainer.train_dataset) == 2
    for row in trainer.train_dataset:
        assert tokenizer.decode([t for t in row["labels"] if t != -100]) == "Right.<|im_end|>\n"
        assert "WRONG<|im_end|>" in tokenizer.decode(row["input_ids"])


def test_dpo_and_reward_with_transcripts(tmp_path, settings, tiny_model, tokenizer):
    from transformers import AutoModelForSequenceClassification
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    start = "\n\nHuman: Sky?\n\nAssistant: "
    rows = loaded(
        tmp_path, [{"chosen": f"{start}Grey {i}.", "rejected": f"{start}No."} for i in range(4)], ("preference",)
    )
    dpo = DPOTrainer(tiny_model, args=DPOConfig(**settings), train_dataset=rows, processing_class=tokenizer)
    assert dpo.train().training_loss == pytest.approx(0.6931, abs=0.01)  # log 2: the policy equals its reference
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    reward = RewardTrainer(model, args=RewardConfig(**settings), train_dataset=rows, processing_class=tokenizer)
    assert tokenizer.decode(reward.train_dataset[3]["chosen_ids"]) == (
        "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\nGrey 3.<|im_end|>\n"
    )
    assert reward.train().training_loss > 0


def test_what_is_learnt_is_what_the_template_makes_of_the_row(tmp_path, settings, tiny_model, tokenizer):
    """Character for character, with numbers that other JSON readers (such as datasets') round."""
    from transformers import AutoModelForSequenceClassification
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    numbers = {"lr": 2.5e-11, "price": 0.30000000000000004, "big": 123456789.12345679, "id": 2**70}
    call = {"type": "function", "function": {"name": "f", "arguments": numbers}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"enum": [1e-12, 0.1]}}}]
    prompt = [{"role": "user", "content": "q"}]
    calling = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    saying = [{"role": "assistant", "content": "no"}]

    def rendered(messages):
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)

    chats = [
        {"messages": prompt + calling, "tools": tools},
        {"messages": prompt + saying},
    ]  # every second row has other keys
    train = per_answer(loaded(tmp_path, chats * 3, ("chat",)))
    sft = SFTTrainer(tiny_model, SFTConfig(**settings), train_dataset=train, processing_class=tokenizer)
    assert tokenizer.decode(sft.train_dataset[0]["input_ids"]) == rendered(prompt + calling)
    pairs = loaded(
        tmp_path, [{"prompt": prompt, "chosen": calling, "rejected": saying, "tools": tools}] * 2, ("preference",)
    )
    dpo = DPOTrainer(tiny_model, args=DPOConfig(**settings), train_dataset=pairs, processing_class=tokenizer)
    row = dpo.train_dataset[1]
    assert tokenizer.decode(row["prompt_ids"] + row["chosen_ids"]) == rendered(prompt + calling)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    reward = RewardTrainer(model, args=RewardConfig(**settings), train_dataset=pairs, processing_class=tokenizer)
    assert tokenizer.decode(reward.train_dataset[1]["chosen_ids"]) == rendered(prompt + calling)
    assert [trainer.train().training_loss > 0 for trainer in (sft, dpo, reward)] == [True] * 3
