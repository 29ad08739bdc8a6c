"""The budget is spent in the middle of a job on real boxes; then the head is killed. The head is a laptop, which costs nothing."""

import json
import shutil
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import yaml

from lib.run import Run
from lib.runtime import checkpoint
from tests.cluster import e2e
from tests.cluster.conftest import Sim
from tests.cluster.e2e import leading, spots, submit, took
from tests.cluster.laptop import Laptop
from tests.conftest import PATIENCE, REPO, run_job
from tests.http import http
from tests.throttle import throttled

pytestmark = [pytest.mark.slow, e2e.NAMESPACES]


def dearer_worker(boxes: Sim) -> str:
    """Makes one of the workers cost $4 an hour, as if someone had raised its bid. Returns its id."""
    id = spots(boxes.state())[0]
    bid, key = {"client_id": "me", "price": 4.0}, {"Authorization": f"Bearer {boxes.env['VAST_API_KEY']}"}
    http.put(f"{boxes.vast_url}/api/v0/instances/bid_price/{id}/", json=bid, headers=key).raise_for_status()
    return id


def ended_bill(laptop: Laptop, boxes: Sim, raised: float) -> tuple[dict, dict]:
    """Waits until nothing is rented, and stays so. Returns (what `cluster cost` shows, the market's bill)."""
    boxes.wait(lambda state: state["rentals"] == [])
    took("dearer → nothing is rented", raised)
    time.sleep(6)  # nothing is rented for the pending demand
    assert boxes.state()["rentals"] == []
    shown, bill = json.loads(laptop.run(sys.executable, "-m", "cluster", "cost", "--json").stdout)[0], boxes.bill()
    print(f"\nledger ${shown['usd']:.4f}, bill ${bill['total_usd']:.4f}", flush=True)
    return shown, bill


def test_the_budget_ends_a_job_at_a_checkpoint_and_everything_with_it(apart, tiny_model, chats_file, tmp_path):
    laptop, boxes, shared = apart
    steps = 100_000  # more than the budget pays for
    given = [o for o in e2e.options(shared, tiny_model, chats_file) if "steps" not in o or "logging" in o]
    given += ["--train.lr_scheduler_type=constant", "--train.save_steps=100000"]
    run, began = Run(str(shared / "run")), time.time()
    with leading(laptop, shared, budget={"total_usd": 0.06, "save_minutes": 0.5, "useful_minutes": 1}):
        code = shared / "code"
        for package in ("jobs", "lib"):
            shutil.copytree(REPO / package, code / package)
        options = [*given, f"--train.max_steps={steps}", "--run", run.path]
        output = tmp_path / "output"  # a file: reading a pipe would wait for the job's end
        with open(output, "w") as file:
            job = submit(laptop, "--working-dir", code, "--", "python", "jobs/sft.py", *options, stdout=file)
        while len(run.metrics()) < 2:
            assert job.poll() is None and time.time() < began + PATIENCE, f"{output.read_text()}\n{boxes.state()}"
            time.sleep(0.1)
        took("job logs", began)
        raised = time.time()
        id = dearer_worker(boxes)
        with throttled(chain(*e2e.processes(boxes, spots(boxes.state())).values())):
            while "are spent" not in output.read_text() and job.poll() is None:
                time.sleep(0.1)
        job.wait(PATIENCE)
        said = output.read_text()
        took("dearer → job ended", raised)
        assert job.returncode != 0, said[-3000:]
        assert "of $0.06 are spent, and the rest is reserved for saving. Saved at step" in said, said[-3000:]
        assert f"Continue with: python jobs/sft.py --resume {run.path}" in said
        shown, bill = ended_bill(laptop, boxes, raised)
        # Never less than the bill; more only by the time in which the price may have risen or the box may have ended.
        written = laptop.home / ".shoestring/e2e-vast/ledger.jsonl"
        events = [e for e in map(json.loads, written.read_text().splitlines()) if e["at"] > raised]
        dearer = next(e for e in events if e["event"] == "seen" and e["rental"]["usd_per_hour"] > 3)
        ended = next(e["at"] for e in events if e["event"] in ("destroyed", "gone") and e["id"] == id)
        [billed] = [r["ended"] for r in bill["rentals"] if r["id"] == id]
        unknown = dearer["at"] - dearer["before"] + max(0, ended - billed)  # seconds
        print(f"not known to the second: {unknown:.1f} s", flush=True)
        assert 0.99 * bill["total_usd"] < shown["usd"] < 1.01 * bill["total_usd"] + unknown * 4.0 / 3600
        assert shown["usd"] < 0.07
    (job,) = shown["jobs"]
    (step,) = checkpoint.steps(run)
    assert (job["stage"], job["run"], job["step"], job["max_steps"]) == ("sft", run.path, step, steps)
    assert job["to_finish_usd"] > 0 and 0 < shown["wasted"] < 1
    assert job["usd"] + sum(n["idle_usd"] + n["starting_usd"] for n in shown["nodes"]) == pytest.approx(shown["usd"])
    # Resuming later ends with the same bits as an uninterrupted run. (The plan is shortened here: 100,000 steps take hours.)
    whole, settings = Run(str(tmp_path / "whole")), run.job()
    settings["train"]["max_steps"] = step + 5
    run.write_text("job.yaml", yaml.safe_dump(settings))
    assert run_job("sft", *given, f"--train.max_steps={step + 5}", "--run", whole.path).returncode == 0
    resumed = run_job("sft", "--resume", run.path)
    assert resumed.returncode == 0, resumed.stderr
    assert run.provenance()["model_sha256"] == whole.provenance()["model_sha256"]


