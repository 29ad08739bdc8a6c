"""Completes the short YAML of a cluster to the full one for Ray, with everything that all of this project's clusters share."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass, field, fields
from importlib.metadata import requires, version
from pathlib import Path
from typing import Literal, get_args

from cluster.market import ladder, tags
from cluster.money.budget import Budget
from cluster.node import driver, mesh

CODE = "/opt/shoestring"
"""Where this project is on a rented head: the autoscaler imports provider.py there, outside any job's runtime environment."""

ON_EVERY_NODE = {
    # gRPC detects an unreachable peer after 15 s instead of never: a driver waits on the connection, not on the GCS.
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_worker_niceness": "0",  # as lib/runtime/ray_session.py
    # Allow nodes and drivers another Python 3.11.x than the head's (ray/_private/utils.py, check_version_info; Ray's default refuses).
    "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
}
ON_THE_HEAD = {
    # A node counts as dead after 6 to 10 s without an answer (Ray's default: 30 s).
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
    "AUTOSCALER_UPDATE_INTERVAL_S": "3",
    "AUTOSCALER_NODE_SSH_INTERVAL_S": "2",
    "RAY_enable_autoscaler_v2": "1",
    # How long the autoscaler waits for a node that was rented and lost before its first check (Ray's default: 600 s). A create that
    # takes longer, because a market stalls, is requested a second time.
    "RAY_AUTOSCALER_RECONCILE_REQUEST_STATUS_TIMEOUT_S": "180",
}
"""Environment of `ray start`. With Ray's defaults, a task on an unreachable host was still not retried after 275 s."""

VENV = "/opt/venv"
INSTALL_GB = 3.1
"""Download size of install() on an image without any of the packages: 171 wheels for x86-64 and Python 3.11, 2.7 GB of them torch
and CUDA (`uv lock` of pyproject.toml's requirements records each size)."""
IMAGE_GB = 0.6
"""Compressed size of the image in cluster/*.yaml, as reported by its users; a market's hosts may have it cached."""
SETUP_GB = IMAGE_GB + INSTALL_GB
"""Gigabytes that a node downloads before its first job."""
STOP = "if grep -qsxE 'raylet|gcs_server|ray::.*|ray-dashboard.*' /proc/[0-9]*/comm; then ray stop; fi"
"""Shell command that stops processes left by an earlier head or a failed start; a leftover gcs_server would hold the port. `ray stop`
runs only if there are any, since it takes seconds."""


def packages() -> list[str]:
    """Returns the requirements of a node, as arguments of `pip install`."""
    others = [r for r in requires("shoestring") if "extra ==" not in r and not r.startswith("ray[")]
    return [*others, f"ray[train,tune,serve,default]=={version('ray')}"]


def install(torch: str | None = None) -> str:
    """Returns the shell command that installs this Python and all requirements of this project on a node whose image lacks this
    version of Ray. torch: a build such as cu129; None: PyPI's."""
    script = Path(__file__).with_name("install.sh").read_text(encoding="utf-8")
    arguments = [VENV, platform.python_version(), torch or "", *packages()]
    return f"{shlex.join(['bash', '-c', script, 'install.sh', *arguments])} < /dev/null"


Network = Literal["mesh", "flat"]


@dataclass(frozen=True)
class Settings:
    """The provider section of the YAML, without type and module."""

    markets: tuple[str, ...]
    """Where to rent: vast, runpod."""
    network: Network = "mesh"
    """mesh: SSH tunnels opened by the head. flat: nodes reach each other by their private addresses."""
    image: str = ""
    """Container image of all nodes, unless their node_config names one."""
    registry: str = ""
    """Server of a private `image`, such as ghcr.io; empty: the image is public. The login is USER:TOKEN in REGISTRY_API_KEY, or in a
    file like the markets' keys."""
    runpod_registry: str = ""
    """Id of the same login as stored at RunPod (`runpodctl registry create`)."""
    torch: str | None = None
    """A build of torch other than PyPI's, such as cu129 for older drivers: https://download.pytorch.org/whl/cu129. None: PyPI's."""
    budget: Budget = field(default_factory=Budget)
    unattended_minutes: float = 10.0
    """A worker that no head has reached for this long destroys itself."""
    boot_minutes: float = 25.0
    """A rental that doesn't run after this long is given up, usually because its image doesn't load. Slow hosts take 10 to 20."""
    login_minutes: float = 3.0
    """A running rental without a successful login after this long is given up."""
    here: bool = False
    """The head is this machine and is not rented (`python -m cluster head`)."""
    slots: int = 0
    """The highest node number in the mesh; numbers are reused in turn."""

    @classmethod
    def read(cls, section: dict) -> Settings:
        """Reads the section. Raises ValueError that names the key."""
        from lib.errors import nearest

        known = {f.name for f in fields(cls)}
        given = {k: v for k, v in section.items() if k not in ("type", "module") and not k.startswith("_")}
        for key in given:
            if key not in known:
                raise ValueError(f"provider.{key} is not a key of the cluster.{nearest(key, known)}")
        names = given.get("markets")
        if not isinstance(names, list) or not names:
            raise ValueError("provider.markets: name at least one, such as [vast, runpod].")
        if given.get("network", "mesh") not in get_args(Network):
            raise ValueError(f"provider.network must be mesh or flat, but is {given['network']!r}.")
        for key in ("unattended_minutes", "boot_minutes", "login_minutes"):
            minutes = given.get(key, 1.0)
            if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not minutes > 0:
                raise ValueError(f"provider.{key} must be a number above 0, but is {minutes!r}.")
        driver.needed(given.get("torch"))
        if given.get("registry") and "runpod" in names and not given.get("runpod_registry"):
            raise ValueError(
                "provider.registry: RunPod stores registry logins itself. Create one with `runpodctl registry create` "
                "and write its id into provider.runpod_registry."
            )
        return cls(**{**given, "markets": tuple(names), "budget": Budget.read(given.get("budget", {}))})


