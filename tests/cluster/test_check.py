"""python -m cluster check: every provoked failure is reported at its step. Without boxes: the real provider, the simulated markets."""

import getpass
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from ray.autoscaler import tags as ray

from cluster import check
from cluster import provider as provider_module
from cluster.check import rented, report, steps
from cluster.check.pipeline import Pipeline, Result
from cluster.check.rented import Asked, Cluster
from cluster.check.steps import Check
from cluster.market import registry
from tests.cluster.nodes import WORKER
from tests.cluster.test_check_box import HERE


@pytest.fixture
def home(tmp_path, monkeypatch, sim):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHOESTRING_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("SHOESTRING_PACE", "1000")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for name in ("VAST", "RUNPOD"):
        monkeypatch.setenv(f"{name}_URL", sim.env[f"{name}_URL"])
        monkeypatch.setenv(f"{name}_API_KEY", sim.env[f"{name}_API_KEY"])
    monkeypatch.setattr(provider_module, "STALE_S", 0.0)
    monkeypatch.setattr("cluster.market.http.sleep", lambda s: None)
    return tmp_path


@pytest.fixture
def make(home):
    """make(**asked) → a Check that has found key and offer and is about to ask for confirmation."""

    def make(**asked):
        made = Check(Cluster("check-test", Asked(("vast",), **asked)), lambda question: False)
        assert made.run() is False
        assert outcomes(made) == {"key accepted": "passed", "offer found": "passed"}
        made.cluster.write()
        return made

    return make


@pytest.fixture
def renting(make, monkeypatch):
    """renting(**asked) → (check, provider): a box is rented, and its market polled, as the autoscaler does it."""
    over, threads = threading.Event(), []

    def make_rented(**asked):
        made = make(**asked)
        provider = provider_module.Provider(
            rented.autoscaler_config.complete(rented._with_head_here(made.cluster.config))["provider"],
            made.cluster.name,
        )
        provider.create_node(made.cluster.config["available_node_types"]["box"]["node_config"], WORKER, 1)

        def ask():
            while not over.wait(0.05):
                provider.refresh()

        threads.append(threading.Thread(target=ask))
        threads[0].start()
        [made.entry] = made.cluster.rentals()
        return made, provider

    yield make_rented
    over.set()
    for thread in threads:
        thread.join()


def outcomes(made: Check) -> dict[str, str]:
    return {r.step: r.outcome for r in made.pipeline.results if r.outcome != "not reached"}


def failed(made: Check, step: str, prove) -> str:
    """Returns the reason why the step fails; asserts that it does."""
    assert made.pipeline.run(step, prove) is False
    [result] = [r for r in made.pipeline.results if r.outcome == "failed"]
    assert result.step == step
    return result.detail


def test_the_cheapest_box_is_offered_at_its_price_and_declining_rents_nothing(home, sim, capsys):
    asked = []
    made = Check(Cluster("check-test", Asked(("vast", "runpod"))), lambda question: bool(asked.append(question)))
    assert made.run() is False
    made.end()
    [offer] = [r for r in made.pipeline.results if r.step == "offer found"]
    need = made.cluster.needed_cuda() or 0
    fits = [m for m in sim.get("machines") if m["market"] == "vast" and m["count"] == 1 and m["cuda"] >= need]
    cheapest = min(fits, key=lambda m: m["min_bid"])
    assert offer.detail.startswith(f"vast, 1 × {cheapest['gpu']}, spot")
    price = made.usd_per_hour
    assert cheapest["min_bid"] < price < cheapest["min_bid"] * 1.1 + 0.02
    assert (
        f"${price:.3f}/h" in asked[0]
        and f"${price * 0.75:.2f} for the 45" in asked[0]
        and "never more than $1" in asked[0]
    )
    assert sim.bill()["rentals"] == [] and not made.pipeline.passed


def test_without_a_key_or_with_a_missing_one_nothing_begins(home, monkeypatch, capsys):
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert check.main(["--market", "runpod", "--yes"]) == 2
    assert "runpod: there is no API key" in capsys.readouterr().err


