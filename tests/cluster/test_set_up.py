"""From a rented box to a Ray node, with the commands that `ray up` runs on it, but without the rest of Ray's autoscaler."""

import atexit
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from ray.autoscaler import tags as ray

from cluster.node import autoscaler_config, driver
from tests.cluster import e2e
from tests.cluster.conftest import simulator
from tests.cluster.nodes import WORKER
from tests.cluster.test_sim_boxes import REAL, key, rent, running, ssh  # noqa: F401
from tests.conftest import PATIENCE

BOXES = [pytest.mark.slow, e2e.NAMESPACES]
RUNG = {"market": "vast", "gpus": ["RTX 4090"], "spot": False, "max_usd_per_hour": 0.6}
HEAD = WORKER | {ray.TAG_RAY_NODE_KIND: ray.NODE_KIND_HEAD}


def test_a_ray_up_that_fails_says_what_still_bills(provider, sim, monkeypatch, capsys):
    at_exit = []
    monkeypatch.setattr(atexit, "register", lambda f, *args: at_exit.append((f, args)))
    monkeypatch.setattr(sys, "argv", ["ray", "up", "-y", "cluster/mine.yaml"])
    p = provider()
    p.create_node({"ladder": [RUNG]}, HEAD, 1)
    [id] = p.non_terminated_nodes({})
    for status in (ray.STATUS_WAITING_FOR_SSH, ray.STATUS_SETTING_UP, ray.STATUS_UPDATE_FAILED):
        p.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: status})
    [(remind, args)] = [(f, args) for f, args in at_exit if args == (id,)]
    remind(*args)
    said = capsys.readouterr().err
    node = p.nodes.get(id).rental
    assert f"{id} is still rented for it and costs ${node.usd_per_hour + node.disk_usd_per_hour:.3f} an hour" in said
    assert "ray down cluster/mine.yaml" in said and "ray up cluster/mine.yaml" in said
    p.set_node_tags(id, {ray.TAG_RAY_NODE_STATUS: ray.STATUS_UP_TO_DATE})
    remind(*args)
    p.terminate_node(id)
    remind(*args)
    assert capsys.readouterr().err == ""


class Starts:
    """`ray start` on a box, as Ray's updater runs it."""

    def __init__(self, provider, id: str):
        self.runner = provider.get_command_runner("", id, {"ssh_user": "root"}, "c1", subprocess, False)

    def run(self, command: str) -> str:
        return self.runner.run(command, with_output=True).decode()

    def start(self) -> str:
        command = autoscaler_config._with(
            autoscaler_config.ON_EVERY_NODE, "ray start --head --disable-usage-stats $SHOESTRING_NODE"
        )
        self.run(autoscaler_config.STOP)
        return self.runner.run(
            command, with_output=True, environment_variables={"RAY_OVERRIDE_RESOURCES": {"GPU": 1}}
        ).decode()


