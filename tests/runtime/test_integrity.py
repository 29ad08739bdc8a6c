"""A finished run is used only while its model/ is unchanged, wherever it is named; errors about damaged files name the remedy."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lib.config import command_line
from lib.evals.job import EvalJob
from lib.models import export, locate
from lib.run import Run
from lib.runtime import integrity, manifest
from tests.stages import planned

SFT = "trl.trainer.sft_config:SFTConfig"


def flip(file: str, times: bool = True) -> None:
    """Flips one bit in the middle of a file. times: also restores its timestamps, as far as a user can."""
    path, before = Path(file), os.stat(file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    if times:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def run(runs, tmp_path) -> Run:
    return Run(shutil.copytree(runs["sft"], tmp_path / "sft"))


HARM = {
    "flipped": (flip, r"model/model\.safetensors is corrupt"),
    "truncated": (lambda f: os.truncate(f, os.path.getsize(f) // 2), r"model/model\.safetensors is truncated"),
    "gone": (os.remove, r"model/model\.safetensors is missing"),
    "no folder": (lambda f: shutil.rmtree(os.path.dirname(f)), r"model/ is missing"),
    "shadowed": (lambda f: shutil.copy(f, f.replace("model.s", "other.s")), r"model/other\.safetensors was added"),
}


@pytest.mark.parametrize("harm", list(HARM))
def test_a_damaged_model_is_refused_with_the_remedy(run, harm):
    assert integrity.damage(run) is None
    do, says = HARM[harm]
    do(run.at("model/model.safetensors"))
    with pytest.raises(
        ValueError, match=f"^model.base: {run.path} can't be used: {says}.*jobs/sft.py --resume {run.path}"
    ):
        locate.locate(run.path)
    with pytest.raises(ValueError, match=says):
        locate.path(run.path)  # on a worker, which may have another disk


def test_it_is_refused_wherever_a_run_is_named(runs, run, tmp_path, capsys):
    """As base, teacher, evaluated run, reward, served run, its draft, an adapter's base, and the run to quantise."""
    from lib.evals import plan as evals
    from lib.methods.quantization import job as quantize
    from serve import serving

    reward = Run(shutil.copytree(runs["reward"], tmp_path / "reward"))
    for broken in (run, reward):
        flip(broken.at("model/model.safetensors"))
    why = "can't be used: model/model.safetensors is corrupt"
    with pytest.raises(ValueError, match=f"model.base: .*{why}"):
        planned("sft", ["--model.base", run.path, "--run", str(tmp_path / "r")])
    words = ["--model.base", runs["sft"], "--train.teacher", run.path, "--run", str(tmp_path / "r")]
    with pytest.raises(ValueError, match=f"train.teacher: .*{why}"):
        planned("distill", words)
    with pytest.raises(ValueError, match=f"(?s)runs.a: .*{why}.*reward: .*{why}"):
        evals.plan(EvalJob(runs={"a": run.path}, reward=reward.path))
    with pytest.raises(ValueError, match=f"run: .*{why}"):
        serving.plan(serving.parse({"run": run.path}))
    asked = quantize.parse(["--model.base", run.path, "--run", str(tmp_path / "q")])
    with pytest.raises(ValueError, match=f"model.base: .*{why}"):
        quantize.plan(asked)


def test_bytes_are_read_once_and_again_after_a_touch(run, monkeypatch, tmp_path):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    read = []
    monkeypatch.setattr(manifest, "hashes", lambda f, whole=manifest.hashes: read.append(f) or whole(f))
    for _ in range(3):
        assert integrity.damage(run) is None
    assert len(read) == 1
    os.utime(run.at("model/config.json"))
    assert integrity.damage(run) is None and len(read) == 2
    moved = Run(shutil.move(run.path, tmp_path / "moved"))
    assert integrity.damage(moved) is None and len(read) == 3


def test_a_run_of_an_earlier_version_has_one_digest(run):
    made = run.provenance()
    made.pop("files")
    run.write_json("provenance.json", made)
    assert integrity.damage(run) is None
    flip(run.at("model/model.safetensors"))
    assert integrity.damage(run) == "model/ is not what the run wrote: its SHA-256 is not the one recorded"


