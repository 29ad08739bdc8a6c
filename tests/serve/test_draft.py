"""Which drafts a served model may have, and which are rejected before anything starts."""

import shutil

import pytest

from lib.run import Run
from serve.draft import Draft, find
from serve.serving import parse, plan


@pytest.fixture
def with_vllm(monkeypatch):
    """Plans as on a machine with vLLM, without running it."""
    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: True)


def test_how_many_tokens(runs, make_run, with_vllm):
    assert plan(parse({"run": runs["sft"], "draft": "ngram"})).draft == Draft("ngram", 4)
    assert plan(parse({"run": runs["sft"]})).draft is None
    student = Run(make_run("student", "distill"))
    assert find(student.path, 0, runs["sft"]) == Draft("draft_model", 4, student.path)
    student.write_json("reports/certificate.json", {"draft_tokens": 7})
    assert find(student.path, 0, runs["sft"]).tokens == 7
    found = plan(parse({"run": runs["sft"], "draft": student.path, "draft_tokens": "2"})).draft
    assert found == Draft("draft_model", 2, student.path)


def test_a_folder_drafts_for_a_folder(tiny_model, tmp_path):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    assert find(str(other), 0, tiny_model) == Draft("draft_model", 4, str(other))


def test_what_cannot_draft(runs, make_run, tiny_model, tmp_path, with_vllm):
    from transformers import AutoTokenizer

    longer = shutil.copytree(tiny_model, tmp_path / "longer")
    tok = AutoTokenizer.from_pretrained(tiny_model)
    tok.add_tokens(["<think>"])
    tok.save_pretrained(longer)
    running = Run(make_run("running", "distill"))
    running.write_json("provenance.json", running.provenance() | {"status": "running"})
    for draft, says in [
        ("ngrm", "there is no ngrm. Nearest: ngram. Or name a run that drafts."),
        (f"{runs['sft']}t", "there is no run or model folder .*Nearest: .*/sft"),
        (running.path, ".*has no model yet: its run is running"),
        (runs["reward"], ".* is a reward model. Name a language model"),
        (str(longer), ".*longer has another vocabulary than .*/sft. Use a model of the same family"),
    ]:
        with pytest.raises(ValueError, match=f"^draft: {says}"):
            plan(parse({"run": runs["sft"], "draft": draft}))


def test_suffix_needs_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^draft: suffix needs a package: pip install --no-deps arctic-inference"):
        find("suffix", 0, "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "arctic_inference")
    assert find("suffix", 0, "") == Draft("suffix", 4)


def test_it_needs_vllm(runs, monkeypatch):
    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: False)
    with pytest.raises(ValueError, match=r"^draft: only vLLM supports one"):
        plan(parse({"run": runs["sft"], "draft": "ngram"}))
