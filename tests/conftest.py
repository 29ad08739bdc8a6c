"""Shared fixtures: a tiny random model with a real tokenizer, small data files, and run_job to run a job as a user does."""

import gc
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from lib.run import Run
from tests import warm

# Set before torch is imported: threads that share a core would busy-wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # as lib/runtime/ray_session.py, for Rays that tests start themselves

REPO = Path(__file__).parent.parent
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a small test model.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = [
    "red", "green", "blue", "small", "large", "round", "square", "lamp", "chair", "table",
    "door", "window", "garden", "river", "stone", "bread", "salt", "apple",
]  # fmt: skip

PATIENCE = 900
"""Seconds for which a test waits for a state before it fails: more than the slowest machine needs."""


def pytest_sessionstart() -> None:
    """Garbage is not collected while the tests are: their imports make none, and it takes a quarter of the time."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items) -> None:
    """Runs the files with the most end-to-end tests first, so that parallel processes don't end with a long one."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
    for item in items:
        if item.get_closest_marker("vllm") and not importlib.util.find_spec("vllm"):
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed here: make .venv-vllm/ready"))


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Folder of a random 2-layer Llama (64 wide) and a byte-level BPE tokenizer of 1,024 tokens with a ChatML template.

    A real vocabulary of 49,152 would make a model this small twenty times slower.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = str(tmp_path_factory.mktemp("tiny"))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    text = [f"the {a} {b} is near the {c}. what is {a}?" for a in WORDS for b in WORDS for c in WORDS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=1024, special_tokens=special, initial_alphabet=alphabet)
    )
    tok = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<|endoftext|>",
    )
    tok.chat_template = CHATML
    tok.save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"pad_token_id": tok.pad_token_id, "eos_token_id": tok.eos_token_id, "bos_token_id": tok.bos_token_id}
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(vocab_size=1024, max_position_embeddings=512, tie_word_embeddings=True, **shape, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory) -> str:
    """64 preference pairs as JSONL: the chosen answer names the colour, the rejected one doesn't."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {"prompt": f"what is the {a} {b}?", "chosen": f"the {a} {b} is {a}.", "rejected": f"salt {c}."}
        for i, a in enumerate(WORDS[:8])
        for b, c in zip(WORDS[8:16], WORDS[i:] + WORDS[:i], strict=False)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


@pytest.fixture(scope="session")
def chats_file(tmp_path_factory) -> str:
    """64 question-answer rows as JSONL in the messages format, answers of different lengths."""
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"what is the {a} {b}?"},
                {"role": "assistant", "content": " ".join([f"the {b} is {a}."] * (1 + i % 3))},
            ]
        }
        for i, a in enumerate(WORDS[:8])
        for b in WORDS[8:16]
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


@contextmanager
def s3_serving(host: str):
    """Yields the address of a real S3 server (moto) with an empty bucket `runs`, running in its own process on the address `host`."""
    import boto3

    address = f"http://{host}:{(port := free_port())}"
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    key = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    for _ in range(300):
        try:
            boto3.client("s3", endpoint_url=address, **key).create_bucket(Bucket="runs")
            break
        except Exception:  # not listening yet
            assert server.poll() is None, "the S3 server did not start"
            time.sleep(0.1)
    yield address
    server.kill()
    server.wait()


@pytest.fixture(scope="session")
def s3_server():
    with s3_serving("127.0.0.1") as address:
        yield address


@pytest.fixture
def s3(s3_server, monkeypatch):
    """Sets the environment of a user of that server, for this process and its children."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # an earlier test may have cached a file system without credentials
    for k, v in s3_environment(s3_server).items():
        monkeypatch.setenv(k, v)
    return s3_server


