"""One ledger on two machines: a rented head's entries are fetched over a real sshd, and both sides agree to the cent."""

import getpass
import json
import os
import socket
import subprocess
import time
from dataclasses import replace

import pytest

from cluster import cost
from cluster.money.journal import Damaged
from cluster.money.ledger import UNANSWERED_S, Ledger
from cluster.node import head_ledger
from cluster.node.key_folder import Folder
from tests.cluster.test_ledger import OFFER, ORDER, RENTAL, Shelf
from tests.conftest import PATIENCE

T = 1_000_000.0
HEAD = replace(ORDER, label="shoestring/c;k=h;s=u")
pytestmark = pytest.mark.skipif(getpass.getuser() != "root", reason="logs in as root, as to a rental")


@pytest.fixture
def on(tmp_path, monkeypatch):
    """on(machine, seconds=…): from here on, the test acts as that machine of the cluster at that time."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def be(machine: str, seconds: float) -> None:
        monkeypatch.setenv("SHOESTRING_STATE", str(tmp_path / machine / ".shoestring"))
        monkeypatch.setattr("cluster.money.ledger.time.time", lambda: T + seconds)

    return be


@pytest.fixture
def head(on, tmp_path):
    """(laptop's market, address of the head's sshd, its process). The laptop rented a head, which rented two workers, one of which has
    ended; the laptop's entries are on the head, where join.py puts them."""
    market = Shelf()
    on("laptop", 0)
    folder, ledger = Folder("c"), Ledger("c")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    id = ledger.rent(market, OFFER, HEAD)
    listed(market, id, 10, ssh=("127.0.0.1", port))
    ledger.observe("vast", market.list(), T + 20)
    ledger.note(head_ledger.LED, "vast-1")
    home = tmp_path / "head"
    there = home / ".shoestring/c"
    (there / "others").mkdir(parents=True)
    for machine, lines in ledger.files().items():
        (there / "others" / f"{machine}.jsonl").write_bytes(lines)
    (there / "copy").write_text("vast-1")
    on("head", 30)
    ledger = Ledger("c")
    for at in (30, 40):
        on("head", at)
        id = ledger.rent(market, OFFER, ORDER)
        listed(market, id, at + 10)
    ledger.observe("vast", market.list(), T + 60)
    on("head", 1000)
    ledger.destroy(market, "2")
    config = tmp_path / "sshd_config"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "host"], check=True)
    (tmp_path / "keys").write_text(folder.public_key + "\n")
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/keys\nPidFile none\n"
        f'StrictModes no\nUsePAM no\nForceCommand echo Welcome to vast.ai; HOME={home} bash -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    os.makedirs("/run/sshd", exist_ok=True)
    sshd = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", config], stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + PATIENCE
    while "listening" not in (line := sshd.stderr.readline()):
        assert line and time.monotonic() < give_up
    yield market, ("127.0.0.1", port), sshd
    sshd.terminate()
    sshd.communicate()


def listed(market: Shelf, id: str, seconds: float, **more) -> None:
    """Lists it as running since then."""
    old = market.rentals[id]
    market.rentals[id] = replace(RENTAL, id=id, label=old.label, created=T + seconds, started=T + seconds, **more)


def dollars(seconds: float) -> float:
    return seconds * (0.36 + 0.036) / 3600


def test_the_laptop_and_the_head_know_the_same_to_the_cent(on, head, tmp_path):
    paid = dollars(3590) + dollars(1000 - 40) + dollars(3600 - 50)
    on("head", 3600)
    assert Ledger("c").spent(T + 3600) == pytest.approx(paid)
    boots = tmp_path / "head/.shoestring/c/boots"
    boots.mkdir()
    (boots / "vast-7.log").write_text("no driver")
    (boots / "key").write_text("not a log")
    on("laptop", 3600)
    assert Ledger("c").spent(T + 3600) == pytest.approx(dollars(3590))  # only the head
    (copy,) = head_ledger.fetch("c")
    assert (copy.head, copy.problem, copy.says(T)) == ("vast-1", "", "")
    assert Ledger("c").spent(T + 3600) == pytest.approx(paid)
    assert [p.name for p in (Folder("c").path / "boots").iterdir()] == ["vast-7.log"]
    on("head", 3600)
    assert head_ledger.fetch("c") == []  # it is this machine