@pytest.mark.parametrize("sim", [REAL | {"network": "flat"}], indirect=True, ids=["boxes"])
class TestOnABox:
    pytestmark = BOXES

    def test_ray_starts_also_where_a_start_has_failed_before(self, provider, sim):
        p = provider(network="flat")
        p.create_node({"ladder": [RUNG]}, HEAD, 1)
        sim.wait(lambda s: s["rentals"] and s["rentals"][0]["state"] == "running")
        [id] = p.non_terminated_nodes({})
        box = Starts(p, id)
        give_up = time.time() + PATIENCE
        while "load average" not in (said := self.try_uptime(box)):  # with a terminal, and not inside tmux
            assert time.time() < give_up, said
        box.run(autoscaler_config.install())  # the image already has everything
        assert "No such file" in box.run(f"ls {autoscaler_config.VENV} 2>&1 || true")
        assert "Ray runtime started" in box.start()
        level = "tr '\\0' '\\n' < /proc/$(pgrep -o raylet)/environ | grep MATCH_LEVEL"
        assert "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL=minor" in box.run(level)
        box.run("pkill -9 raylet; while pgrep raylet; do sleep 0.1; done; pgrep gcs_server")
        assert "Ray runtime started" in box.start()

    @staticmethod
    def try_uptime(box: Starts) -> str:
        try:
            return box.run("uptime")
        except (click.ClickException, subprocess.CalledProcessError) as e:  # its sshd isn't up yet
            return str(e)

    def test_an_old_driver_is_reported_before_ray_joins_and_the_machine_remembered(self, provider, sim):
        sim.control("next", market="vast", fault="driver")
        p = provider(network="flat")
        p.create_node({"ladder": [RUNG]}, HEAD, 1)
        sim.wait(lambda s: s["rentals"] and s["rentals"][0]["state"] == "running")
        [id] = p.non_terminated_nodes({})
        machine = p.nodes.get(id).rental.machine
        box = Starts(p, id)
        give_up = time.time() + PATIENCE
        while "load average" not in (said := self.try_uptime(box)):
            assert time.time() < give_up, said
        with pytest.raises(
            click.ClickException, match=r"its driver 535\.183\.01 supports CUDA 12\.2, and torch .* needs CUDA 13"
        ):
            box.start()
        assert p.is_terminated(id) and "its driver 535.183.01" in p.memory.is_bad("vast", machine)
        sim.wait(lambda s: s["rentals"] == [])