@pytest.fixture(scope="session")
def browser() -> str:
    """Path of a Chromium executable."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if not found:
        pytest.fail("no Chromium on this machine: apt-get install chromium (or put Chrome on PATH)")
    return found


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen, seconds: int = PATIENCE) -> None:
    """Returns when `process` listens on the port. Raises TimeoutError."""
    give_up = time.time() + seconds
    while time.time() < give_up:
        assert process.poll() is None, "the server ended"
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on {port}")


def s3_environment(address: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def run_job(stage: str, *args, env: dict | None = None, timeout: float = PATIENCE) -> subprocess.CompletedProcess:
    """Runs jobs/<stage>.py in a process forked from one that has imported the libraries; returns the CompletedProcess with text output."""
    clean = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [warm.python(), f"jobs/{stage}.py", *map(str, args)]
    return subprocess.run(command, cwd=REPO, env=clean | (env or {}), capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def make_run(tiny_model, tmp_path_factory):
    """make_run("sft") → path of a finished run. Its model is `tiny_model` with normal noise of deviation `noise` added to every weight."""
    from lib.models.chat_template import template_sha256

    root = tmp_path_factory.mktemp("runs")

    def make(name: str, stage: str = "sft", noise: float = 0.0, seed: int = 0, template: str | None = None) -> str:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        run = Run(str(root / name))
        torch.manual_seed(seed)
        tok = AutoTokenizer.from_pretrained(tiny_model)
        kind = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
        model = kind.from_pretrained(tiny_model, **({"num_labels": 1} if stage == "reward" else {}))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(noise * torch.randn_like(p))
        model.save_pretrained(run.at("model"))
        tok.save_pretrained(run.at("model"))
        job = {
            "run": run.path,
            "stage": stage,
            "makes": "reward" if stage == "reward" else "causal_lm",
            "model": {"base": tiny_model},
            "data": {"source": "demo"},
            "train": {"learning_rate": 1e-3},
        }
        run.write_json("job.yaml", job)
        log = [{"step": s, "loss": 2.0 / s, "epoch": s / 10} for s in range(1, 11)] + [{"step": 10, "eval_loss": 0.3}]
        run.write_text("metrics.jsonl", "".join(json.dumps(r) + "\n" for r in log))
        run.write_json(
            "provenance.json",
            {
                "status": "finished", "stage": stage, "parent": tiny_model,
                "template_sha256": template or template_sha256(tok),
                "steps": 10, "tokens": 1000, "seconds": {"train": 2.0, "total": 5.0},
                "command": f"python jobs/{stage}.py --config configs/{stage}.yaml",
                "train": {"learning_rate": 1e-3, "seed": 42},
            },
        )  # fmt: skip
        sign(run)
        return run.path

    return make


def sign(run: Run) -> None:
    """Records the hash of the run's current model/, as a job does at its end."""
    from lib.runtime import manifest

    files = manifest.hashes(Path(run.at("model")))
    made = {"model_sha256": manifest.digest(files), "files": {f"model/{n}": v for n, v in files.items()}}
    run.write_json("provenance.json", run.provenance() | made)


@pytest.fixture(scope="session")
def runs(make_run, tiny_model) -> dict[str, str]:
    """{"base": model folder, "sft", "dpo", "reward": run directories}"""
    made = {
        "base": tiny_model,
        "sft": make_run("sft", noise=0.02, seed=1),
        "dpo": make_run("dpo", "dpo", noise=0.03, seed=2),
    }
    return made | {"reward": make_run("reward", "reward", noise=0.02, seed=3)}


@pytest.fixture(scope="session")
def local_ray():
    """One Ray for the tests of a session, never an existing cluster on the machine. Yields the environment with which run_job uses it
    too, for tests that don't test how a job starts Ray: that takes a third of a tiny job's time or more."""
    import ray

    from lib.runtime.ray_session import connect

    with pytest.MonkeyPatch.context() as m:
        m.delenv("RAY_ADDRESS", raising=False)
        with pytest.MonkeyPatch.context() as started_by:
            started_by.setattr(sys, "executable", warm.python())  # also for its workers
            started_by.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")  # for workers of jobs, as in connect()
            connect()
        yield {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        ray.shutdown()


ASKED_FOR = ["lamp", "chair", "the red table", "a garden near the river",
             "small round bread on the table in the garden by the window", "salt", "stone", "door"]  # fmt: skip


@pytest.fixture(scope="module")
def generator(tiny_model):
    from lib.generation.transformers_generator import TransformersGenerator

    return TransformersGenerator(tiny_model)


@pytest.fixture(scope="session")
def prompts() -> list:
    """Questions of very different lengths about ASKED_FOR."""
    return [[{"role": "user", "content": f"what is {w}?"}] for w in ASKED_FOR]
