"""python -m cluster head --config cluster/vast.yaml

Makes this machine the head of a cluster, which rents workers as jobs need them. The head opens the connections to its workers, so
a laptop or a Colab behind any router will do. Ctrl-C, or `--stop` in another terminal, ends the workers and Ray.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cluster.market import registry
from cluster.market.base import MarketError, Refused
from cluster.node import autoscaler_config, config_schema, mesh, programs
from cluster.node.key_folder import Folder
from lib.runtime import ray_session

DASHBOARD = "http://127.0.0.1:8265"
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP included: closing the terminal ends the head, unless it runs under nohup."""
START_S = 120.0
"""Time allowed for Ray's head to start."""
STARTED = "Ray runtime started"
"""What `ray start` prints once it is up."""


def main(argv: list[str]) -> int:
    from lib.runtime.refusing import refusing

    parser = argparse.ArgumentParser(prog="python -m cluster head", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("--config", required=True, help="YAML of the cluster, as for `ray up`")
    parser.add_argument("--stop", action="store_true", help="end the running head and every rental of the cluster")
    args = parser.parse_args(argv)
    with refusing("python -m cluster head"):
        if sys.platform != "linux":
            raise ValueError("the head's network to its workers works only on Linux. Rent the head instead: ray up")
        programs.check(*programs.TO_BE_THE_HEAD)
        config = read(args.config)
        try:
            folder = Folder(config["cluster_name"])
        except OSError as e:
            raise ValueError(
                f"{e.filename}: {e.strerror}. SHOESTRING_STATE names another folder for ledgers and SSH keys."
            ) from None
    try:
        return stop(config, folder) if args.stop else lead(config, folder, args.config)
    except MarketError as e:
        name = config["cluster_name"]
        print(
            f"{name}: some rentals may still run, and end by themselves once their head is gone: {e}", file=sys.stderr
        )
        print(f"List and end them: python -m cluster sweep {name}", file=sys.stderr)
    except RuntimeError as e:
        print(f"python -m cluster head: {e}", file=sys.stderr)
    except subprocess.CalledProcessError as e:  # its own message was printed above
        print(f"python -m cluster head: {e.cmd[0]} failed with exit code {e.returncode}", file=sys.stderr)
    return 1


def read(path: str) -> dict:
    """Reads the YAML and completes it for a head on this machine. Raises ValueError."""
    from ray.autoscaler.sdk import fillout_defaults

    from lib.config.config_file import read_yaml

    config = {"cluster_synced_files": []} | read_yaml(path)
    config_schema.check(config)
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)  # else it warns about defaults that it fills in
    if config["provider"].get("network") == "flat":
        raise ValueError("provider.network: flat is for a rented head. A head on this machine needs mesh.")
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        config.setdefault(key, [])
    config["provider"]["here"] = True
    config = autoscaler_config.complete(_filled(fillout_defaults(config)))
    config_schema.check(config)
    for name in [*config["provider"]["markets"], *(["registry"] if config["provider"].get("registry") else [])]:
        _keep_key(name)
    for name in registry.MARKETS:  # also those of markets that this cluster doesn't use
        os.environ.pop(f"{name.upper()}_API_KEY", None)
    return config


def _filled(config: dict) -> dict:
    """Fills in what `ray up` would before starting the autoscaler: each node's setup_commands, and min_workers and max_workers of each
    type."""
    for who in ("head", "worker"):
        config[f"{who}_setup_commands"] = config["setup_commands"] + config[f"{who}_setup_commands"]
    for name, node in config["available_node_types"].items():
        node.setdefault("min_workers", 0)
        node.setdefault("max_workers", 0 if name == config["head_node_type"] else config["max_workers"])
    return config


def _keep_key(name: str) -> None:
    """Stores the market's API key in its file (0600), since every job can read the environment of Ray's processes."""
    variable, path = f"{name.upper()}_API_KEY", registry.key_file(name)
    key = registry.key(name)
    if os.environ.pop(variable, None) and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as f:
            f.write(key + "\n")
        print(f"Stored {variable} in {path}, which only you can read.")
    elif registry.key(name) != key:
        raise ValueError(f"{variable} differs from the key in {path}. Remove one of them.")


