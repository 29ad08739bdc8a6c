"""python -m cluster offers, and the sources of the keys, as a user meets them."""

import json

import pytest

from cluster import offers
from cluster.__main__ import main
from cluster.market import ladder, registry
from tests.cluster.conftest import simulator


@pytest.fixture(scope="module")
def sim():
    with simulator() as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in registry.MARKETS:
        monkeypatch.delenv(f"{name.upper()}_API_KEY", raising=False)
        monkeypatch.delenv(f"{name.upper()}_URL", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("SHOESTRING_PACE", "200")
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def account(monkeypatch, sim):
    for name, value in sim.env.items():
        monkeypatch.setenv(name, value)


def test_table(account, sim, capsys):
    assert main(["offers", "--gpu", "RTX 4090|A100", "--max-price", "0.60"]) == 0
    out, err = capsys.readouterr()
    rows = out.splitlines()
    assert rows[0].split()[:3] == ["market", "GPU", "GB"] and err == ""
    assert {r.split()[0] for r in rows[1:]} == {"vast", "runpod"}
    assert all("1 × RTX 4090" in r or "1 × A100" in r for r in rows[1:])
    assert any(" spot " in r for r in rows) and any("on demand" in r for r in rows)
    assert sim.env["VAST_API_KEY"] not in out + err


def test_json_is_the_same_and_ordered(account, capsys):
    assert main(["offers", "--gpu", "RTX 4090|RTX 3090", "--spot", "--market", "vast", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    work = [o["usd_per_eflop"] for o in found["offers"]]
    assert found["left_out"] == {} and work == sorted(work) and len(work) == 5
    for o in found["offers"]:
        assert o["spot"] and o["market"] == "vast" and o["count"] == 1
        loaded = 2.5 * o["download_usd_per_gb"]  # cost per hour of a machine's downloads before it works
        paid = (o["usd_per_hour"] * 1.1 + o["disk_usd_per_hour"] + loaded) / o["reliability"]
        assert o["usd_per_hour_effective"] == pytest.approx(paid)
        assert o["usd_per_eflop"] == pytest.approx(paid / ({"RTX 4090": 165.2, "RTX 3090": 71.0}[o["gpu"]] * 0.0036))


def test_what_looks_cheapest_in_the_realistic_world_is_left_out(monkeypatch, capsys):
    """A host with a slow line, an unverified one and one with an old driver are half as expensive as the others; so is a pod without
    a public address, which comes last in its rung."""
    with simulator(realistic=True) as sim:
        for name, value in sim.env.items():
            monkeypatch.setenv(name, value)
        asked = ["offers", "--gpu", "RTX 4090", "--on-demand", "--market", "vast", "--json"]
        least = []
        for more in ([], ["--unverified"], ["--cuda", "12.8"], ["--cuda", "12.8", "--download", "1"]):
            assert main(asked + more) == 0
            least.append([o["id"] for o in json.loads(capsys.readouterr().out)["offers"] if int(o["id"]) >= 150_000])
        assert least == [["150000"], ["150000", "150002"], [], ["150001"]]
        rungs = ladder.parse([{"market": "runpod", "gpus": "RTX 4090", "max_usd_per_hour": 1}])
        ranked = ladder.ranked(rungs[0], registry.find("runpod").offers(rungs[0].want(20.0)))
        assert ranked[-1].usd_per_hour < 0.5 < ranked[0].usd_per_hour and not ranked[-1].public_ip


def test_a_machine_without_gpu(account, capsys):
    assert main(["offers", "--count", "0", "--json"]) == 0
    assert {o["count"] for o in json.loads(capsys.readouterr().out)["offers"]} == {0}
    assert main(["offers", "--count", "0"]) == 0
    assert "none" in capsys.readouterr().out


def test_a_market_without_key_is_left_out(account, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert main(["offers", "--gpu", "RTX 4090"]) == 0
    out, err = capsys.readouterr()
    path = tmp_path / "shoestring/runpod_api_key"
    assert (
        err
        == f"Left out: runpod: there is no API key. Set RUNPOD_API_KEY, or write it into {path} and chmod 600 {path}\n"
    )
    assert "vast" in out and "runpod" not in out


def test_a_wrong_key(account, monkeypatch, capsys):
    monkeypatch.setenv("VAST_API_KEY", "wrong-0123456789")
    assert main(["offers", "--market", "vast"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "vast, offers: the API key is refused" in err and "wrong-0123456789" not in err
    assert main(["offers"]) == 0  # the other market has some


def test_runpod_has_no_spot(account, capsys):
    assert main(["offers", "--gpu", "RTX 4090", "--spot"]) == 0
    out, err = capsys.readouterr()
    assert "runpod" not in out and "Left out: runpod has no spot offers. To see its others: --on-demand" in err
    assert main(["offers", "--market", "runpod", "--spot"]) == 2
    assert main(["offers", "--gpu", "RTX_4090", "--market", "runpod", "--datacenter"]) == 0
    assert "Community" not in capsys.readouterr().out


def test_nothing_found(account, capsys):
    assert main(["offers", "--gpu", "RTX 490"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "runpod and vast have no such machine." in err and "is RTX 490 a GPU? Nearest: RTX 4090" in err


def test_no_key_at_all(capsys):
    assert main(["offers"]) == 2
    assert capsys.readouterr().err.count("there is no API key") == 2


def test_key_from_a_file(sim, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VAST_URL", sim.vast_url)
    path = tmp_path / "shoestring" / "vast_api_key"
    path.parent.mkdir()
    path.write_text(sim.env["VAST_API_KEY"] + "\n")
    path.chmod(0o644)
    assert main(["offers", "--market", "vast"]) == 2
    assert f"others can read {path} (mode 0644). Run: chmod 600 {path}" in capsys.readouterr().err
    path.chmod(0o600)
    assert main(["offers", "--market", "vast"]) == 0
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        registry.key("vast")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:80", "is not an http"),
        ("http://console.vast.ai", "sent unencrypted"),
        ("http://8.8.8.8", "sent unencrypted"),
    ],
)
def test_addresses_that_are_refused(url, says, monkeypatch):
    monkeypatch.setenv("VAST_API_KEY", "k")
    with pytest.raises(ValueError, match=says):
        registry.find("vast", url)


def test_an_unknown_market(capsys):
    with pytest.raises(ValueError, match=r"There is no market vats. Nearest: vast."):
        registry.find("vats")
    with pytest.raises(ValueError, match=r"There are: vast, runpod."):
        registry.find("aws")
    with pytest.raises(SystemExit) as stopped:
        offers.main(["--market", "vats"])
    assert stopped.value.code == 2


def test_help_is_quick_and_whole(capsys):
    with pytest.raises(SystemExit) as stopped:
        offers.main(["--help"])
    assert stopped.value.code == 0 and "--max-price" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["secret-a\nsecret-b", "secret a", "geheim-ß"])
def test_what_is_no_key_is_not_shown(key, monkeypatch, tmp_path, capsys):
    """In a header, it would appear in httpx's own error message."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("VAST_API_KEY", key)
    assert offers.main(["--market", "vast"]) == 2
    said = capsys.readouterr().err
    assert "VAST_API_KEY holds no valid API key" in said and "secret" not in said and "geheim" not in said
