"""Both simulated APIs in this process, without boxes."""

import asyncio
import os
from pathlib import Path

from starlette.testclient import TestClient

from cluster.sim import catalogue
from cluster.sim.__main__ import make_apps
from cluster.sim.box import NoBox
from cluster.sim.world import World

SPEC = os.environ.get("RUNPOD_SPEC")
"""RunPod's OpenAPI description, if available; bodies and replies are then also checked against it."""
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmQ me"


class Held(World):
    """A world whose rentals boot only when told to."""

    def __init__(self, *args):
        super().__init__(*args)
        self.go = asyncio.Event()

    async def _boot(self, rental, fault):
        await self.go.wait()
        await super()._boot(rental, fault)


class Both:
    """Clients of both APIs of one world, in which nothing boots between ticks."""

    def __init__(self, pace: float = 1e6, flat: bool = False):
        self.world = Held(catalogue.machines(0), NoBox, 0.0, 0, pace, flat)
        apps, self.controls = make_apps(self.world, 0.0, 0, Path(SPEC) if SPEC else None)
        self.vast, self.runpod = (TestClient(apps[m]) for m in ("vast", "runpod"))
        for market, client in (("vast", self.vast), ("runpod", self.runpod)):
            client.headers["Authorization"] = f"Bearer {self.world.keys[market]}"

    def control(self, name: str, **body):
        return self.vast.post(f"/_sim/{name}", json=body)

    def tick(self) -> None:
        """Advances the world's clock and boots what is booting."""

        async def beat() -> None:
            await self.world.tick()
            self.world.go.set()
            while any(r.booting and r.why != "pulling image" for r in self.world.alive()):
                await asyncio.sleep(0.001)
            self.world.go.clear()

        self.vast.portal.call(beat)

    def rent(self, machine: int = 100_000, **more) -> str:
        order = {"image": "x", "disk": 20, "label": "shoestring/t", "cancel_unavail": True} | more
        return str(self.vast.put(f"/api/v0/asks/{machine}/", json=order).json()["new_contract"])

    def show(self, ident: str) -> dict:
        return self.vast.get(f"/api/v0/instances/{ident}/").json()["instances"]
