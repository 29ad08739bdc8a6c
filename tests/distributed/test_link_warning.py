"""The message of a job about the link between its machines."""

from types import SimpleNamespace

import pytest

from lib.distributed import link_warning


@pytest.mark.parametrize(("seconds", "said"), [(0.9, 1), (0.2, 0)])
def test_steps_that_mostly_wait_are_reported(seconds, said, monkeypatch, capsys):
    """Steps of 1 s; the first ones don't count."""
    now = [0.0]
    monkeypatch.setattr(link_warning.time, "monotonic", lambda: now[0])
    waits = link_warning.Exchange(540.0, 600.0, seconds)
    for step in range(7, 60):  # starts at 7, as after a resume
        now[0] += 30.0 if step < 9 else 1.0
        waits.on_step_end(None, SimpleNamespace(global_step=step), None)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == said
    assert not lines or lines[0].startswith(
        "slow link: about 90% of each step, which takes 1 s, goes into exchanging 540 MB"
    )
