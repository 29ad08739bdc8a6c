"""cluster/head.py: errors before anything starts, and where the key is sent."""

import os
import socket
import subprocess
import sys

import pytest
import yaml

from cluster import head
from cluster.node import autoscaler_config, mesh
from cluster.node.key_folder import Folder
from tests.cluster.e2e import cluster


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("VAST_API_KEY", "secret-1")
    return tmp_path


def written(home, config: dict) -> str:
    path = home / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_the_key_is_kept_in_a_file_and_in_no_process(home, monkeypatch):
    monkeypatch.setenv("RUNPOD_API_KEY", "another")
    config = head.read(written(home, cluster("vast")))
    path = home / ".config/shoestring/vast_api_key"
    assert path.read_text().strip() == "secret-1" and path.stat().st_mode & 0o777 == 0o600
    assert "VAST_API_KEY" not in os.environ and "RUNPOD_API_KEY" not in os.environ and "secret-1" not in str(config)
    head.read(written(home, cluster("vast")))  # from the file


def test_ray_reads_how_long_a_box_that_was_lost_at_once_is_waited_for():
    """Ray reads it from an environment variable on import; if Ray renamed that, the setting would silently have no effect."""
    code = "from ray.autoscaler.v2.instance_manager.config import InstanceReconcileConfig as C; print(C().request_status_timeout_s)"
    asked = [sys.executable, "-c", code]
    for env, seconds in ((autoscaler_config.ON_THE_HEAD, 180), ({}, 600)):
        assert int(subprocess.check_output(asked, env=os.environ | env, text=True)) == seconds


def test_another_key_than_the_files_is_refused(home, monkeypatch):
    head.read(written(home, cluster("vast")))
    monkeypatch.setenv("VAST_API_KEY", "secret-2")
    with pytest.raises(ValueError, match=r"VAST_API_KEY differs from the key in .*vast_api_key"):
        head.read(written(home, cluster("vast")))


def test_a_head_here_has_no_flat_network(home):
    config = cluster("vast")
    config["provider"]["network"] = "flat"
    with pytest.raises(ValueError, match=r"provider\.network"):
        head.read(written(home, config))


def test_a_missing_key_is_named(home, capsys):
    config = cluster("vast")
    del config["head_node_type"]
    with pytest.raises(SystemExit) as stopped:
        head.main(["--config", written(home, config)])
    assert stopped.value.code == 2 and "there is no head_node_type" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ({"markets": ["vats"]}, "provider.markets: there is no market vats. Nearest: vast."),
        ({"budget": {"total": 10}}, "provider.budget.total is not a key of a budget. Nearest: total_usd"),
        ({"budget": {"total_usd": "10"}}, "provider.budget.total_usd must be a number above 0, but is '10'."),
        ({"unattended_minutes": "ten"}, "provider.unattended_minutes must be a number above 0, but is 'ten'."),
        ({"netwrok": "mesh"}, "provider.netwrok is not a key of the cluster. Nearest: network"),
    ],
)
def test_mistakes_end_it_with_2_and_a_sentence(home, provider, message, capsys):
    config = cluster("vast")
    config["provider"] |= provider
    assert_refused(["--config", written(home, config)], message, capsys)


def assert_refused(argv: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        head.main(argv)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and len(said.splitlines()) == 2, said


def test_no_key_no_file_and_a_folder_that_cannot_be_written(home, monkeypatch, capsys):
    argv = ["--config", written(home, cluster("vast"))]
    (home / "a file").touch()
    monkeypatch.setenv("SHOESTRING_STATE", str(home / "a file"))
    assert_refused(argv, f"{home}/a file/e2e-vast: Not a directory. SHOESTRING_STATE names another folder", capsys)
    (home / ".config/shoestring/vast_api_key").unlink()
    assert_refused(argv, "vast: there is no API key. Set VAST_API_KEY, or write it into", capsys)
    assert_refused(
        ["--config", "cluster/vats.yaml"], "there is no file cluster/vats.yaml. Nearest: cluster/vast.yaml, ", capsys
    )


def test_a_second_head_and_a_port_that_is_taken(home, monkeypatch, capsys):
    path = written(home, cluster("vast"))
    with head._lock(Folder("e2e-vast")):
        assert head.main(["--config", path]) == 2
    assert (
        "e2e-vast already has a head on this machine" in (said := capsys.readouterr().err)
        and f"head --config {path} --stop" in said
    )
    with socket.socket() as s:
        s.bind(("127.77.0.1", 0))
        s.listen()
        monkeypatch.setattr(mesh, "GCS_PORT", s.getsockname()[1])
        assert head.main(["--config", path]) == 1
    said = capsys.readouterr()
    assert f"port {mesh.GCS_PORT}, which Ray's head needs, is taken" in said.err and "ray stop" in said.err, said


@pytest.mark.parametrize(
    ("failures", "said", "starts"),
    [(1, "timed out during startup", 2), (9, "timed out during startup", 4), (9, "no", 1)],
)
def test_ray_has_four_tries_to_start_on_a_slow_machine(home, monkeypatch, tmp_path, failures, said, starts):
    config = head.read(written(home, cluster("vast")))
    log = tmp_path / "starts"
    script = f"echo >> {log}; [ $(wc -l < {log}) -gt {failures} ] || {{ echo {said}; exit 7; }}; echo {head.STARTED}; exec sleep 600"
    monkeypatch.setattr(head, "dependent", lambda *_: ["sh", "-c", script])
    if starts > failures:
        ray = head._start(config, Folder("e2e-vast"))
        ray.kill()
        ray.wait()
    else:
        with pytest.raises(RuntimeError, match=f"exit code 7. Its last line: {said}"):
            head._start(config, Folder("e2e-vast"))
    assert len(log.read_text().splitlines()) == starts


def test_a_key_that_the_market_refuses(home, sim, monkeypatch):
    monkeypatch.setenv("VAST_URL", sim.vast_url)
    with pytest.raises(RuntimeError, match=f"^vast, .*{home}/.config/shoestring/vast_api_key"):
        head._check_keys(head.read(written(home, cluster("vast"))))


@pytest.mark.slow
def test_rentals_that_could_not_be_ended_are_reported(home, monkeypatch, capsys):
    monkeypatch.setenv("VAST_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("cluster.market.http.sleep", lambda s: None)
    assert head.main(["--config", written(home, cluster("vast")), "--stop"]) == 1
    said = capsys.readouterr().err
    assert "can't be reached" in said and "python -m cluster sweep e2e-vast" in said


def test_no_agent_is_forwarded_to_a_rental(home):
    config = home / "ssh_config"
    config.write_text("Host *\n  ForwardAgent yes\n  ForwardX11 yes\n")
    ours = [word for key, value in Folder("c").ssh_options("vast-1").items() for word in ("-o", f"{key}={value}")]
    said = subprocess.run(["ssh", "-F", config, "-G", *ours, "box"], capture_output=True, text=True, check=True).stdout
    assert "forwardagent no\n" in said and "forwardx11 no\n" in said
