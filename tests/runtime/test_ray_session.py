"""A Ray that doesn't start in time is retried, leaves nothing behind, and the final failure is explained."""

import subprocess
import sys

import psutil
import pytest
import ray

from lib.runtime import failure, ray_session

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.fixture(autouse=True)
def the_sessions_ray_stays(monkeypatch):
    """A failed start is cleaned up by ray.shutdown(), which would end the Ray of other tests."""
    monkeypatch.setattr(ray, "shutdown", lambda: None)


@pytest.fixture
def slow_machine(monkeypatch):
    """slow_machine(failures) → the leftover processes of failed starts; ray.init raises Ray's error `failures` times."""
    left = []

    def make(failures: int) -> list[psutil.Process]:
        def init(address, **options):
            assert address == "local"
            left.append(psutil.Process(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE).pid))
            if len(left) <= failures:
                raise Exception(LATE)

        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(ray_session, "PAUSE", 0)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        return left

    yield make
    for process in left:
        if process.is_running():
            process.kill()
        process.wait()


def test_it_is_tried_again_and_nothing_stays(slow_machine, capfd):
    left = slow_machine(2)
    ray_session.connect()
    psutil.wait_procs(left[:2])
    assert [p.is_running() for p in left] == [False, False, True]
    assert "trying again, 3 of 4" in capfd.readouterr().err


def test_in_the_end_it_is_explained(slow_machine):
    left = slow_machine(ray_session.TRIES)
    with pytest.raises(ray_session.NotStarted) as e:
        ray_session.connect()
    assert len(left) == ray_session.TRIES
    text = failure.explain(e.value)
    assert (
        text.startswith("Ray did not start in 4 tries") and "End other programs" in text and "timed out during" in text
    )


def test_other_errors_are_not_tried_again(monkeypatch):
    def init(**options):
        raise ValueError("no such option")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="no such option"):
        ray_session.connect()
