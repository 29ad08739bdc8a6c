"""The queue of models: one answer per request, the same whatever the shards, and a lost process costs nothing."""

import os
import signal
import time

import psutil
import pytest

from lib.generation import pool as engine_module
from lib.generation.model_spec import Spec
from lib.generation.pool import Engine
from lib.generation.result_cache import Ledger
from lib.generation.sampling import Sampling
from lib.generation.transformers_generator import TransformersGenerator
from lib.run import Run

PROMPTS = [[{"role": "user", "content": f"what is {'the red ' * (i % 5)}lamp {i}?"}] for i in range(10)]
SAMPLING = Sampling(1.0, max_new_tokens=6, seed=4)


@pytest.fixture
def started(tiny_model, runs, local_ray):
    specs = [Spec("base", tiny_model, dtype="float32"), Spec("sft", runs["sft"], dtype="float32")]
    with Engine(specs, workers=1, say=lambda line: None) as engine:
        yield engine


@pytest.mark.slow
def test_sharded_is_unsharded(started, tiny_model, monkeypatch):
    """Shards of 3, made from prompts sorted by length, give the answers of a single process without a queue."""
    monkeypatch.setattr(engine_module, "SHARD", 3)
    own = TransformersGenerator(tiny_model)
    want = own.generate(PROMPTS, SAMPLING)
    asked = started.generate("base", PROMPTS, SAMPLING)
    assert asked.result(120) == want
    assert started.generate("base", PROMPTS, SAMPLING) is asked  # the same request is not repeated
    scores = started.score("base", PROMPTS, [a[0] for a in want]).result(120)
    assert [s.logprob for s in scores] == pytest.approx(
        [s.logprob for s in own.score(PROMPTS, [a[0] for a in want])], abs=1e-4
    )
    assert [(t["model"], t["done"], t["total"]) for t in started.timings()] == [("base", 10, 10)] * 2
    assert started.generate("base", [], SAMPLING).result(1) == []


@pytest.mark.slow
def test_contrastive_decoding_holds_two_models_and_the_amateur_is_part_of_the_name(started, tiny_model, runs):
    own, weak = TransformersGenerator(tiny_model), TransformersGenerator(f"{runs['sft']}/model")
    sampling = Sampling(max_new_tokens=6, amateur="sft")
    assert started.generate("base", PROMPTS, sampling).result(120) == own.generate(PROMPTS, sampling, other=weak)
    itself = Sampling(max_new_tokens=6, amateur="base")
    greedy = started.generate("base", PROMPTS, Sampling(max_new_tokens=6)).result(120)
    assert started.generate("base", PROMPTS, itself).result(120) == greedy


@pytest.mark.parametrize(("n", "each", "characters", "size"), [(40, 1, 0, 20), (200, 1, 0, 50), (10, 8, 0, 5), (12, 1, 40_000, 3), (1, 1, 0, 1), (0, 1, 0, 1)])  # fmt: skip
def test_two_processes_have_as_much_to_do(n, each, characters, size):
    assert engine_module._rows(n, each, characters) == size


@pytest.mark.slow
def test_a_killed_process_is_replaced(started):
    first = started.generate("base", PROMPTS, SAMPLING).result(120)
    (pid,) = _model_processes()
    os.kill(pid, signal.SIGKILL)
    again = started.generate("base", PROMPTS, Sampling(1.0, max_new_tokens=7, seed=4)).result(120)
    assert [a[0].tokens[:6] for a in again] == [a[0].tokens for a in first]
    assert _model_processes() != [pid]


@pytest.mark.slow
def test_what_the_ledger_has_is_not_done_again(tiny_model, local_ray, monkeypatch, tmp_path):
    """Half of the shards are from before, one of them damaged since, and the number of processes differs: the answers are the same."""
    monkeypatch.setattr(engine_module, "SHARD", 2)
    specs = [Spec("base", tiny_model, dtype="float32")]

    def answers(workers):
        with Engine(specs, workers, lambda line: None, Ledger(Run(str(tmp_path)))) as engine:
            return engine.generate("base", PROMPTS, SAMPLING).result(120), engine.timings()[0]

    want, timing = answers(1)
    files = sorted((tmp_path / "ledger").iterdir())
    assert len(files) == 5
    files[0].unlink()
    files[1].write_text(files[1].read_text()[:-40])  # truncated
    untouched = {f: f.stat().st_mtime_ns for f in files[2:]}
    got, again = answers(2)
    assert got == want and again["done"] == again["total"] == 10 and again["tokens"] == timing["tokens"]
    assert {f: f.stat().st_mtime_ns for f in files[2:]} == untouched and sorted(
        (tmp_path / "ledger").iterdir()
    ) == files


@pytest.mark.slow
def test_waiting_requests_fail_when_the_engine_closes(started):
    waiting = [started.generate(m, PROMPTS, Sampling(max_new_tokens=n)) for m in ("base", "sft") for n in range(1, 30)]
    time.sleep(0.1)
    started.close()
    with pytest.raises(RuntimeError, match=r"sft: stopped at 0 of 10 answers \(greedy\)"):
        waiting[-1].result(1)


def _model_processes() -> list[int]:
    """Returns the pids of the actors among this process's descendants."""
    found = []
    for p in psutil.Process().children(recursive=True):
        try:
            found += [p.pid] if p.cmdline()[0].startswith("ray::Worker") else []
        except (psutil.NoSuchProcess, IndexError):
            continue
    return found