@pytest.fixture(scope="module")
def wheels():
    """(folders, environment) with which pip and uv find, without a network, everything that a node needs: the packages that this machine's
    pip would install, in uv's own cache, where they stay for the next time."""
    python = [sys.executable, "-m", "pip"]
    listed = subprocess.run([*python, "config", "list"], capture_output=True, text=True, check=True).stdout
    pip = {
        name.split(".")[-1]: value.strip("'") for name, _, value in (row.partition("=") for row in listed.splitlines())
    }
    with tempfile.TemporaryDirectory(prefix="wheels-", dir="/tmp") as folder:
        subprocess.run([*python, "download", "-q", "--no-deps", "-d", f"{folder}/wheels", "uv"], check=True)
        wheels = ["--no-index", "--find-links", f"{folder}/wheels"]
        subprocess.run([*python, "install", "-q", *wheels, "--target", f"{folder}/uv", "uv"], check=True)
        uv = [f"{folder}/uv/bin/uv", "-q"]
        cache = subprocess.run([uv[0], "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
        env = {"UV_CACHE_DIR": cache, "UV_NO_CONFIG": "1", "UV_INDEX_STRATEGY": "unsafe-best-match"}  # pip's strategy
        theirs = {
            "index-url": "DEFAULT_INDEX",
            "extra-index-url": "INDEX",
            "constraint": "CONSTRAINT",
            "find-links": "FIND_LINKS",
        }
        env |= {f"UV_{theirs[name]}": value for name, value in pip.items() if name in theirs}
        if not list(Path(pip.get("find-links", "/nowhere")).glob("torch-*")):
            env["UV_TORCH_BACKEND"] = "cpu"  # instead of 3 GB of CUDA
        subprocess.run([*uv, "venv", "--python", sys.executable, f"{folder}/venv"], env=os.environ | env, check=True)
        install = [*uv, "pip", "install", "-p", f"{folder}/venv", *autoscaler_config.packages()]
        subprocess.run(install, env=os.environ | env, check=True)
        there = {"UV_OFFLINE": "1", "UV_LINK_MODE": "copy", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": f"{folder}/wheels"}
        yield [folder, cache], env | there


class TestOnABareBox:
    pytestmark = BOXES

    def test_the_cuda_that_pypis_torch_needs(self, wheels):
        """Read from its wheel's metadata, of which only these files are downloaded."""
        [pinned] = driver.ON_PYPI
        uv = [f"{wheels[0][0]}/uv/bin/uv", "--no-config", "pip", "compile", "-q", "-", "--no-annotate"]
        platform_ = ["--python-platform", "x86_64-manylinux_2_28", "--python-version", "3.11"]
        said = subprocess.run([*uv, *platform_], input=pinned, capture_output=True, text=True, check=True).stdout
        assert set(re.findall(r"nvidia-\w+-cu(\d+)", said)) == {f"{driver.needed():.0f}"}, said

    def test_it_is_set_up_although_the_first_time_was_killed(self, wheels, key):  # noqa: F811
        folders, env = wheels
        with simulator(**REAL, image="bare", share=folders) as sim:
            rent(sim, key, 100000, env=env)
            [box] = running(sim, 1)
            assert "No module named" in ssh(sim, box, key, "python3 -c 'import ray' 2>&1").stdout
            root = Path(sim.output).parent / "state/boxes" / box["id"] / "upper"
            venv = root / autoscaler_config.VENV[1:]

            def login(command: str) -> str:
                """Returns the command as Ray runs it."""
                inner = shlex.quote(f"source ~/.bashrc; export OMP_NUM_THREADS=1 && ({command})")
                return f"bash --login -c -i {inner}"

            # The host dies halfway.
            given = [
                "ssh",
                *self.options(sim, box, key),
                "-tt",
                "root@" + self.host(sim),
                login(autoscaler_config.install()),
            ]
            first = subprocess.Popen(
                given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
            )
            give_up = time.time() + PATIENCE
            while not list(venv.glob("lib/python3*/site-packages/torch")):
                assert first.poll() is None and time.time() < give_up, first.stdout.read()
                time.sleep(0.02)
            self.kill(box, b"install.sh", b"pip\0install")
            assert first.wait(PATIENCE) != 0 and venv.is_dir() and not list(venv.glob("installed-*"))

            began = time.time()
            done = ssh(sim, box, key, login(autoscaler_config.install()))
            assert done.returncode == 0, done.stdout + done.stderr
            print(f"\ninstalled from the cache: {time.time() - began:.1f} s", flush=True)
            imports = "import importlib.metadata as m, platform, ray, torch; print(m.version('trl'), platform.python_version())"
            done = ssh(sim, box, key, login(f"python -c {shlex.quote(imports)}"))
            assert done.stdout.split()[-2:] == [version("trl"), platform.python_version()], done.stdout + done.stderr

            ssh(sim, box, key, f"rm -r {autoscaler_config.VENV}.uv")  # so that it can't do anything
            done = ssh(sim, box, key, login(autoscaler_config.install()))
            assert done.returncode == 0 and not (root / f"{autoscaler_config.VENV[1:]}.uv").exists(), (
                done.stdout + done.stderr
            )
            assert ssh(sim, box, key, "grep -c /opt/venv/bin ~/.bashrc").stdout == "1\n"

    @staticmethod
    def host(sim) -> str:
        return sim.vast_url.split("//")[1].split(":")[0]

    @staticmethod
    def options(sim, box: dict, key) -> list[str]:  # noqa: F811
        quiet = {"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR"}
        return ["-i", key[0], "-p", str(box["ports"]["22"]["public"]), *(f"-o{k}={v}" for k, v in quiet.items())]

    @staticmethod
    def kill(box: dict, *words: bytes) -> None:
        """Kills at once everything in the box whose command line contains one of the words."""
        _, _, n, k = box["address"].split(".")
        pids = subprocess.run(
            ["ip", "netns", "pids", f"ss{n}-{k}"], capture_output=True, text=True, check=True
        ).stdout.split()
        killed = 0
        for pid in pids:
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended on its own, such as a step of a pipeline
                if any(word in Path(f"/proc/{pid}/cmdline").read_bytes() for word in words):
                    os.kill(int(pid), signal.SIGKILL)
                    killed += 1
        assert killed
