"""The output of libraries is stored in the run, and the messages for the user are still shown."""

import logging
import os
import subprocess
import sys
import warnings

from lib.run import Run
from lib.runtime import logs
from tests.conftest import s3_environment

PRINTS = """
import os, subprocess, sys, tempfile, warnings
from lib.runtime import logs
from lib.run import Run
run = Run(sys.argv[1])
for step in (1, 2):
    with logs.kept(run, "worker-0"):
        print("python", step)
        os.write(2, b"native\\n")
        subprocess.run(["sh", "-c", "echo child"])
        warnings.warn("careful")
        logs.say(f"step {step}")
print("after")
"""


def test_only_what_is_said_reaches_the_terminal(tmp_path):
    """The file, which is appended to, gets the output of Python, of native code and of a child process; afterwards everything
    is restored."""
    done = subprocess.run([sys.executable, "-c", PRINTS, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "step 1\nstep 2\nafter\n" and done.stderr == ""
    kept = (tmp_path / "logs/worker-0.log").read_text()
    for words in ("python 1", "python 2", "UserWarning: careful"):
        assert words in kept
    assert kept.count("native\n") == kept.count("child\n") == 2 and "step" not in kept


def test_a_remote_runs_log_is_uploaded(s3, tmp_path):
    env = os.environ | s3_environment(s3)
    subprocess.run([sys.executable, "-c", PRINTS, "s3://runs/logged"], env=env, capture_output=True, check=True)
    run = Run("s3://runs/logged")
    names = [name for name in run.files("logs") if name.startswith("worker-0-")]
    assert "python 2" in "".join(run.read_text(f"logs/{name}") for name in names)


def test_the_driver_keeps_what_libraries_log_and_still_prints(tmp_path, capfd):
    run = Run(tmp_path)
    with logs.driver(run):
        pass
    assert not (tmp_path / "logs").exists(), "an empty log was made"
    with logs.driver(run):
        logging.getLogger("some.library").warning("deprecated")
        warnings.warn("old", stacklevel=1)
        print("ours")
    out, err = capfd.readouterr()
    assert out == "ours\n" and err == ""
    kept = (tmp_path / "logs/driver.log").read_text()
    assert "some.library WARNING deprecated" in kept and "UserWarning: old" in kept
