"""Runs commands on a rented node, over SSH to the host and port mapped by its market. Files are sent with tar, which every image has."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time

import click
from ray.autoscaler.command_runner import CommandRunnerInterface

from cluster.node import driver, join
from cluster.node.key_folder import Folder

EXCLUDED = ("__pycache__", ".git", ".venv")
ADDRESS_S = 900.0
"""A rental without an address after this long is an error."""
AGAIN_S = 2.0
"""Seconds between two checks for the address."""


class Runner(CommandRunnerInterface):
    """Ray's interface for commands on a node, with the cluster's own key, host keys pinned by rental, and a mapped port.

    provider: asked for the address when it is first needed, since a rental has none before it runs.
    """

    def __init__(self, provider, node_id: str, auth_config: dict, cluster_name: str, process_runner=subprocess):
        self.provider, self.node_id, self.process_runner = provider, node_id, process_runner
        self.folder: Folder = provider.folder
        self.user = auth_config["ssh_user"]
        self._proxy = auth_config.get("ssh_proxy_command")
        # One connection serves all commands of a set-up. The folder's name is short, since a socket's path has at most 107 characters.
        short = [hashlib.sha256(name.encode()).hexdigest()[:10] for name in (getpass.getuser(), cluster_name)]
        self._sockets = "/tmp/ray_ssh_{}/{}".format(*short)
        self._address: tuple[str, int] | None = None

    def address(self) -> tuple[str, int]:
        """Returns (host, port) of the node's sshd; the first call waits for it. Raises ClickException if there is none in time."""
        deadline = time.monotonic() + ADDRESS_S
        while self._address is None:
            self._address = self.provider.ssh(self.node_id)
            if self._address is None:
                if time.monotonic() > deadline or self.provider.is_terminated(self.node_id):
                    raise click.ClickException(f"{self.node_id} has no address.")
                time.sleep(AGAIN_S)
        return self._address

    def _options(self, timeout: int | None = None) -> list[str]:
        """Returns the options of ssh, without its target. timeout: seconds for the connection."""
        os.makedirs(self._sockets, mode=0o700, exist_ok=True)
        options = {
            "ExitOnForwardFailure": "yes",
            "ServerAliveInterval": 5,  # a connection that breaks ends the command
            "ServerAliveCountMax": 3,
            "ControlMaster": "auto",
            "ControlPath": f"{self._sockets}/%C",
            "ControlPersist": "10s",
            **({"ProxyCommand": self._proxy} if self._proxy else {}),
            **self.folder.ssh_options(self.node_id),
            "Port": self.address()[1],
            **({"ConnectTimeout": timeout} if timeout else {}),
        }
        return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    @property
    def _target(self) -> str:
        return f"{self.user}@{self.address()[0]}"

    def run(
        self,
        cmd: str | None = None,
        timeout: int = 120,
        exit_on_fail: bool = False,
        port_forward: list[tuple[int, int]] | tuple[int, int] | None = None,
        with_output: bool = False,
        environment_variables: dict[str, object] | None = None,
        run_env: str = "auto",
        ssh_options_override_ssh_key: str = "",
        shutdown_after_run: bool = False,
    ):
        """Runs `cmd` in an interactive login shell; without one, only forwards ports. Raises ClickException if it fails.

        For `ray start`, adds the node's own options, and first checks that its GPUs are usable.
        ssh_options_override_ssh_key is ignored, since the cluster has one key, and run_env, since Ray doesn't run in Docker here.
        """
        if cmd and "ray start" in cmd:
            resources = (environment_variables or {}).get("RAY_OVERRIDE_RESOURCES") or {}
            if resources.get("GPU"):
                self.check_gpus(int(resources["GPU"]))
            cmd = _exports(join.environment(self.provider, self.node_id)) + cmd
        if cmd and shutdown_after_run:
            cmd += "; sudo shutdown -h now"
        forwards = [port_forward] if isinstance(port_forward, tuple) else port_forward or []
        ssh = ["ssh", "-tt", *(word for here, there in forwards for word in ("-L", f"{here}:localhost:{there}"))]
        ssh += [*self._options(timeout), self._target]
        if cmd:
            as_json = {k: json.dumps(v, separators=(",", ":")) for k, v in (environment_variables or {}).items()}
            whole = f"source ~/.bashrc; export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore && ({_exports(as_json)}{cmd})"
            ssh += ["bash", "--login", "-c", "-i", shlex.quote(whole)]
        else:  # in some versions of ssh, -N with ControlMaster opens a shell
            ssh.append("while true; do sleep 86400; done")
        result = self._run(ssh, with_output, exit_on_fail)
        if node := self.provider.nodes.get(self.node_id):
            node.reached = True
        return result

    def _run(self, command: list[str], with_output: bool = False, show: bool = False):
        """Runs a command and returns its output, or else its exit code. show: include the command in the error. Raises
        ClickException."""
        try:
            if with_output:
                return self.process_runner.check_output(command)
            return self.process_runner.check_call(command, stdin=None, stdout=sys.stdout, stderr=sys.stderr)
        except subprocess.CalledProcessError:
            why = f"Command failed:\n\n  {' '.join(command)}\n" if show else "SSH command failed."
            raise click.ClickException(why) from None
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    def check_gpus(self, count: int) -> None:
        """Checks that torch can use the node's GPUs. If not, gives the node up, remembers its machine as bad and raises ClickException
        with the reason."""
        # A login shell like Ray's, so that PATH selects the Python that Ray will use. Its warnings about a missing terminal are dropped.
        output = self.send(
            driver.PROBE.read_bytes(),
            "bash --login -i -c 'python3 -' 2> ~/probe.log || { tail -5 ~/probe.log >&2; exit 1; }",
        )
        report = json.loads(output.strip().splitlines()[-1])
        if why := driver.complaint(report, count, self.provider.settings.torch):
            self.provider.give_up(self.node_id, why)
            raise click.ClickException(f"{self.node_id} is given up: {why}.")

    def run_init(self, *, as_head: bool, file_mounts: dict, sync_run_yet: bool) -> None:
        """Called by Ray once in every set-up, before Ray starts on the node."""
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

    def run_rsync_down(self, source: str, target: str, options: dict | None = None) -> None:
        """`ray rsync-down`, by rsync on both sides."""
        options = options or {}
        filters = [word for name in options.get("rsync_exclude") or [] for word in ("--exclude", name)]
        filters += [word for name in options.get("rsync_filter") or [] for word in ("--filter", f"dir-merge,- {name}")]
        shell = shlex.join(["ssh", *self._options(120)])
        self._run(["rsync", "--rsh", shell, "-avz", *filters, f"{self._target}:{source}", target])

    def write(self, content: bytes, target: str, mode: int) -> None:
        """Writes a file on the node atomically; a private `mode` holds from the first byte on."""
        new = _remote(f"{target}.new")
        self.send(
            content,
            f"umask 077; mkdir -p $(dirname {new}) && cat > {new} && chmod {mode:o} {new} && mv {new} {_remote(target)}",
        )

    def send(self, content: bytes, command: str) -> bytes:
        """Runs `command` on the node with `content` as standard input and returns its standard output. Raises CalledProcessError."""
        ssh = ["ssh", "-T", *self._options(30), self._target, command]
        done = self.process_runner.run(ssh, input=content, capture_output=True)
        if done.returncode:
            errors = done.stderr.decode(errors="replace").strip()
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, f"{errors} ({self.node_id})")
        return done.stdout

    def remote_shell_command_str(self) -> str:
        return shlex.join(["ssh", *self._options(), self._target]) + "\n"


def _exports(variables: dict[str, str]) -> str:
    return "".join(f"export {key}={shlex.quote(value)}; " for key, value in variables.items())


def _remote(path: str) -> str:
    """Quotes a path for the node's shell; ~ expands to the node's home."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)
