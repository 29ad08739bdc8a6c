"""The simulated instances: a market's container seen from inside and outside, and its complete removal."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import cluster
from cluster.sim import network
from tests.cluster import e2e
from tests.cluster.conftest import simulator
from tests.conftest import PATIENCE, REPO
from tests.http import http

pytestmark = e2e.NAMESPACES
REAL = {"boxes": "namespaces", "boot": 0.2}


@pytest.fixture(scope="session")
def key(tmp_path_factory):
    """(private key file, public key)"""
    file = tmp_path_factory.mktemp("key") / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    return str(file), file.with_suffix(".pub").read_text().strip()


def ssh(sim, rental: dict, key, command: str, patience: float = PATIENCE) -> subprocess.CompletedProcess:
    """Runs the command in the box through its mapped port; retries for `patience` seconds, since sshd starts after the box."""
    host = sim.vast_url.split("//")[1].split(":")[0]
    options = {"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR"}
    options |= {"BatchMode": "yes", "ConnectTimeout": "1" if not patience else "5"}
    port = str(rental["ports"]["22"]["public"])
    line = ["ssh", "-i", key[0], "-p", port, *(f"-o{k}={v}" for k, v in options.items()), f"root@{host}", command]
    give_up = time.time() + patience
    while (done := subprocess.run(line, capture_output=True, text=True)).returncode == 255 and time.time() < give_up:
        time.sleep(0.1)
    return done


def rent(sim, key, machine: int, **more) -> None:
    order = {"image": "x", "disk": 73, "label": "shoestring/t", "cancel_unavail": True, "runtype": "ssh_direct"}
    order["onstart"] = f"touch ~/.no_auto_tmux; echo '{key[1]}' >>~/.ssh/authorized_keys"
    asked = {"url": f"{sim.vast_url}/api/v0/asks/{machine}/", "json": order | more, "headers": auth(sim, "VAST")}
    while (answer := http.put(**asked)).status_code == 429:  # Vast's limit on the rate of requests
        time.sleep(0.1)
    assert answer.status_code == 200, answer.text


def auth(sim, market: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {sim.env[f'{market}_API_KEY']}"}


def running(sim, count: int) -> list[dict]:
    return sim.wait(lambda s: [r["state"] for r in s["rentals"]] == ["running"] * count)["rentals"]


def leftovers(sim) -> list[str]:
    """Returns the namespaces and links of this simulator."""
    number = sim.vast_url.split(".")[2]
    links = [line.split(":")[1].strip() for line in network.run("ip", "-o", "link").splitlines()]
    return [n for n in network.spaces() + links if n.split("@")[0].split("-")[0].split("v")[0] == f"ss{number}"]


@pytest.mark.parametrize("sim", [REAL], indirect=True)
def test_rented_used_outbid_destroyed_and_billed_to_the_cent(sim, key):
    rent(sim, key, 100000, price=360.0 / 4, env={"GREETING": 'it\'s "me"', "-p 8000:8000": "1"})
    (box,) = running(sim, 1)
    there = ssh(sim, box, key, 'echo "$CONTAINER_ID|$GREETING|$(id -un)|$(hostname)|$HOME"; ls /tmp; echo kept >kept')
    # Nothing of this machine's /tmp, except where the checkout is mounted if it lies there.
    checkout = f"{REPO.parts[2]}\n" if REPO.is_relative_to("/tmp") else ""
    assert there.stdout == f'{box["id"]}|it\'s "me"|root|vast-{box["id"]}|/root\n{checkout}', there
    there = ssh(sim, box, key, "touch /usr/mine; python -c 'import cluster; print(cluster.__file__)'")
    assert there.stdout.strip() == cluster.__file__ and not os.path.exists("/usr/mine")
    assert "Read-only" in ssh(sim, box, key, "touch $(dirname $(which python))/x").stderr
    sim.control("outbid", id=box["id"])
    assert ssh(sim, box, key, "true", patience=0).returncode == 255
    sim.control("release", machine=100000)
    (box,) = running(sim, 1)
    assert ssh(sim, box, key, "cat kept").stdout == "kept\n"  # the disk survives a stop
    # With the key in its environment, a box can destroy only itself.
    rent(sim, key, 100001)
    one, two = running(sim, 2)
    kill = 'curl -s -X DELETE -H "Authorization: Bearer $CONTAINER_API_KEY" $VAST_URL/api/v0/instances/{}/'
    assert "forbidden" in ssh(sim, one, key, kill.format(two["id"])).stdout
    ssh(sim, one, key, kill.format("$CONTAINER_ID"), patience=0)
    assert [r["id"] for r in sim.state()["rentals"]] == [two["id"]]
    row, _ = sim.bill()["rentals"]
    log = [
        line for line in Path(sim.output).read_text().splitlines() if one["id"] in line
    ]  # created, runs, stopped, runs, destroyed
    at = [time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")) + int(line[20:23]) / 1000 for line in log]
    created, first, outbid, second, destroyed = at
    assert row["compute_usd"] == pytest.approx((outbid - first + destroyed - second) * 90 / 3600, abs=0.005)
    assert row["ended"] - row["created"] == pytest.approx(destroyed - created, abs=0.1)


@pytest.mark.parametrize("sim", [REAL], indirect=True)
def test_isolated_boxes_meet_only_at_mapped_ports(sim, key):
    for machine in (100000, 100001):
        rent(sim, key, machine, env={"-p 8000:8000": "1"})
    one, two = running(sim, 2)
    ssh(sim, two, key, "nohup python -m http.server 8000 >/dev/null 2>&1 & sleep 1")
    public = sim.vast_url.split("//")[1].split(":")[0]
    get = "curl -s -o /dev/null -m 3 -w '%{{http_code}}' http://{}:{}/"
    assert ssh(sim, one, key, get.format(two["address"], 8000)).stdout == "000"
    assert ssh(sim, one, key, get.format(public, two["ports"]["8000"]["public"])).stdout == "200"
    assert sim.state()["rentals"][1]["ports"]["8000"]["bytes_out"] > 200
    sim.control("dark", id=two["id"])
    assert ssh(sim, two, key, "true", patience=0).returncode == 255
    assert sim.state()["rentals"][1]["state"] == "running"
    sim.control("light", id=two["id"])
    assert ssh(sim, two, key, "true").returncode == 0


@pytest.mark.parametrize("sim", [REAL], indirect=True)
def test_vast_puts_a_login_into_tmux_and_nvidia_smi_tells_the_hosts_driver(sim, key):
    onstart = f"echo '{key[1]}' >>~/.ssh/authorized_keys"
    sim.control("next", market="vast", fault="driver")
    for machine in (100000, 100001):
        rent(sim, key, machine, onstart=onstart)
    old, new = running(sim, 2)
    assert ssh(sim, new, key, "echo here").stdout == ""  # `ssh HOST COMMAND` runs no command in tmux
    for box in (old, new):
        home = Path(sim.output).parent / "state/boxes" / box["id"] / "home"
        (home / ".no_auto_tmux").touch()
    read = "nvidia-smi -L; nvidia-smi | grep -oE '(Driver|CUDA) Version: *[0-9.]*'"
    gpu = "GPU 0: NVIDIA GeForce RTX 3090 (UUID: GPU-{:08x}-0000-4000-8000-000000000000)\n{}\n{}\n"
    told = gpu.format(100000, "Driver Version: 535.183.01", "CUDA Version: 12.2")
    assert ssh(sim, old, key, read).stdout == told
    told = gpu.format(100001, "Driver Version: 560.35.05", "CUDA Version: 12.6")
    assert ssh(sim, new, key, read).stdout == told


@pytest.mark.parametrize("sim", [REAL | {"network": "flat"}], indirect=True)
def test_flat_boxes_of_both_markets(sim, key):
    body = {"name": "shoestring/t", "image": "x", "gpu": {"id": "NVIDIA L4"}, "ports": ["22/tcp"], "startSsh": True}
    body |= {"env": {"PUBLIC_KEY": key[1]}, "args": "bash -c 'echo $RUNPOD_POD_ID >pod; exec /start.sh'"}
    body |= {"mounts": {"persistent": {"size": 10, "path": "/volume"}}}
    rent(sim, key, 100000)
    http.post(f"{sim.runpod_url}/v2/pods", json=body | {"globalNetworking": True}, headers=auth(sim, "RUNPOD"))
    sim.control("next", market="vast", fault="nosshd")
    rent(sim, key, 100001)
    one, pod, deaf = running(sim, 3)
    assert ssh(sim, pod, key, "cat pod; touch disk /volume/kept").stdout.strip() == pod["id"]
    reach = f"timeout 2 bash -c '</dev/tcp/{pod['address']}/22' && echo yes"
    assert ssh(sim, one, key, reach).stdout == "yes\n"
    assert ssh(sim, deaf, key, "true", patience=0).returncode == 255
    listed = http.get(f"{sim.runpod_url}/v2/pods", headers=auth(sim, "RUNPOD")).json()["pods"]
    assert listed[0]["globalNetworking"]["ip"] == pod["address"]
    ssh(sim, pod, key, "kill -9 $(pgrep -o sshd)", patience=0)  # the container's command
    assert sim.wait(lambda s: s["rentals"][1]["state"] == "exited")
    action = f"{sim.runpod_url}/v2/pods/{pod['id']}/action"
    assert http.post(action, json={"action": "start"}, headers=auth(sim, "RUNPOD")).status_code == 200
    _, pod, _ = running(sim, 3)
    assert ssh(sim, pod, key, "ls ~ /volume").stdout.split() == ["/root:", "box.log", "pod", "/volume:", "kept"]


def test_nothing_is_left_of_a_simulator_ended_or_killed(key, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    with simulator(**REAL, share=shared) as sim:
        rent(sim, key, 100000)
        (box,) = running(sim, 1)
        assert ssh(sim, box, key, f"sleep 1234 >/dev/null 2>&1 & echo x >{shared}/file").returncode == 0
        assert (shared / "file").read_text() == "x\n"
        before = leftovers(sim)
        assert len(before) == 4  # hub and box, a link of each
    assert leftovers(sim) == []

    with simulator(**REAL, state=tmp_path / "state") as sim:
        rent(sim, key, 100000)
        running(sim, 1)
        with pytest.raises(AssertionError, match="another simulator is using this folder"):
            simulator(**REAL, state=tmp_path / "state").__enter__()
        sim.process.send_signal(signal.SIGKILL)
        sim.process.wait()
        give_up = time.time() + PATIENCE
        while box_processes := [
            p for s in leftovers(sim) if "-" in s for p in network.run("ip", "netns", "pids", s).split()
        ]:
            assert time.time() < give_up, box_processes
        assert len(leftovers(sim)) == 4
        network.clear_dead(tmp_path / "nobody")
        assert leftovers(sim) == []
