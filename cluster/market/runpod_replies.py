"""The fields of RunPod's replies that runpod.py reads, after the schemas in REST v2's OpenAPI description."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, field_validator, model_validator

from cluster.market import reply_rows
from cluster.market.reply_rows import Amount

Level = Literal["NONE", "LOW", "MEDIUM", "HIGH"]


class Price(BaseModel):
    secure: float
    community: float


class Counts(BaseModel):
    secure: int
    community: int


class Center(BaseModel):
    id: str
    availability: str


class GpuType(BaseModel):
    id: str
    name: str
    memory: float
    secure: bool
    community: bool
    price: Price
    maxCount: Counts
    availability: Level
    dataCenters: list[Center] = []


class GpuTypes(BaseModel):
    gpus: list[GpuType]

    @field_validator("gpus", mode="before")
    @classmethod
    def readable(cls, found: list) -> list:
        return reply_rows.readable(GpuType, found, "runpod, offers")


class Cores(BaseModel):
    min: int
    max: int


class CpuPrice(BaseModel):
    securePerVcpu: float


class CpuType(BaseModel):
    id: str
    vcpu: Cores
    ramGbPerVcpu: float
    price: CpuPrice
    availability: Level


class CpuTypes(BaseModel):
    cpus: list[CpuType]

    @field_validator("cpus", mode="before")
    @classmethod
    def readable(cls, found: list) -> list:
        return reply_rows.readable(CpuType, found, "runpod, offers without GPU")


class Id(BaseModel):
    id: str


class Endpoint(BaseModel):
    host: str
    port: int


class Ssh(BaseModel):
    direct: Endpoint | None


class Gpu(BaseModel):
    id: str
    count: int = 1


class Cpu(BaseModel):
    id: str


class Network(BaseModel):
    enabled: bool
    ip: str | None = None


Moment = Annotated[datetime, AfterValidator(lambda at: at if at.year > 1970 else None)]


class Pod(BaseModel):
    """Only the fields that identify and destroy one of our pods are required; null counts as absent."""

    id: str
    name: str
    status: str = ""
    cost: Amount | None = None
    disk: int | None = None
    env: dict[str, str] = {}
    createdAt: Moment | None = None
    startedAt: Moment | None = None
    ssh: Ssh = Ssh(direct=None)
    globalNetworking: Network = Network(enabled=False)
    gpu: Gpu | None = None
    cpu: Cpu | None = None
    cloud: str = ""
    dataCenterId: str = ""

    @model_validator(mode="before")
    @classmethod
    def null_is_absent(cls, row: object) -> object:
        return {k: v for k, v in row.items() if v is not None} if isinstance(row, dict) else row


class Pods(BaseModel):
    pods: list[Pod]

    @field_validator("pods", mode="before")
    @classmethod
    def ours(cls, found: list) -> list:
        """Ignores the account's other pods, so that their contents can't prevent listing and destroying ours."""
        return reply_rows.ours(Pod, found, "name", "runpod, list")


class Done(BaseModel):
    pass
