"""Random faults, one after another, in a cluster of real boxes: SOAK_FAULTS=200 pytest tests/cluster/test_soak.py"""

import os
import random
import re
import subprocess
import time

import pytest

from tests.cluster import e2e
from tests.cluster.e2e import leading, spots, submit
from tests.http import http

pytestmark = [pytest.mark.slow, pytest.mark.soak, e2e.NAMESPACES]

FAULTS = int(os.environ.get("SOAK_FAULTS", "10"))
WORKERS = 3
ASK = f"""
import ray, time
from ray.autoscaler.sdk import request_resources
ray.init(address="auto", log_to_driver=False)
while True:
    request_resources(num_cpus={WORKERS})
    time.sleep(5)
"""
API = {
    "vast": [
        "PUT /api/v0/asks/{id}/",
        "DELETE /api/v0/instances/{id}/",
        "GET /api/v1/instances/",
        "POST /api/v0/bundles/",
    ],
    "runpod": ["POST /v2/pods", "GET /v2/catalog/gpus", "GET /v2/pods", "DELETE /v2/pods/{id}"],
}


def a_fault(dice: random.Random, boxes) -> str | None:
    """Causes a fault and returns its description; None if there was nothing that it could affect."""
    running = spots(boxes.state())
    name = dice.choice(["outbid", "exit", "vanish", "offline", "freeze", "dark", "api", "api", "taken"])
    market = dice.choice(["vast", "runpod"])
    if name == "api":
        endpoint, fault = (
            dice.choice(API[market]),
            dice.choice(["429", "429bare", "500", "502", "html", "timeout", "json", "shape", "lost"]),
        )
        boxes.control(
            "api", market=market, endpoint=endpoint, fault=fault, count=1 if fault == "timeout" else dice.randint(1, 3)
        )
        return f"{endpoint} {fault}"
    if name == "taken":
        boxes.control("next", market=market, fault="taken")
        return f"{market} taken"
    if not running:
        return None
    try:
        boxes.control(name, id=(id := dice.choice(running)))
    except AssertionError:  # it has just ended on its own
        return None
    return f"{name} {id}"


def nonce(rental: dict) -> str:
    """Returns the nonce in the ledger's intent of this rental."""
    return f'"nonce": "{re.search(r";n=([0-9a-f]{12})", rental["label"])[1]}"'


@pytest.mark.timeout(1800 + 20 * FAULTS)
def test_no_rental_is_unknown_to_the_ledger_and_there_are_never_too_many(apart):
    laptop, boxes, shared = apart
    known = http.get(f"{boxes.vast_url}/_sim/machines").json()
    spare = [
        m | {"id": m["id"] + 1000 * n}
        for n in range(1, 40)
        for m in known
        if m["count"] == 1 or m["market"] == "runpod"
    ]
    for m in spare:
        del m["free"]
    boxes.control("machines", machines=spare)
    (shared / "ask.py").write_text(ASK)
    ladder = [
        {"market": m, "gpus": ["RTX 4090", "RTX 3090", "RTX A5000"], "max_usd_per_hour": 0.6}
        for m in ("vast", "runpod")
    ]
    ledger = laptop.home / ".shoestring/e2e-vast/ledger.jsonl"
    dice, most, done = random.Random(0), 0, []
    with leading(laptop, shared, ladder=ladder, max_workers=WORKERS, markets=["vast", "runpod"]):
        submit(laptop, "--no-wait", "--", "python", shared / "ask.py", stdout=subprocess.DEVNULL)
        boxes.wait(lambda state: len(spots(state)) == WORKERS)
        while len(done) < FAULTS:
            if fault := a_fault(dice, boxes):
                done.append(fault)
                if len(done) % 20 == 0:
                    print(f"\n{len(done)} faults, {len(spots(boxes.state()))} workers run", end="", flush=True)
            give_up = time.time() + dice.uniform(0.3, 4)
            while time.time() < give_up:
                rentals = boxes.state()["rentals"]
                counted = [r for r in rentals if r["state"] in ("provisioning", "loading", "running")]
                most = max(most, len(counted))
                assert len(counted) <= WORKERS, (done[-5:], counted)
                intended = ledger.read_text()
                assert all(nonce(r) in intended for r in rentals), (done[-5:], rentals)
                time.sleep(0.2)
        boxes.wait(lambda state: len(spots(state)) == WORKERS)  # the cluster has recovered
    assert boxes.state()["rentals"] == []
    bill = boxes.bill()
    intended = ledger.read_text()
    assert all(nonce(r) in intended for r in bill["rentals"])
    print(f"\n{len(done)} faults, {len(bill['rentals'])} rentals, at most {most} at one time, ${bill['total_usd']:.4f}")