def lead(config: dict, folder: Folder, path: str) -> int:
    """Runs the head until it is stopped. Returns the exit code."""
    with _lock(folder) as mine:
        if not mine:
            print(
                f"{config['cluster_name']} already has a head on this machine: {DASHBOARD}\n"
                f"Use that, or end it first: python -m cluster head --config {path} --stop",
                file=sys.stderr,
            )
            return 2
        _check_ports()
        _check_keys(config)
        for number in ENDS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _interrupt)
        ray = None
        try:
            ray = _start(config, folder)
            print(
                f"The head is up.\n"
                f"  dashboard   {DASHBOARD}\n"
                f"  submit      ray job submit --address {DASHBOARD} --working-dir . -- python jobs/sft.py --config configs/sft.yaml\n"
                f"  end it      Ctrl-C, or python -m cluster head --config {path} --stop",
                flush=True,
            )
            ray.wait()
            print(f"Ray ended by itself (exit code {ray.returncode}): {folder.path}/head.log", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 0
        finally:
            for number in ENDS:  # a second Ctrl-C doesn't interrupt the cleanup
                signal.signal(number, signal.SIG_IGN)
            if ray:
                ray.terminate()
                ray.wait()
            _end_rentals(config)


def _check_ports() -> None:
    """Raises RuntimeError if another program uses a port that Ray's head needs."""
    for address, port, what in (
        (mesh.ip(mesh.HEAD), mesh.GCS_PORT, "Ray's head"),
        ("127.0.0.1", 8265, "its dashboard"),
    ):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind((address, port))
            except OSError:
                raise RuntimeError(
                    f"port {port}, which {what} needs, is taken on this machine: by another cluster's head (end it with its --stop), "
                    f"a Ray (ray stop), or another program (ss -ltnp 'sport = {port}' shows which)."
                ) from None


def _check_keys(config: dict) -> None:
    """Calls each market once, so that a refused key is reported now and not when a job needs a worker. Raises RuntimeError."""
    for name in config["provider"]["markets"]:
        try:
            registry.find(name).list()
        except Refused as e:
            raise RuntimeError(f"{e} (the key is in {registry.key_file(name)}.)") from None
        except MarketError as e:
            print(f"{e}. The market is tried again when a worker is needed.", file=sys.stderr)


def _interrupt(number, frame):
    raise KeyboardInterrupt


def dependent(module: str, *words: str) -> list[str]:
    """Returns the command that runs a Python module and is terminated when this process ends for any reason."""
    return ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", module, *words]


def python_path() -> str:
    """Returns PYTHONPATH for a child process, with this project first."""
    return os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])


def _start(config: dict, folder: Folder) -> subprocess.Popen:
    """Starts Ray's head on this machine, to be ended with this process. Raises RuntimeError."""
    written = folder.path / "head.yaml"
    written.write_text(json.dumps(config), encoding="utf-8")
    head = config["head_node_type"]
    environment = {
        **os.environ,
        **autoscaler_config.ON_EVERY_NODE,
        **autoscaler_config.ON_THE_HEAD,
        **mesh.environment(mesh.HEAD, mesh.build_shim(folder.path)),
        # A job's `python` is this interpreter, even if its virtual environment isn't activated.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": python_path(),
        # Ray writes ~/.ray/auth_token when a job runs, and would then require that token here; rented workers don't have it.
        "RAY_AUTH_MODE": "disabled",
        "RAY_CLOUD_INSTANCE_ID": "here",
        "RAY_NODE_TYPE_NAME": head,
        "RAY_OVERRIDE_RESOURCES": json.dumps(config["available_node_types"][head].get("resources") or {}),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    command = dependent("ray.scripts.scripts", "start", "--head", "--block")
    command += [f"--port={mesh.GCS_PORT}", *mesh.ray_options(mesh.HEAD), "--disable-usage-stats"]
    command.append(f"--autoscaling-config={written}")
    log = folder.path / "head.log"
    for attempt in range(1, ray_session.TRIES + 1):
        ray = _launch(command, environment, log)
        said, code = log.read_text(), ray.poll()
        if code is None and STARTED in said:
            return ray
        ray.terminate()
        ray.wait()
        if code is None or not ray_session.too_slow(said) or attempt == ray_session.TRIES:
            break
        print(f"Ray's head did not start in time: trying again, {attempt + 1} of {ray_session.TRIES}.", file=sys.stderr)
    what = f"did not start in {START_S:.0f} s" if code is None else f"ended with exit code {code}"
    last = [line.strip() for line in said.splitlines() if line.strip()][-1:]
    raise RuntimeError(
        f"Ray's head {what}. Its last line: {''.join(last) or 'nothing'}\nFull output: {log}, and /tmp/ray/session_latest/logs"
    )


def _launch(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen:
    """Starts the command with its output in `log`, and returns it when Ray is up, it has ended or START_S have passed."""
    with log.open("w") as output:
        ray = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,  # Ctrl-C reaches this process only
        )  # fmt: skip
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up and ray.poll() is None and STARTED not in log.read_text():
        time.sleep(0.2)
    return ray


def stop(config: dict, folder: Folder) -> int:
    """Ends the head, if one runs here, and all rentals of the cluster. Returns the exit code."""
    with _lock(folder) as mine:
        if not mine:
            os.kill(int((folder.path / "head.lock").read_text()), signal.SIGTERM)
    with _lock(folder, wait=True):
        _end_rentals(config)
    return 0


def _end_rentals(config: dict) -> None:
    from cluster.provider import Provider

    ended = Provider(config["provider"], config["cluster_name"]).end()
    print(
        f"{config['cluster_name']}: {ended or 'no'} rental{'s' if ended != 1 else ''} ended, nothing is left.",
        flush=True,
    )


@contextlib.contextmanager
def _lock(folder: Folder, wait: bool = False):
    """Yields whether this process holds the lock, so is the only head of the cluster on this machine."""
    with open(folder.path / "head.lock", "a+", encoding="utf-8") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        f.truncate(0)
        f.write(str(os.getpid()))
        f.flush()
        yield True
