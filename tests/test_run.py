"""The run directory, on disk and on s3://."""

import pytest

from lib.run import Run, absolute


@pytest.fixture(params=["local", "s3"])
def run(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3")
        return Run(f"s3://runs/{tmp_path.name}")
    return Run(tmp_path / "run")


def test_life_of_a_run(run, tmp_path):
    assert not run.is_run() and not run.finished() and run.metrics() == [] and run.provenance() == {}
    run.write_text("job.yaml", "stage: sft\nrun: x\n")
    run.append_text("metrics.jsonl", '{"step": 1, "loss": 2.5}\n')
    run.append_text("metrics.jsonl", '{"step": 2, "lo')  # a kill in the middle of a line
    run.write_json("provenance.json", {"status": "running"})
    assert run.is_run() and run.job() == {"stage": "sft", "run": "x"}
    assert run.metrics() == [{"step": 1, "loss": 2.5}]
    with pytest.raises(ValueError, match=r"its run is running.*--resume"):
        run.model_dir()


def test_folder_is_replaced_whole(run, tmp_path):
    for content in ("old", "new"):
        folder = tmp_path / content
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "a").write_text(content)
        (folder / content).write_text("only here")
        run.put(folder, "model")
    assert sorted(run.files("model")) == ["deep/a", "new"]
    run.get("model", tmp_path / "copy")
    assert (tmp_path / "copy" / "deep" / "a").read_text() == "new"


def test_relative_paths_under_ray_job_submit_go_to_a_folder_that_stays(tmp_path, monkeypatch):
    upload = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    upload.mkdir(parents=True)
    monkeypatch.chdir(upload)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute("runs/x") == "/home/someone/shoestring/runs/x"
    monkeypatch.setenv("SHOESTRING_HOME", "/data")
    assert absolute("runs/x") == "/data/runs/x"
    assert absolute("s3://bucket/x/") == "s3://bucket/x" and absolute("/abs/x") == "/abs/x"
