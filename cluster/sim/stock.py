"""RunPod's catalog: which machines are free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.sim.rental import Machine
from cluster.sim.world import World


class Query(BaseModel):
    """A query of either catalog. The filters are valid only with include=AVAILABILITY, which requires `product`."""

    model_config = ConfigDict(extra="forbid")
    include: Literal["AVAILABILITY"] | None = None
    product: Literal["POD"] | None = None
    count: int = Field(default=1, ge=1)
    vcpuCount: int | None = None
    cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    countryCodes: Annotated[str, Field(pattern=r"^[A-Z]{2}(,[A-Z]{2})*$")] | None = None
    minCudaVersion: Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")] = "0"

    @model_validator(mode="after")
    def _together(self):
        if bool(self.include) != bool(self.product) or (self.model_fields_set and not self.include):
            raise ValueError("include=AVAILABILITY and product go together, and the filters need both")
        return self


def country(region: str) -> str:
    """Returns the country of a region: US of US-TX-3, SE of EU-SE-1."""
    first, second, _ = region.split("-")
    return second if first == "EU" else first


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def choose(
    world: World,
    gpu: str,
    count: int = 1,
    clouds: list[bool] | None = None,
    centers: list[str] | None = None,
    min_cuda: str = "0",
    exact_cuda: list[str] | None = None,
) -> list[Machine]:
    """Returns the machines with that many free GPUs of this type, cheapest first. clouds: allowed values of `secure`. None: any."""
    able = [
        m
        for m in world.of("runpod")
        if m.gpu == gpu and world.free(m) >= max(count, 1) and (clouds is None or m.secure in clouds)
        and (not centers or m.region in centers) and (not exact_cuda or str(m.cuda) in exact_cuda)
        and (m.cuda is None or version(str(m.cuda)) >= version(min_cuda))
    ]  # fmt: skip
    return sorted(able, key=lambda m: m.usd_per_hour / max(m.count, 1))


def level(free: int) -> str:
    return "NONE" if not free else "LOW" if free == 1 else "MEDIUM" if free < 4 else "HIGH"


def gpu_names(world: World) -> list[str]:
    return sorted({m.gpu for m in world.of("runpod") if m.count})


def short(gpu: str) -> str:
    return gpu.removeprefix("NVIDIA ").removeprefix("GeForce ")


def gpu_types(world: World, query: Query) -> list[dict]:
    found = []
    for gpu in gpu_names(world):
        kind = [m for m in world.of("runpod") if m.gpu == gpu]
        dearest = max(m.usd_per_hour / m.count for m in kind)
        sides = {side: [m for m in kind if m.secure == (side == "secure")] for side in ("secure", "community")}
        row = {
            "id": gpu,
            "name": short(gpu),
            "pool": None,
            "manufacturer": "NVIDIA",
            "memory": int(kind[0].gpu_memory_gb),
            "secure": bool(sides["secure"]),
            "community": bool(sides["community"]),
            "price": {
                side: min((m.usd_per_hour / m.count for m in own), default=dearest) for side, own in sides.items()
            },
            "maxCount": {side: max((m.count for m in own), default=0) for side, own in sides.items()},
        }
        if query.include:
            able = choose(world, gpu, query.count, [query.cloud == "SECURE"], min_cuda=query.minCudaVersion)
            if query.countryCodes:
                able = [m for m in able if country(m.region) in query.countryCodes.split(",")]
            pods = {
                r: sum(world.free(m) // query.count for m in able if m.region == r) for r in {m.region for m in able}
            }
            row["availability"] = level(sum(pods.values()))
            row["dataCenters"] = [{"id": r, "name": r, "availability": level(n)} for r, n in sorted(pods.items())]
            row["cudaVersions"] = [
                {"version": str(cuda), "available": any(m.cuda == cuda for m in able)}
                for cuda in sorted({m.cuda for m in kind if m.cuda})
            ]
        found.append(row)
    return found


def cpu_types(world: World, query: Query) -> list[dict]:
    return [
        {
            "id": m.gpu,
            "name": m.gpu,
            "group": "Gen 3",
            "vcpu": {"min": 2, "max": m.cpus},
            "ramGbPerVcpu": m.memory_gb / m.cpus,
            "price": {"securePerVcpu": m.usd_per_hour, "serverlessPerVcpu": m.usd_per_hour},
        }
        | ({"availability": level(4 * world.free(m))} if query.include else {})
        for m in world.of("runpod")
        if not m.count
    ]