def test_a_wrong_key_is_named(home, sim, monkeypatch):
    monkeypatch.setenv("VAST_API_KEY", "wrong-key-123")
    report_path = home / "check.json"
    assert check.main(["--market", "vast", "--yes", "--report", str(report_path)]) == 1
    told = json.loads(report_path.read_text())
    assert [s["outcome"] for s in told["steps"]] == ["failed"] + ["not reached"] * (len(steps.STEPS) - 1)
    assert told["steps"][0]["step"] == "key accepted" and "vast" in told["steps"][0]["detail"].lower()
    assert "wrong-key-123" not in report_path.read_text() and sim.bill()["rentals"] == []


def test_no_offer_under_the_price_is_named(home):
    made = Check(Cluster("check-test", Asked(("vast",), max_usd_per_hour=0.001)), lambda question: False)
    made.run()
    assert outcomes(made) == {"key accepted": "passed", "offer found": "failed"}
    assert "0 offers of a GPU at up to $0.001/h" in made.pipeline.results[1].detail
    assert "Raise --max-price" in made.pipeline.results[1].detail


def test_a_budget_that_is_too_small_is_named_before_anything_is_rented(home, sim):
    made = Check(Cluster("check-test", Asked(("vast",), budget_usd=0.0001)), lambda question: False)
    made.run()
    assert outcomes(made) == {"key accepted": "passed", "offer found": "failed"}
    assert made.pipeline.results[1].detail.startswith("--budget is too small")
    assert sim.bill()["rentals"] == []


@pytest.mark.parametrize(("fault", "why"), [("noboot", "container failed to start"), ("stuck", "timed out")])
def test_a_box_that_never_boots_is_named(renting, sim, fault, why):
    sim.control("next", market="vast", fault=fault)
    made, _ = renting(boot_minutes=0.02)
    assert why in failed(made, "boot", made.boot)
    made.end()
    assert outcomes(made)[steps.DESTROYED] == "passed" and sim.state()["rentals"] == []
    assert made.cluster.usd() == pytest.approx(sim.bill()["total_usd"], abs=1e-4)


def test_every_offer_taken_is_named(make, sim, monkeypatch):
    monkeypatch.setattr(steps, "RENTED_S", 0.3)
    sim.control("next", market="vast", fault="taken", count=8)
    made = make()
    provider = provider_module.Provider(
        rented.autoscaler_config.complete(rented._with_head_here(made.cluster.config))["provider"], made.cluster.name
    )
    with pytest.raises(rented.MarketError):
        provider.create_node(made.cluster.config["available_node_types"]["box"]["node_config"], WORKER, 1)

    why = failed(made, "rented", made._rented)
    assert why.startswith("timed out after 0.3 s: ") and "not available" in why


def test_a_box_without_a_login_is_named(renting, sim, monkeypatch):
    monkeypatch.setattr(steps, "LOGIN_S", 1.0)
    made, _ = renting()
    assert made.pipeline.run("boot", made.boot)
    assert "refused" in failed(made, "SSH login", made.login)


@pytest.mark.parametrize("step", ["set-up", "Ray joined over the mesh"])
def test_a_set_up_that_fails_is_named(renting, monkeypatch, step):
    monkeypatch.setattr(steps, "SET_UP_S", 10.0)
    monkeypatch.setattr(steps, "JOINED_S", 10.0)
    made, provider = renting()
    assert made.pipeline.run("boot", made.boot)
    made.box = HERE
    id = made.entry.node
    # Ray's updater and autoscaler do this after the last attempt.
    provider.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: ray.STATUS_UPDATE_FAILED})
    provider.terminate_node(id)
    monkeypatch.setattr(steps, "MARKS", str(Path(made.cluster.folder.path / "marks")))
    prove = made.set_up if step == "set-up" else made.joined
    assert "its set-up failed" in failed(made, step, prove)


def test_a_ray_that_never_joins_is_named(renting, monkeypatch):
    monkeypatch.setattr(steps, "JOINED_S", 0.1)
    made, _ = renting()
    assert "its Ray starts" in failed(made, "Ray joined over the mesh", made.joined)


