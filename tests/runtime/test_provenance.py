"""provenance.json records a run's attempts and its inputs."""

import signal
import subprocess
import sys
import time

import pytest

from lib.run import Run
from lib.runtime import provenance
from lib.runtime.failure import StopTraining
from tests.conftest import REPO


@pytest.fixture
def run(tmp_path) -> Run:
    run = Run(tmp_path / "run")
    run.write_text("job.yaml", "stage: sft\n")
    return run


def test_an_attempt_that_was_killed_lasted_until_its_last_line(run):
    run.write_json("provenance.json", {"status": "running", "attempts": provenance.attempted(run, 100.0)})
    run.append_text("metrics.jsonl", '{"step": 1, "time": 107.5}\n')
    attempts = provenance.attempted(run, 200.0)
    assert attempts == [{"began": 100.0, "seconds": 7.5, "ended": "killed"}, {"began": 200.0}]
    run.write_json("provenance.json", {"status": "running", "attempts": attempts})
    attempts = provenance.attempted(run, 300.0)  # killed before it logged anything
    assert attempts[1] == {"began": 200.0, "seconds": 0.0, "ended": "killed"}


def test_the_end_of_an_attempt_is_recorded_once(run):
    began = time.time() - 5
    run.write_json("provenance.json", {"status": "running", "attempts": provenance.attempted(run, began)})
    provenance.ended(run, "interrupted")
    provenance.ended(run, "failed", failure="late")
    (attempt,) = run.provenance()["attempts"]
    assert attempt["ended"] == "interrupted" and attempt["seconds"] == pytest.approx(5, abs=1)
    assert run.provenance()["status"] == "failed" and run.provenance()["failure"] == "late"


def test_what_ended_before_it_was_a_run_leaves_nothing(tmp_path):
    provenance.ended(Run(tmp_path / "none"), "interrupted")
    assert not (tmp_path / "none").exists()


def test_what_was_found_on_the_workers_is_pinned(run):
    """A served teacher, or rows of which the driver read only a part."""
    provenance.pin(run, "train.teacher", "run:a float32", "its weights are")
    provenance.pin(run, "data.source", "b", "its rows are")
    provenance.pin(run, "train.teacher", "run:a float32", "its weights are")
    with pytest.raises(
        StopTraining,
        match=r"train\.teacher: its weights are not what the run was started with \(run:a float32, now run:c",
    ):
        provenance.pin(run, "train.teacher", "run:c float32", "its weights are")
    assert run.provenance()["identities"] == {"train.teacher": "run:a float32", "data.source": "b"}


@pytest.mark.parametrize("before", ["SIG_IGN", "default_int_handler"])
def test_sigterm_is_an_interrupt_also_where_ctrl_c_is_ignored(before):
    """As in processes that a shell starts in the background."""
    code = (
        f"import os, signal; signal.signal(signal.SIGINT, signal.{before})\n"
        "from lib.runtime import termination; termination.as_interrupt()\n"
        "try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt: print(termination.word(), termination.code())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout == f"Terminated {128 + signal.SIGTERM}\n", done.stderr
