"""What RunPod's API answers, as much of it as runpod.py reads: REST v2's shapes (its OpenAPI description) and GraphQL's."""

from __future__ import annotations

from datetime import datetime
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, field_validator

from cluster.market import LABEL

Data = TypeVar("Data", bound=BaseModel)
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


class Lowest(BaseModel):
    minimumBidPrice: float | None
    stockStatus: str | None = None


class SpotType(BaseModel):
    id: str
    displayName: str
    memoryInGb: float
    maxGpuCount: int | None = None
    lowestPrice: Lowest | None


class SpotTypes(BaseModel):
    gpuTypes: list[SpotType]


class Id(BaseModel):
    id: str


class Rented(BaseModel):
    podRentInterruptable: Id | None


class Message(BaseModel):
    message: str


class Answer(BaseModel, Generic[Data]):
    errors: list[Message] = []
    data: Data | None = None


class Endpoint(BaseModel):
    host: str
    port: int


class Ssh(BaseModel):
    direct: Endpoint | None


class Gpu(BaseModel):
    id: str
    count: int = 1


class Network(BaseModel):
    enabled: bool
    ip: str | None = None


class Pod(BaseModel):
    id: str
    name: str
    status: Literal["PROVISIONING", "STARTING", "RUNNING", "EXITED", "ERROR", "TERMINATED"]
    cost: float
    disk: int
    env: dict[str, str]
    createdAt: datetime
    startedAt: datetime | None
    ssh: Ssh
    globalNetworking: Network
    gpu: Gpu | None = None


class Pods(BaseModel):
    pods: list[Pod]

    @field_validator("pods", mode="before")
    @classmethod
    def ours(cls, rows: list) -> list:
        """Nothing that an account's other pods hold can keep us from seeing, and ending, our own."""
        return [row for row in rows if "name" not in row or str(row["name"]).startswith(LABEL)]


class Done(BaseModel):
    pass