def test_a_budget_that_is_reached_is_named(renting, sim):
    made, _ = renting()
    cap = {"spent_usd": 1.0, "usd_per_hour": 1.0, "total_usd": 1.0, "deadline": time.time(), "saved": False}
    made.cluster.ledger.note("budget", "cap", **cap)  # written by the steward
    monkey = failed(made, "boot", lambda: made._wait(lambda: None, 5, lambda: ""))
    assert "the budget of $1 is reached" in monkey


def test_a_failed_destruction_is_reported_with_the_command_that_ends_it(renting, sim, monkeypatch):
    made, _ = renting()
    monkeypatch.setattr("cluster.node.ending.AGAIN_S", 0.0)
    sim.control("api", market="vast", endpoint="DELETE /api/v0/instances/{id}/", fault="500", count=100)
    made.end()
    result = made.pipeline.results[-1]
    assert result.outcome == "failed" and "End it: python -m cluster sweep check-test" in result.detail
    assert f"vast-{made.entry.id}" in result.detail and "500" in result.detail


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_destroys_the_box_and_ends_with_the_table_and_the_report(home, sim, monkeypatch, capsys, number):
    """Runs in this process, so without Ray: the test rents the box as the autoscaler would."""
    sim.control("next", market="vast", fault="stuck")

    def leads(made):
        made.cluster.write()
        config = rented._with_head_here(made.cluster.config)
        node = config["available_node_types"]["box"]["node_config"]
        provider = provider_module.Provider(rented.autoscaler_config.complete(config)["provider"], made.cluster.name)
        provider.create_node(node, WORKER, 1)
        return ""

    def interrupted(made):
        assert len(sim.state()["rentals"]) == 1
        os.kill(os.getpid(), number)
        made._wait(lambda: None, 30, lambda: "the signal")

    monkeypatch.setattr(Check, "leads", leads)
    monkeypatch.setattr(Check, "rented", Check._rented)
    monkeypatch.setattr(Check, "boot", interrupted)
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        assert check.main(["--market", "vast", "--yes", "--report", str(home / "check.json")]) == 1
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    told = {s["step"]: s for s in json.loads((home / "check.json").read_text())["steps"]}
    assert (told["boot"]["outcome"], told["boot"]["detail"]) == ("failed", "it was interrupted")
    assert told["SSH login"]["outcome"] == "not reached" and told[steps.DESTROYED]["outcome"] == "passed"
    assert sim.state()["rentals"] == [] and "the rented boxes are destroyed" in capsys.readouterr().err


# ---- the report


def test_the_report_has_no_key_address_host_or_user_name_in_it(home, monkeypatch):
    key = registry.key("vast")
    told = (
        f"GET http://10.213.4.1:8801/x with {key}: ssh root@203.0.113.7 port 22: host box-7.example.org:2201, "
        "root@ssh7.example.net: Permission denied; connect to host ssh8.example.net port 22; "
        f"[2001:db8::1]:22 refused; {getpass.getuser()}@{socket.gethostname()} in {Path.home()}/.shoestring/x; "
        "https://console.vast.ai/api/v0/ driver 580.65.06, CUDA 13.0, torch 2.13.0, 127.77.0.2"
    )
    pipeline = Pipeline(["boot"], lambda: 0.0)
    pipeline.results[0] = Result("boot", "failed", told, 1.0, 0.1)
    text = json.dumps(report.made(pipeline, {"nested": [{"x": told}]}, 0.1, [key]), ensure_ascii=False)
    for gone in (
        key, "10.213.4.1", "203.0.113.7", "2001:db8", "127.77.0.2", "example.org", "example.net", socket.gethostname(), str(Path.home()),
        f"{getpass.getuser()}@",
    ):  # fmt: skip
        assert gone not in text, gone
    for kept in ("console.vast.ai", "580.65.06", "CUDA 13.0", "torch 2.13.0", "refused", "~/.shoestring/x"):
        assert kept in text, kept


def test_an_interrupt_and_a_crash_end_with_a_table_and_the_rest_not_reached():
    pipeline = Pipeline(["a", "b", "c"], lambda: 0.0)
    assert pipeline.run("a", lambda: "found")

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.run("b", interrupted)
    assert [(r.outcome, r.detail) for r in pipeline.results] == [
        ("passed", "found"), ("failed", "it was interrupted"), ("not reached", ""),
    ]  # fmt: skip
    assert not pipeline.passed
