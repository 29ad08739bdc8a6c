"""cluster/node/mesh.py: the nodes' port numbers, the shim, and a tunnel into a real box that is reconnected when it dies."""

import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time

import pytest
from ray.autoscaler import tags as ray

from cluster.node import join, mesh
from cluster.node.autoscaler_config import complete
from cluster.provider import Provider
from tests.cluster import e2e
from tests.cluster.e2e import cluster
from tests.conftest import PATIENCE


def test_every_node_has_ports_of_its_own():
    count = mesh.slots(8)
    seen = [p for k in range(mesh.HEAD, count + 1) for p in mesh.ports(k)]
    assert len(seen) == len(set(seen)) and max(seen) < 32768  # below the range that the kernel assigns to clients
    options = mesh.ray_options(3)
    assert options[:2] == ["--node-ip-address=127.77.0.3", "--node-manager-port=20300"]
    used = [int(p) for option in options[1:] for p in option.split("=")[1].split(",")]
    assert set(used) <= set(mesh.ports(3))


def test_a_socket_for_any_port_gets_one_of_the_nodes_and_the_host_name_is_its_address(tmp_path):
    shim = mesh.build_shim(tmp_path)
    code = """
import socket
found = []
for address in ["127.77.0.3", "127.77.0.3", "0.0.0.0", "127.0.0.1"]:
    s = socket.socket(); s.bind((address, 0)); s.listen(); found.append(s)
fixed = socket.socket(); fixed.bind(("127.77.0.3", 0)); datagram = socket.socket(type=socket.SOCK_DGRAM)
datagram.bind(("127.77.0.3", 0))
import psutil
loopback = [a.address for a in psutil.net_if_addrs()["lo"] if a.family == socket.AF_INET]  # by getifaddrs, as NCCL asks
print(socket.gethostname(), *loopback, *[s.getsockname()[1] for s in [*found, datagram]])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | mesh.environment(3, shim),
        capture_output=True,
        text=True,
        check=True,
    )
    name, loopback, *ports = done.stdout.split()
    pinned = {str(mesh.base(3) + i) for i in mesh.PINNED}
    assert name == loopback == "127.77.0.3" and len(set(ports)) == 5
    assert set(ports[:3]) <= pinned and not pinned & set(ports[3:])


class Echo:
    """Echoes what it receives, on an address of the head."""

    def __init__(self, address: str, port: int):
        self.socket = socket.create_server((address, port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            client.sendall(client.recv(100))
            client.close()


def answers(runner) -> bool:
    try:
        runner.send(b"", "true")
    except subprocess.CalledProcessError:
        return False
    return True


ASK = "exec 3<>/dev/tcp/{ip}/{port} && echo hello >&3 && head -1 <&3"


@pytest.mark.slow
@e2e.NAMESPACES
def test_both_ways_through_a_box_and_again_after_the_tunnel_died(boxes, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_STATE", str(tmp_path))
    monkeypatch.setenv("SHOESTRING_PACE", "100")
    for name, value in boxes.env.items():
        monkeypatch.setenv(name, value)
    told = complete(cluster("vast") | {"provider": cluster("vast")["provider"] | {"here": True}})
    provider = Provider(told["provider"], told["cluster_name"])
    worker = {ray.TAG_RAY_NODE_KIND: "worker", ray.TAG_RAY_USER_NODE_TYPE: "box"}
    servers = [Echo(mesh.ip(mesh.HEAD), port) for port in (mesh.GCS_PORT, mesh.base(mesh.HEAD) + 10)]
    try:
        provider.create_node(told["available_node_types"]["box"]["node_config"], worker, 1)
        boxes.wait(lambda state: e2e.spots(state))
        [node] = provider.non_terminated_nodes(worker)
        runner = provider.get_command_runner("", node, told["auth"], "c", subprocess, True)
        boxes.wait(lambda state: answers(runner))  # a box runs before its sshd does; Ray also waits for it
        join.worker(provider, node, runner)
        k = provider.slot(node)
        here, there = mesh.base(mesh.HEAD) + 10, mesh.base(k) + 10
        serve = f"nohup {sys.executable} -m http.server --bind {mesh.ip(k)} {there} > /dev/null 2>&1 < /dev/null &"
        runner.send(b"", serve)

        def both_ways() -> bool:
            ask = shlex.quote(ASK.format(ip=mesh.ip(mesh.HEAD), port=here))
            said = subprocess.run(["ssh", "-F", str(provider.folder.path / f"mesh-{k}.conf"), "box", f"bash -c {ask}"],
                                  capture_output=True, text=True)  # fmt: skip
            got = subprocess.run(["curl", "-sf", f"http://{mesh.ip(k)}:{there}"], capture_output=True, text=True)
            return said.stdout == "hello\n" and "Directory listing" in got.stdout

        def wait_for(ok) -> None:
            give_up = time.time() + PATIENCE
            while not ok():
                assert time.time() < give_up, (provider.folder.path / f"mesh-{k}.log").read_text()
                time.sleep(0.2)

        wait_for(both_ways)
        tunnel = provider.nodes.get(node).tunnel
        dialled = tunnel.dialled
        tunnel._ssh.kill()
        wait_for(lambda: tunnel.dialled > dialled)
        wait_for(both_ways)
        keys = (provider.folder.known_hosts).read_text()
        assert re.findall(r"^\S+", keys, re.M) == [node] * keys.count("\n")  # pinned by rental, not by address
        provider.terminate_node(node)
        with socket.socket() as s:
            assert s.connect_ex((mesh.ip(k), there)) != 0  # nothing listens for a removed node
    finally:
        provider.end()
        for server in servers:
            server.socket.close()