def complete(config: dict) -> dict:
    """Returns `config` with everything that Ray needs; keys that it sets itself are kept. Raises ValueError that names the key."""
    tags.check_name("cluster_name", config["cluster_name"])
    provider = {**config["provider"], "slots": mesh.slots(config["max_workers"])}
    settings = Settings.read(provider)
    if settings.network == "mesh" and settings.slots > mesh.LAST:
        raise ValueError(f"max_workers: the mesh has room for {mesh.MOST_WORKERS}, but it is {config['max_workers']}.")
    for name, node in config["available_node_types"].items():
        tags.check_name("available_node_types", name)
        _check_node(name, node.get("node_config") or {}, settings, config["head_node_type"])
        if (node.get("resources") or {}).get("GPU") and node.get("node_config"):
            _ask_for_driver(node["node_config"], settings)
    # RunPod sets RUNPOD_API_KEY in each pod to a key of the pod itself; the account's key is in a file (join.py).
    own = " ".join(f"{name.upper()}_API_KEY" for name in settings.markets)
    head = _up_to_three_times(
        f"ray start --head {_SAME} --autoscaling-config=~/ray_bootstrap_config.yaml --disable-usage-stats"
    )
    worker = _up_to_three_times(f"ray start --address=$RAY_HEAD_IP:{mesh.GCS_PORT} {_SAME}")
    filled = {
        "auth": {"ssh_user": "root"},
        "docker": {},
        "file_mounts": {},
        "initialization_commands": [],
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_start_ray_commands": [
            STOP,
            _with(ON_EVERY_NODE | ON_THE_HEAD | {"PYTHONPATH": CODE}, f"unset {own}; {head}"),
        ],
        "worker_start_ray_commands": [STOP, _with(ON_EVERY_NODE, worker)],
    }
    for key, value in filled.items():
        config[key] = config.get(key) or value
    for key in ("head_setup_commands", "worker_setup_commands"):
        config[key] = [install(settings.torch), *(config.get(key) or [])]
    config["setup_commands"] = []  # Ray has already added them to both, and would again on the head
    return config | {"provider": provider}


NODE_KEYS = {"ladder", "image", "disk_gb"}


def _check_node(name: str, node: dict, settings: Settings, head: str) -> None:
    from lib.errors import nearest

    where = f"available_node_types.{name}.node_config"
    for key in node:
        if key not in NODE_KEYS:
            raise ValueError(f"{where}.{key} is not a key of a node.{nearest(key, NODE_KEYS)}")
    disk = node.get("disk_gb", 20.0)
    if isinstance(disk, bool) or not isinstance(disk, int | float) or not disk > 0:
        raise ValueError(f"{where}.disk_gb must be a number above 0, but is {disk!r}.")
    if name == head and settings.here:
        return
    for i, rung in enumerate(ladder.parse(node.get("ladder"))):
        if rung.market not in settings.markets:
            raise ValueError(f"{where}.ladder[{i}].market is {rung.market}, and provider.markets doesn't have it.")
        if not rung.image and not node.get("image") and not settings.image:
            raise ValueError(f"{where}: no image. Set provider.image.")


def _ask_for_driver(node: dict, settings: Settings) -> None:
    """Sets min_cuda to the CUDA version that torch needs, in every rung with GPUs that doesn't set it."""
    rows = node.get("ladder") or []
    asks = {"min_cuda": driver.needed(settings.torch)}
    node["ladder"] = [row if not row.get("count", 1) or row.get("min_cuda") else row | asks for row in rows]


_SAME = "$SHOESTRING_NODE"
"""Options that differ from node to node; ssh_runner.py sets it."""


def _up_to_three_times(start: str) -> str:
    """Returns the shell command that tries this `ray start` up to three times, since a slow or busy host can exceed the 30 s that Ray
    gives its own processes (ray/_private/node.py)."""
    again = '[ $((tries++)) -lt 3 ] || exit 1; echo "Ray did not start: try $tries of 3" >&2'
    return f"tries=1; until {start}; do {again}; {STOP}; done"


def _with(environment: dict[str, str], command: str) -> str:
    exports = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
    return f"ulimit -n 65536; export {exports}; {command}"