def test_an_adapter_is_checked_too(run):
    run.write_text("adapter/adapter_config.json", "{}")
    files = {f"adapter/{n}": v for n, v in manifest.hashes(Path(run.at("adapter"))).items()}
    run.write_json("provenance.json", run.provenance() | {"files": run.provenance()["files"] | files})
    assert integrity.damage(run) is None
    flip(run.at("adapter/adapter_config.json"))
    assert "adapter/adapter_config.json is corrupt" in integrity.damage(run)


def test_a_damaged_download_is_made_again_and_a_damaged_original_refused(runs, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    far = Run(f"s3://runs/{tmp_path.name}")
    for name in ("job.yaml", "provenance.json"):
        far.write_text(name, Run(runs["sft"]).read_text(name))
    far.put(Path(runs["sft"], "model"), "model")
    here = Path(locate.path(far.path)) / "model.safetensors"
    right = here.read_bytes()
    flip(str(here))
    assert Path(locate.path(far.path), "model.safetensors").read_bytes() == right
    with far.fs.open(far.at("model/model.safetensors"), "wb") as f:
        f.write(bytes(len(right)))
    shutil.rmtree(here.parent)
    with pytest.raises(ValueError, match=f"{far.path} can't be used: model/model.safetensors is corrupt"):
        locate.path(far.path)
    with far.fs.open(far.at("model/model.safetensors"), "wb") as f:
        f.write(right[:-1])
    with pytest.raises(ValueError, match=r"model\.base: .*truncated"):
        locate.locate(far.path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "a: [", "run: x"])
def test_a_damaged_job_yaml_is_named(run, text):
    run.write_text("job.yaml", text)
    for ask in (lambda: command_line.stored(run.path, "sft"), run.job):
        with pytest.raises(ValueError, match=rf"{run.path}/job\.yaml is damaged.*Put it back"):
            ask()


@pytest.mark.parametrize("text", ["", "[]", "null", '{"status": "fin', "3", '"finished"'])
def test_a_damaged_provenance_json_is_named(run, text):
    run.write_text("provenance.json", text)
    for ask in (lambda: locate.locate(run.path), run.finished):
        with pytest.raises(
            ValueError, match=rf"{run.path}/provenance\.json is damaged.*delete it and --resume {run.path}"
        ):
            ask()


def test_a_damaged_line_of_metrics_is_named(run):
    run.write_text("metrics.jsonl", '{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is damaged"):
        run.metrics()
    run.write_text("metrics.jsonl", "[]\nnull\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 is damaged"):
        run.metrics()


def test_what_a_job_publishes_is_finite(runs, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from lib.distributed.publish import publish
    from lib.runtime.failure import StopTraining

    folder = tmp_path / "export"
    shutil.copytree(Path(runs["sft"], "model"), folder / "model")
    made = publish(Run(str(tmp_path / "good")), folder)
    assert set(json.loads(json.dumps(made))["files"]) == {f"model/{n}" for n in os.listdir(Path(runs["sft"], "model"))}
    shutil.copytree(Path(runs["sft"], "model"), folder / "model")
    weights = load_file(folder / "model/model.safetensors")
    weights["model.norm.weight"][3] = torch.inf
    save_file(weights, folder / "model/model.safetensors", {"format": "pt"})
    with pytest.raises(StopTraining, match=r"model\.norm\.weight in model\.safetensors holds NaN or infinity"):
        publish(Run(str(tmp_path / "bad")), folder)
    assert not (tmp_path / "bad").exists()


def test_an_adapter_keeps_no_pickle_and_its_modules_in_order(tmp_path):
    (tmp_path / "training_args.bin").write_bytes(b"x")
    config = {"target_modules": ["v_proj", "down_proj", "q_proj"], "exclude_modules": None, "r": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    export._plain(tmp_path)
    assert os.listdir(tmp_path) == ["adapter_config.json"]
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == config | {
        "target_modules": ["down_proj", "q_proj", "v_proj"]
    }
