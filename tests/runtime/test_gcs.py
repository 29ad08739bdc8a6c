"""lib/runtime/gcs.py: what is sent to the head, and how its absence is handled. Tests with a real head: tests/cluster/test_lost.py,
test_notice.py."""

import socket

import pytest

from lib.runtime import gcs, node_types
from lib.runtime.gcs import Gcs, GcsError


def test_a_head_that_does_not_answer():
    with socket.socket() as other:  # accepts connections but never replies
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = "{}:{}".format(*other.getsockname())
        with pytest.raises(GcsError, match=address):
            Gcs(address, timeout_s=0.3).get("stop")


def test_the_token(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gcs._token() == ()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("kept\n")
    assert gcs._token() == (("authorization", "Bearer kept"),)
    (tmp_path / "other").write_text("elsewhere")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert gcs._token() == (("authorization", "Bearer elsewhere"),)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert gcs._token() == (("authorization", "Bearer given"),)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert gcs._token() == ()


def test_the_address_of_the_last_ray_that_was_started_here(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # whatever earlier tests have started
    assert node_types.address() is None  # there was none
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        address = "{}:{}".format(*head.getsockname())
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray/ray_current_cluster").write_text(address)
        assert node_types.address() == address
    assert node_types.address() is None  # it has gone