def test_a_ledger_that_is_open_takes_in_what_was_fetched(on, head):
    on("laptop", 3600)
    ledger = Ledger("c")
    assert len(ledger.entries()) == 1
    head_ledger.fetch("c")
    assert [e.id for e in ledger.living()] == ["1", "3"] and len(ledger.entries()) == 3


def test_an_unreachable_head_is_reported_with_the_age_of_our_copy(on, head, capsys, monkeypatch):
    _, _, sshd = head
    on("laptop", 3600)
    assert cost.main(["c"]) == 0 and "its head" not in capsys.readouterr().out
    sshd.terminate()
    sshd.wait()
    at = Ledger("c").taken("vast-1")
    (copy,) = head_ledger.fetch("c")
    assert copy.at == at and "Connection refused" in copy.problem
    assert copy.says(at + 720).startswith("as of 12 minutes ago: its head vast-1 can't be reached (")
    assert cost.main(["c"]) == 0
    assert "  as of 0 minutes ago: its head vast-1" in capsys.readouterr().out
    assert json.loads((cost.main(["c", "--json"]), capsys.readouterr().out)[1])[0]["incomplete"]


def test_a_head_that_ended_before_its_ledger_was_fetched_is_reported(on, head):
    on("laptop", 3600)
    Ledger("c").observe("vast", [], T + 3600)  # it destroyed itself
    (copy,) = head_ledger.fetch("c")
    assert copy.says(T).startswith("the ledger of its head vast-1 was never fetched (it has ended)")


def test_a_file_that_is_no_ledger_is_refused_and_ours_stays(on, head, tmp_path):
    on("laptop", 3600)
    for lines in (b"{half\n", b'{"at": 1, "event": "rented"}\n', b"[]\n"):
        (tmp_path / "head/.shoestring/c/ledger.jsonl").write_bytes(lines)
        (copy,) = head_ledger.fetch("c")
        assert "The file sent by vast-1 is not a ledger" in copy.problem
        with pytest.raises(Damaged):
            Ledger("c").take("vast-1", lines)
    assert Ledger("c").spent(T + 3600) == pytest.approx(dollars(3590))


def test_a_copy_that_ends_before_an_answer_makes_no_orphan_here(on, head, tmp_path):
    """The head is renting while its ledger is fetched: the laptop must not destroy that worker."""
    market, _, _ = head
    file = tmp_path / "head/.shoestring/c/ledger.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    rented = max(i for i, line in enumerate(lines) if b'"rented"' in line)
    file.write_bytes(b"".join(lines[:rented]))
    on("laptop", 60 + UNANSWERED_S)
    head_ledger.fetch("c")
    assert Ledger("c").orphans(market.list()) == []
    assert [r.id for r in Ledger("c").orphans(market.list(), everyones=True)] == ["3"]


def test_a_box_whose_clock_is_late_is_one_rental(on, head):
    """The laptop lists a worker at a time when, by the head's clock, it hasn't been requested yet."""
    market, _, _ = head
    on("laptop", 3600)
    Ledger("c").observe("vast", market.list(), T + 25)
    head_ledger.fetch("c")
    assert len(Ledger("c").entries()) == 3


def test_the_same_lines_again_change_nothing(on, head):
    on("laptop", 3600)
    head_ledger.fetch("c")
    ledger = Ledger("c")
    before = ledger.spent(T + 3600)
    for machine, lines in ledger.files().items():
        ledger.take(f"copy-of-{machine}", lines)
    assert ledger.spent(T + 3600) == before and len(ledger.entries()) == 3
