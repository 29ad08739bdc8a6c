"""The simulated RunPod: as strict as the real API, and billed to the second."""

import pytest

from tests.cluster.apis import KEY


def test_runpod_bills_while_it_runs_and_its_volume_twice_while_it_does_not(both, clock):
    body = {"name": "shoestring/t", "image": "x", "gpu": {"id": "NVIDIA L4"}, "disk": 73}
    pod = both.runpod.post("/v2/pods", json=body | {"mounts": {"persistent": {"size": 146, "path": "/w"}}}).json()
    assert pod["status"] == "PROVISIONING" and pod["cost"] == 0
    both.tick()
    assert both.runpod.get(f"/v2/pods/{pod['id']}").json()["cost"] == 0.39
    clock(7200)
    both.control("exit", id=pod["id"])
    clock(3600)
    assert both.runpod.get(f"/v2/pods/{pod['id']}").json()["status"] == "EXITED"
    assert both.runpod.delete(f"/v2/pods/{pod['id']}").status_code == 204
    (row,) = both.vast.get("/_sim/bill").json()["rentals"]
    assert row["compute_usd"] == pytest.approx(2 * 0.39, abs=1e-12)
    assert row["disk_usd"] == pytest.approx(2 * 0.01 + 2 * 0.02 + 0.04, abs=1e-12)


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        ({"image": "x", "gpu": {"id": "NVIDIA L4"}}, 422, "name"),
        ({"name": "t", "gpu": {"id": "NVIDIA L4"}}, 422, "image"),
        ({"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4", "gpus": 1}}, 422, "gpus"),
        ({"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4"}, "bidPerGpu": 1}, 422, "bidPerGpu"),
        ({"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4"}, "ports": ["22"]}, 422, "22"),
        ({"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4"}, "disk": 20.5}, 422, "disk"),
        ({"name": "t", "image": "x"}, 400, "gpu or cpu"),
        ({"name": "t", "image": "x", "gpu": {"id": "L4"}}, 400, "gpu.id"),
        ({"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4", "count": 2}}, 400, "no longer any instances"),
        ({"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4"}, "globalNetworking": True}, 400, "globalNetworking"),
    ],
)
def test_runpod_refuses_by_name(both, body, status, names):
    answer = both.runpod.post("/v2/pods", json=body)
    assert answer.status_code == answer.json()["status"] == status and names in answer.json()["detail"]
    assert not both.world.rentals


def test_a_pod_lives(both):
    both.runpod.put("/v2/account/ssh-keys", json={"keys": [KEY]})
    body = {"name": "t", "image": "x", "cpu": {"id": "cpu3c", "vcpuCount": 4}, "ports": ["22/tcp", "80/http"]}
    pod = both.runpod.post("/v2/pods", json=body | {"startSsh": True, "env": {"A": "b"}}).json()
    both.tick()
    pod = both.runpod.get(f"/v2/pods/{pod['id']}").json()
    assert pod["status"] == "RUNNING" and pod["cpu"] == {"id": "cpu3c", "vcpuCount": 4, "memory": 8}
    assert pod["cost"] == pytest.approx(0.12) and pod["env"] == {"A": "b", "PUBLIC_KEY": KEY}
    assert [p["private"] for p in pod["runtime"]["ports"]] == [22]
    assert pod["ssh"]["direct"]["port"] == pod["runtime"]["ports"][0]["public"]
    action = f"/v2/pods/{pod['id']}/action"
    assert both.runpod.post(action, json={"action": "start"}).status_code == 409
    assert both.runpod.post(action, json={"action": "stop"}).json()["status"] == "EXITED"
    assert both.runpod.post(action, json={"action": "start"}).json()["status"] == "PROVISIONING"
    assert both.runpod.patch(f"/v2/pods/{pod['id']}", json={"name": "u"}).json()["name"] == "u"
    assert both.runpod.post(action, json={"action": "terminate"}).status_code == 204
    assert [p["id"] for p in both.runpod.get("/v2/pods").json()["pods"]] == ["zz"]  # a stranger's, with odd rows


def test_the_catalog_tells_what_is_free(both):
    def level():
        asked = {"include": "AVAILABILITY", "product": "POD"}
        gpus = both.runpod.get("/v2/catalog/gpus", params=asked).json()["gpus"]
        return next(g["availability"] for g in gpus if g["id"] == "NVIDIA L4")

    assert level() == "LOW"
    assert both.runpod.post("/v2/pods", json={"name": "t", "image": "x", "gpu": {"id": "NVIDIA L4"}}).is_success
    assert level() == "NONE"
    somewhere = {"include": "AVAILABILITY", "product": "POD", "count": 1, "cloud": "COMMUNITY", "countryCodes": "US,CA"}
    gpus = both.runpod.get("/v2/catalog/gpus", params=somewhere).json()["gpus"]
    assert {c["id"][:2] for g in gpus for c in g.get("dataCenters", [])} <= {"US", "CA"} and gpus[-1]["price"] is None
    assert both.runpod.get("/v2/catalog/gpus", params={"include": "AVAILABILITY"}).status_code == 400
    assert "availability" not in both.runpod.get("/v2/catalog/gpus").json()["gpus"][0]
