"""The plan's estimates of time and money: from measured rates, and none without them."""

import json

import pytest

from lib.evals.report import time_estimate


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("lib.runtime.hardware.local_gpus", lambda: 0)
    return tmp_path / "rates.json"


def test_parameters_are_counted_by_the_headers(tiny_model, make_run):
    from transformers import AutoModelForCausalLM

    want = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_model).parameters())
    assert time_estimate.parameters(tiny_model) == want
    assert time_estimate.parameters(make_run("counted")) == want
    assert time_estimate.parameters("no/such-model") is None


def test_the_last_evaluation_tells_the_rate(cache):
    """Twice the parameters take twice as long; a measured rate replaces the typical one."""
    assert time_estimate.seconds("cpu", 1000, 10**8) == (1000 * 10**8 / time_estimate.TYPICAL, "at a common CPU's rate")
    assert time_estimate.seconds("gpu", 1000, 10**8) is None and time_estimate.seconds("cpu", 1000, None) is None
    work = [
        {"model": "a", "what": "answers (greedy)", "seconds": 10.0, "tokens": 1000},
        {"model": "a", "what": "log-probabilities", "seconds": 1.0, "tokens": 10**6},
        {"model": "small", "what": "answers (greedy)", "seconds": 10.0, "tokens": 10**6},
    ]
    time_estimate.remember("gpu", work, {"a": 10**8, "small": 10**6})
    assert time_estimate.seconds("gpu", 500, 2 * 10**8) == (10.0, "at the rate of the last evaluation here")
    cache.write_text("{")
    assert time_estimate.seconds("gpu", 500, 10**8) is None


def test_too_few_tokens_tell_nothing(cache):
    time_estimate.remember(
        "cpu", [{"model": "a", "what": "answers (greedy)", "seconds": 1.0, "tokens": 90}], {"a": 10**8}
    )
    assert not cache.exists()


def test_the_line(tiny_model, monkeypatch):
    monkeypatch.setattr("lib.runtime.hardware.local_cpus", lambda: 2)
    monkeypatch.setattr(time_estimate, "parameters", lambda base: 2 * 10**8)
    tokens = int(time_estimate.TYPICAL * 3600 / (2 * 10**8))  # an hour for each of two models
    said = time_estimate.line(["a", "b"], tokens, None, 0.5)
    assert said == "about 60 minutes at most for those answers, 2 at a time, $0.50, at a common CPU's rate"
    monkeypatch.setattr("lib.runtime.hardware.local_gpus", lambda: 2)  # two GPUs cost twice as much
    time_estimate.cache("rates.json").write_text(json.dumps({"gpu": time_estimate.TYPICAL}))
    assert time_estimate.line(["a", "b"], tokens, None, 0.5).endswith("$1.00, at the rate of the last evaluation here")
    monkeypatch.setattr("lib.runtime.hardware.local_gpus", lambda: 0)
    assert time_estimate.line(["a"], tokens, 1, 0.0).startswith(
        "about 60 minutes at most for those answers, 1 at a time, at"
    )
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert time_estimate.line(["a"], tokens, None, 0.5) == ""
