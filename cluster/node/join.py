"""How a rental becomes a node: sets up the mesh on it, and sends a head its code and keys."""

from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path
from typing import Protocol

from cluster.market import registry as markets
from cluster.money.ledger import Ledger
from cluster.node import autoscaler_config, mesh, watchdog
from cluster.node.key_folder import Folder
from cluster.node.nodes import Nodes


class Cluster(Protocol):
    """The cluster that a node joins; implemented by cluster/provider.py."""

    cluster_name: str
    settings: autoscaler_config.Settings
    folder: Folder
    ledger: Ledger
    nodes: Nodes
    markets: dict

    def slot(self, node_id: str) -> int: ...

    def internal_ip(self, node_id: str) -> str | None: ...


class Shell(Protocol):
    """A login on the rental; implemented by cluster/node/ssh_runner.py."""

    node_id: str

    def send(self, content: bytes, command: str) -> bytes: ...

    def write(self, content: bytes, target: str, mode: int) -> None: ...

    def run_rsync_up(self, source: str, target: str) -> None: ...


def environment(provider: Cluster, node_id: str) -> dict[str, str]:
    """Returns the environment variables that `ray start` needs on this node."""
    named = ["SHOESTRING_PACE", *(f"{name.upper()}_URL" for name in provider.markets)]
    simulated = {k: os.environ[k] for k in named if k in os.environ}
    if provider.settings.network == "flat":
        return {"SHOESTRING_NODE": f"--node-ip-address={provider.internal_ip(node_id)}"} | simulated
    k = provider.slot(node_id)
    shim = f"/root/{mesh.BOX}/portpin.so"
    return {"SHOESTRING_NODE": " ".join(mesh.ray_options(k)), **mesh.environment(k, shim)} | simulated


def worker(provider: Cluster, node_id: str, runner: Shell) -> None:
    """Connects a worker with a working login to the network. Raises CalledProcessError, RuntimeError."""
    node = provider.nodes.get(node_id)
    if node is None:
        raise RuntimeError(f"{node_id} is gone.")
    if provider.settings.network == "flat":
        return
    _prepare(provider, runner)
    if node.tunnel:
        node.tunnel.close()
    host, port = node.rental.ssh
    node.tunnel = mesh.Tunnel(provider.folder, provider.slot(node_id), provider.settings.slots, node_id, host, port)
    runner.send(b"", f"bash -c {mesh.WAIT!r}")


def head(provider: Cluster, runner: Shell) -> None:
    """Sends a rented head the files it needs: this code, the ledgers, the cluster's key and the markets' keys. Workers get none of
    them."""
    for name in ("key", "key.pub", "known_hosts"):
        path = provider.folder.path / name
        if path.exists():
            runner.write(path.read_bytes(), f"~/.shoestring/{provider.cluster_name}/{name}", 0o600)
    for machine, lines in provider.ledger.files().items():
        if machine != runner.node_id:
            runner.write(lines, f"~/.shoestring/{provider.cluster_name}/others/{machine}.jsonl", 0o600)
    runner.write(runner.node_id.encode(), f"~/.shoestring/{provider.cluster_name}/copy", 0o600)
    for name in [*provider.markets, *(["registry"] if provider.settings.registry else [])]:
        runner.write(markets.key(name).encode(), f"~/.config/shoestring/{name}_api_key", 0o600)
    for package in (Path(__file__).parents[1], Path(__file__).parents[2] / "lib"):
        runner.run_rsync_up(str(package), f"{autoscaler_config.CODE}/{package.name}")
    if provider.settings.network == "mesh":
        _prepare(provider, runner)


def _prepare(provider: Cluster, runner: Shell) -> None:
    """Installs the mesh's files on a rented machine."""
    files = {name: path.read_bytes() for name, path in mesh.files().items()}
    files["authorized_keys"] = f"restrict,port-forwarding {provider.folder.public_key}\n".encode()
    box = f'"$HOME"/{mesh.BOX}'
    runner.send(
        _packed(files),
        f"mkdir -p {box} && tar -xf - --no-same-owner -C {box} && bash {box}/mesh.sh {watchdog.HEARTBEAT}",
    )


def _packed(files: dict[str, bytes]) -> bytes:
    """Returns a tar archive of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(content), 0o600, int(time.time())
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()
