"""LoRA runs: only those of this base, found in a folder as they finish."""

import json
import shutil
from pathlib import Path

import pytest

from lib.run import Run
from serve.adapters import Shelf, folder, rank, room
from serve.serving import parse, plan


def lora(run: str, where: Path, **provenance) -> Run:
    """Returns a copy of a run that looks like a LoRA run with its adapter."""
    made = Run(str(shutil.copytree(run, where)))
    made.write_text("adapter/adapter_config.json", json.dumps({"peft_type": "LORA", "r": 8}))
    made.write_json("provenance.json", made.provenance() | provenance)
    return made


def test_a_run_is_of_this_base(runs, tiny_model, tmp_path):
    run = lora(runs["sft"], tmp_path / "lora")
    assert folder("adapters.a", run.path, tiny_model) == run.at("adapter")
    with pytest.raises(ValueError, match=r"^adapters.a: .* has no adapter"):
        folder("adapters.a", runs["sft"], tiny_model)
    asked_otherwise = lora(runs["sft"], tmp_path / "template", template_sha256="0" * 64)
    with pytest.raises(ValueError, match=r"^adapters.a: .* was trained with another chat template than"):
        folder("adapters.a", asked_otherwise.path, tiny_model)
    for other in ({"use_dora": True}, {"init_lora_weights": "pissa"}, {"peft_type": "IA3"}):
        run.write_text("adapter/adapter_config.json", json.dumps({"peft_type": "LORA", "r": 8} | other))
        with pytest.raises(ValueError, match=r"^adapters.a: .* has a (DoRA|LoRA from pissa|IA3) adapter, which vLLM"):
            folder("adapters.a", run.path, tiny_model)
    run.write_text("adapter/adapter_config.json", json.dumps({"peft_type": "LORA", "r": 600}))
    with pytest.raises(ValueError, match=r"^adapters.a: .* has rank 600; vLLM takes at most 512"):
        folder("adapters.a", run.path, tiny_model)
    other = shutil.copytree(tiny_model, tmp_path / "other")
    with pytest.raises(ValueError, match=r"^adapters.a: .*was trained on .*, but `run` is .*other"):
        folder("adapters.a", run.path, str(other))


def test_a_folder_has_the_runs_that_finished(runs, tiny_model, tmp_path):
    root = tmp_path / "runs"
    first = lora(runs["sft"], root / "first")
    second = lora(runs["dpo"], root / "second", status="running")
    other = lora(runs["dpo"], root / "of_another_base")
    other.write_json("job.yaml", other.job() | {"model": {"base": runs["sft"]}})
    shutil.copytree(runs["sft"], root / "whole")  # no adapter
    (root / "notes.txt").write_text("not a run")
    outside = lora(runs["sft"], tmp_path / "outside")
    shelf = Shelf(str(root), tiny_model)
    assert shelf.names() == {"first": first.at("adapter")}
    assert [shelf.find(name) for name in ("first", "second", "whole", "notes.txt", "third")] == [first.at("adapter"), None, None, None, None]  # fmt: skip
    assert Path(root / "../outside/adapter").is_dir()
    for path in ("../outside", outside.path, "first/../first", ".", "..", "", "first/"):
        assert shelf.find(path) is None
    second.write_json("provenance.json", second.provenance() | {"status": "finished"})  # after the server started
    assert shelf.find("second") == second.at("adapter") and list(shelf.names()) == ["first", "second"]


def test_a_folder_whose_run_has_a_taken_name_is_refused(runs, tiny_model, tmp_path, monkeypatch):
    """Clients could request only one of the two."""
    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: True)
    root = tmp_path / "runs"
    plain, other = lora(runs["sft"], root / "plain"), lora(runs["sft"], tmp_path / "other")
    asked = {"run": tiny_model, "adapters_from": str(root)}
    assert plan(parse(asked | {"adapters.plain": plain.path})).adapters == {"plain": plain.at("adapter")}
    for more, taken in (({"name": "plain"}, "the run itself"), ({"adapters.plain": other.path}, other.path)):
        with pytest.raises(ValueError, match=f"^adapters_from: .*plain has the same name for clients as {taken}"):
            plan(parse(asked | more))


def test_room_for_the_highest_rank(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "rank_pattern": {"q_proj": 24}}))
    assert rank(str(tmp_path)) == 24 and room([24]) == 32 and room([4]) == 8 and room([16, 512]) == 512


def test_what_the_plan_refuses(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: True)
    assert plan(parse({"run": runs["sft"], "adapters_from": str(tmp_path)})).adapters_from == str(tmp_path)
    with pytest.raises(ValueError, match=r"^adapters_from: there is no folder .*/nowhere on this machine"):
        plan(parse({"run": runs["sft"], "adapters_from": str(tmp_path / "nowhere")}))
    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: False)
    with pytest.raises(ValueError, match=r"^adapters_from: only vLLM serves several"):
        plan(parse({"run": runs["sft"], "adapters_from": str(tmp_path)}))
