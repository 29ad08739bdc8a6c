"""Commands on a rented box, over SSH to the host and port that its market mapped; files with tar, which every image has."""

from __future__ import annotations

import json
import os
import shlex
import subprocess

import click
from ray.autoscaler._private.command_runner import SSHCommandRunner

from cluster import driver, join
from cluster.folder import Folder

EXCLUDED = ("__pycache__", ".git", ".venv")


class Runner(SSHCommandRunner):
    """Ray's SSH runner, with the cluster's own key, host keys pinned by rental, and a port.

    provider: asked for the address when it is first needed, since a rental has none before it runs.
    """

    def __init__(self, log_prefix, node_id, provider, auth_config, cluster_name, process_runner, use_internal_ip):
        super().__init__(log_prefix, node_id, provider, auth_config, cluster_name, process_runner, use_internal_ip)
        self.folder: Folder = provider.folder
        self.ssh_private_key = str(self.folder.key)
        self.ssh_options.ssh_key = None  # among the options
        self.ssh_options.arg_dict.update(self.folder.ssh_options(node_id))

    def _get_node_ip(self) -> str | None:
        address = self.provider.ssh(self.node_id)
        if address is None:
            return None
        self.ssh_options.arg_dict["Port"] = address[1]
        return address[0]

    def run(self, cmd=None, *args, ssh_options_override_ssh_key="", **kwargs):
        """As Ray's; the override is left out, since it would come without our options. `ray start` gets what it needs here, and
        isn't run where the node's GPUs can't be used."""
        if cmd and "ray start" in cmd:
            resources = (kwargs.get("environment_variables") or {}).get("RAY_OVERRIDE_RESOURCES") or {}
            if resources.get("GPU"):
                self.check_gpus(int(resources["GPU"]))
            exports = join.environment(self.provider, self.node_id)
            cmd = "".join(f"export {key}={shlex.quote(value)}; " for key, value in exports.items()) + cmd
        result = super().run(cmd, *args, **kwargs)
        if node := self.provider.nodes.get(self.node_id):
            node.reached = True
        return result

    def check_gpus(self, count: int) -> None:
        """Gives the node up, remembers its machine as bad and raises ClickException with the reason where torch can't use them."""
        # A login shell, as Ray's: its PATH leads to the Python that Ray will run by. Its complaints of having no terminal are not ours.
        said = self.send(
            driver.PROBE.read_bytes(),
            "bash --login -i -c 'python3 -' 2> ~/probe.log || { tail -5 ~/probe.log >&2; exit 1; }",
        )
        report = json.loads(said.strip().splitlines()[-1])
        if why := driver.complaint(report, count, self.provider.settings.torch):
            self.provider.give_up(self.node_id, why)
            raise click.ClickException(f"{self.node_id} is given up: {why}.")

    def run_init(self, *, as_head: bool, file_mounts: dict, sync_run_yet: bool) -> None:
        """Ray calls it once in every set-up, before Ray starts on the node."""
        if as_head:
            join.head(self.provider, self)
        else:
            join.worker(self.provider, self.node_id, self)

    def run_rsync_up(self, source: str, target: str, options: dict | None = None) -> None:
        source = os.path.expanduser(source)
        excluded = [*EXCLUDED, *((options or {}).get("rsync_exclude") or [])]
        if os.path.isdir(source):
            tar = ["tar", "-czf", "-", "-C", source, *(f"--exclude={name}" for name in excluded), "."]
            packed = subprocess.run(tar, check=True, stdout=subprocess.PIPE).stdout
            self.send(packed, f"mkdir -p {_remote(target)} && tar -xzf - --no-same-owner -C {_remote(target)}")
        else:
            with open(source, "rb") as f:
                self.write(f.read(), target, os.stat(source).st_mode & 0o777)

    def write(self, content: bytes, target: str, mode: int) -> None:
        """A file on the box, whole or not at all; nobody else can read it at any time if `mode` says so."""
        new = _remote(f"{target}.new")
        self.send(
            content,
            f"umask 077; mkdir -p $(dirname {new}) && cat > {new} && chmod {mode:o} {new} && mv {new} {_remote(target)}",
        )

    def send(self, content: bytes, command: str) -> bytes:
        """Runs `command` on the box with `content` on its standard input; its standard output. Raises CalledProcessError."""
        target = self._get_ssh_target()
        ssh = ["ssh", "-T", *self.ssh_options.to_ssh_options_list(timeout=30), f"{self.ssh_user}@{target}", command]
        done = self.process_runner.run(ssh, input=content, capture_output=True)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, f"{said} ({self.node_id})")
        return done.stdout

    def remote_shell_command_str(self) -> str:
        target = self._get_ssh_target()
        return shlex.join(["ssh", *self.ssh_options.to_ssh_options_list(), f"{self.ssh_user}@{target}"]) + "\n"


def _remote(path: str) -> str:
    """Quoted for the box's shell, where ~ is its own."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)
