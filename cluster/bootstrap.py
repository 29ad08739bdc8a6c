"""From the short YAML of a cluster to the whole one that Ray works with: what every cluster of ours has in common."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass, field, fields
from importlib.metadata import requires, version
from pathlib import Path
from typing import Literal, get_args

from cluster import driver, ladder, mesh, tags
from cluster.budget import Budget

CODE = "/opt/shoestring"
"""Where this project is on a rented head: the autoscaler imports provider.py there, outside any job's runtime environment."""

ON_EVERY_NODE = {
    # A peer that went dark is noticed by gRPC after 15 s instead of never: a driver waits on the connection, not on the GCS.
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_worker_niceness": "0",  # as lib/ray_session.py
    # Nodes and drivers may have another 3.11.x than the head (ray/_private/utils.py, check_version_info: by default they may not).
    "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
}
ON_THE_HEAD = {
    # Dead after 6 to 10 s without an answer (Ray's own: 30 s).
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "3",
    "AUTOSCALER_UPDATE_INTERVAL_S": "3",
    "AUTOSCALER_NODE_SSH_INTERVAL_S": "2",
    "RAY_enable_autoscaler_v2": "1",
    # So long the autoscaler waits for a box that was rented and lost before it first looked (Ray's own: 600 s); a create that takes
    # longer, where a market stalls, is asked for a second time.
    "RAY_AUTOSCALER_RECONCILE_REQUEST_STATUS_TIMEOUT_S": "180",
}
"""Environment of `ray start`. With Ray's defaults a task on a host that went dark was not retried after 275 s."""

VENV = "/opt/venv"
INSTALL_GB = 3.1
"""What install() downloads where the image has nothing: 171 wheels for x86-64 and Python 3.11, 2.7 GB of them torch and CUDA
(`uv lock` of pyproject.toml's requirements notes each one's size)."""
IMAGE_GB = 0.6
"""Of the image of cluster/*.yaml, compressed, by what its users report; a market's hosts may have it already."""
SETUP_GB = IMAGE_GB + INSTALL_GB
"""What a box downloads before its first job."""
STOP = "if grep -qsxE 'raylet|gcs_server|ray::.*|ray-dashboard.*' /proc/[0-9]*/comm; then ray stop; fi"
"""What a head that is gone has left, or a start that failed: a gcs_server alone holds the port of the next. Asking `ray stop` in
vain takes seconds."""


def packages() -> list[str]:
    """What a node needs, as `pip install` takes it."""
    others = [r for r in requires("shoestring") if "extra ==" not in r and not r.startswith("ray[")]
    return [*others, f"ray[train,tune,serve,default]=={version('ray')}"]


def install(torch: str | None = None) -> str:
    """Shell: on a node whose image hasn't this Ray, this Python with all that this project requires. torch: a build (cu129)."""
    script = Path(__file__).with_name("install.sh").read_text(encoding="utf-8")
    arguments = [VENV, platform.python_version(), torch or "", *packages()]
    return f"{shlex.join(['bash', '-c', script, 'install.sh', *arguments])} < /dev/null"


Network = Literal["mesh", "flat"]


@dataclass(frozen=True)
class Settings:
    """The provider section of the YAML, but for type and module."""

    markets: tuple[str, ...]
    """Where to rent: vast, runpod."""
    network: Network = "mesh"
    """mesh: tunnels that the head dials. flat: nodes reach each other by their private addresses."""
    image: str = ""
    """Container image of all nodes, unless their node_config names one."""
    registry: str = ""
    """Where `image` is, if it is private: ghcr.io. The login is REGISTRY_API_KEY, USER:TOKEN, or in a file as markets' keys are."""
    runpod_registry: str = ""
    """RunPod keeps such a login itself: its id there (`runpodctl registry create`)."""
    torch: str | None = None
    """Another build of torch than PyPI's, such as cu129 for older drivers: https://download.pytorch.org/whl/cu129."""
    budget: Budget = field(default_factory=Budget)
    unattended_minutes: float = 10.0
    """A worker that no head has reached for so long destroys itself."""
    boot_minutes: float = 25.0
    """A rental that doesn't run by then is given up: its image doesn't load. Slow hosts take 10 to 20."""
    login_minutes: float = 3.0
    """So is one that runs, and can't be logged in to by then."""
    here: bool = False
    """The head is the machine that this runs on, and not rented (`python -m cluster head`)."""
    slots: int = 0
    """The highest number of a node in the mesh; numbers are used in turn."""

    @classmethod
    def read(cls, section: dict) -> Settings:
        """Raises ValueError that names the key."""
        from lib.cli import nearest

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
                "provider.registry: RunPod keeps logins of registries itself. `runpodctl registry create` makes one; "
                "write its id into provider.runpod_registry."
            )
        return cls(**{**given, "markets": tuple(names), "budget": Budget.read(given.get("budget", {}))})


def complete(config: dict) -> dict:
    """`config` with everything that Ray needs; what it says itself is kept. Raises ValueError that names the key."""
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
    # RunPod gives each pod a key of its own by the account's name for it; the account's is in a file (join.py).
    own = " ".join(f"{name.upper()}_API_KEY" for name in settings.markets)
    head = (
        f"unset {own}; ray start --head {_SAME} --autoscaling-config=~/ray_bootstrap_config.yaml --disable-usage-stats"
    )
    worker = f"ray start --address=$RAY_HEAD_IP:{mesh.GCS_PORT} {_SAME}"
    filled = {
        "auth": {"ssh_user": "root"},
        "docker": {},
        "file_mounts": {},
        "initialization_commands": [],
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_start_ray_commands": [STOP, _with(ON_EVERY_NODE | ON_THE_HEAD | {"PYTHONPATH": CODE}, head)],
        "worker_start_ray_commands": [STOP, _with(ON_EVERY_NODE, worker)],
    }
    for key, value in filled.items():
        config[key] = config.get(key) or value
    for key in ("head_setup_commands", "worker_setup_commands"):
        config[key] = [install(settings.torch), *(config.get(key) or [])]
    config["setup_commands"] = []  # Ray has put them into both already, and would again on the head
    return config | {"provider": provider}


NODE_KEYS = {"ladder", "image", "disk_gb"}


def _check_node(name: str, node: dict, settings: Settings, head: str) -> None:
    from lib.cli import nearest

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
    """Rungs whose GPUs jobs will use, and that don't say what driver these need, ask for what torch needs."""
    rows = node.get("ladder") or []
    asks = {"min_cuda": driver.needed(settings.torch)}
    node["ladder"] = [row if not row.get("count", 1) or row.get("min_cuda") else row | asks for row in rows]


_SAME = "$SHOESTRING_NODE"
"""Options that differ from node to node; runner.py sets it."""


def _with(environment: dict[str, str], command: str) -> str:
    exports = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
    return f"ulimit -n 65536; export {exports}; {command}"
