"""The request bodies of RunPod's REST v2, as strict as its OpenAPI description (`unevaluatedProperties: false`).

They have only the fields that the simulator implements; a field that it would ignore is rejected, even if RunPod accepts it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field

from cluster.sim.api import Refusal, Strict

Version = Annotated[str, Field(pattern=r"^\d+\.\d+$")]
PublicKey = Annotated[str, Field(pattern=r"^(ssh|ecdsa|sk)-[^\s]+ [^\s]+([ \t][^\n\r]*)?$")]


class Gpu(Strict):
    id: str
    count: int = Field(default=1, ge=1)
    allowedCudaVersions: list[Version] | None = None
    minCudaVersion: Version | None = None


class Cpu(Strict):
    id: str = Field(min_length=1)
    vcpuCount: int = Field(ge=2)


class Persistent(Strict):
    size: int = Field(ge=10)
    path: str


class Mounts(Strict):
    persistent: Persistent | None = None


class Update(Strict):
    """Everything but the name takes effect at the next start."""

    name: str | None = Field(default=None, min_length=1)
    args: str | None = None
    env: dict[str, str] | None = None
    image: str | None = None
    ports: list[str] | None = None


class Create(Strict):
    name: str = Field(min_length=1)
    image: str
    args: str = ""
    disk: int = Field(default=20, ge=1)
    env: dict[str, str] = Field(default_factory=dict)
    ports: list[str] = Field(default_factory=list)
    cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    cpu: Cpu | None = None
    gpu: Gpu | None = None
    dataCenterIds: list[str] = Field(default_factory=list)
    globalNetworking: bool = False
    registry: str | None = None
    mounts: Mounts = Field(default_factory=Mounts)
    startSsh: bool = False


class Action(Strict):
    action: Literal["start", "stop", "restart", "terminate"]


class SshKeys(Strict):
    keys: list[PublicKey]


def tcp_ports(ports: list[str]) -> list[int]:
    """Returns the TCP ports, which are mapped to public ones, of a list such as ["22/tcp", "8888/http"]. Raises Refusal."""
    found = []
    for port in ports:
        number, _, kind = port.partition("/")
        if not number.isdigit() or not 1 <= int(number) <= 65535 or kind not in ("tcp", "http"):
            raise Refusal(422, "ports", f"ports: {port} is not NUMBER/tcp or NUMBER/http", [f"ports: {port}"])
        if kind == "tcp" and int(number) not in found:
            found.append(int(number))
    return found


def stamp(unix: float | None) -> str | None:
    return unix and datetime.fromtimestamp(unix, UTC).isoformat().replace("+00:00", "Z")