@pytest.mark.soak
def test_the_budget_ends_a_search_at_checkpoints_and_everything_with_it(apart, tiny_model, chats_file, tmp_path):
    """Two trials at the same time, on boxes that are rented for them."""
    laptop, boxes, shared = apart
    job = {
        "model": {"base": str(shutil.copytree(tiny_model, shared / "model"))},
        "data": {"source": shutil.copy(chats_file, shared), "heldout_fraction": 0.3},
        "scale": {"global_batch": 8, "micro_batch": 4},
        "train": {"max_steps": 100_000, "logging_steps": 50, "lr_scheduler_type": "constant"},
    }
    (shared / "job.yaml").write_text(yaml.safe_dump(job))
    space = {"train.learning_rate": {"loguniform": [1e-4, 1e-2]}}
    search = {"run": str(shared / "search"), "config": str(shared / "job.yaml"), "space": space}
    search |= {"scheduler": "asha", "every": 50, "concurrent": 2, "budget": {"trials": 10}, "retries": -1}
    (shared / "search.yaml").write_text(yaml.safe_dump(search))
    code, began = shared / "code", time.time()
    for package in ("jobs", "lib", "tune"):
        shutil.copytree(REPO / package, code / package)
    journal, output = shared / "search/journal.jsonl", tmp_path / "output"
    with leading(laptop, shared, budget={"total_usd": 0.06, "save_minutes": 0.5, "useful_minutes": 1}):
        command = ("--working-dir", code, "--", "python", "-m", "tune", "--config", shared / "search.yaml")
        with open(output, "w") as file:
            submitted = submit(laptop, *command, stdout=file)
        while not journal.exists() or len(_reporting(journal)) < 2:
            assert submitted.poll() is None and time.time() < began + PATIENCE, f"{output.read_text()}\n{boxes.state()}"
            time.sleep(0.1)
        took("search submitted → two trials report", began)
        raised = time.time()
        dearer_worker(boxes)
        submitted.wait(PATIENCE)
        took("dearer → search ended", raised)
        said = output.read_text()
        report = Run(str(shared / "search")).read_json("report.json", "")
        assert "of $0.06 are spent, and the rest is reserved for saving." in report["ended"], said[-3000:]
        shown, bill = ended_bill(laptop, boxes, raised)
        assert bill["total_usd"] < 0.07 and shown["usd"] < 0.07
    assert (shared / "search/report.html").exists()
    cut = [t for t in report["trials"] if t["status"] == "running"]
    assert len(cut) == 2 and not any(t["status"] == "failed" for t in report["trials"]), said[-3000:]
    for t in cut:  # saved after the last report
        step, _ = checkpoint.latest(Run(t["run"]))
        assert step >= t["reports"][-1]["step"]


def _reporting(journal: Path) -> set[int]:
    """Returns the trials that have reported."""
    events = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    return {e["trial"] for e in events if e["event"] == "reported"}


def test_a_killed_head_costs_nothing_after_the_watchdogs_time(apart):
    laptop, boxes, shared = apart
    (shared / "nap.py").write_text(e2e.NAP)
    with leading(laptop, shared, unattended_minutes=0.5):
        submit(laptop, "--", "python", shared / "nap.py", stdout=subprocess.DEVNULL)
        boxes.wait(lambda state: len(spots(state)) == 2)
        e2e.wait_for_nodes(laptop, 3)
        time.sleep(35)  # longer than the watchdog's limit: it does nothing while there is a head
        assert len(spots(boxes.state())) == 2
        killed = time.time()
        laptop.close()
        boxes.wait(lambda state: state["rentals"] == [])
        took("head killed → nothing is billed", killed)
        assert time.time() - killed > 25
