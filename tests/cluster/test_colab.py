"""cluster/colab.ipynb: its cells; all but those that need Colab are executed here with a tiny model."""

import os
import sys
from pathlib import Path

import pytest

from lib.run import Run
from tests import warm
from tests.conftest import PATIENCE, REPO

NOTEBOOK = REPO / "cluster" / "colab.ipynb"


@pytest.mark.slow
def test_top_to_bottom(tiny_model, tmp_path, monkeypatch):
    """A failing cell fails the test: bash cells raise if their commands fail."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") for cell in book.cells)
    colab = [c for c in book.cells if "colab" in c.metadata.get("tags", [])]
    assert colab and all("colab" in c.source or "!" in c.source for c in colab)
    book.cells = [c for c in book.cells if c not in colab]
    for name in ("VAST_API_KEY", "RUNPOD_API_KEY", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    python = [str(Path(p).parent) for p in (warm.python(), sys.executable)]
    monkeypatch.setenv("PATH", os.pathsep.join([*python, os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("SHOESTRING_HOME", str(tmp_path))
    monkeypatch.setenv("BASE", tiny_model)
    monkeypatch.setenv("STEPS", "2")
    work = tmp_path / "work"  # mine.jsonl is written into the working directory
    work.mkdir()
    for name in ("jobs", "lib", "cluster", "configs", "serve", "tune"):
        (work / name).symlink_to(REPO / name)
    NotebookClient(book, timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": str(work)}}).execute()
    said = ["".join(o.get("text", "") for o in c.outputs) for c in book.cells if c.cell_type == "code"]
    assert any("Colab" in s and "memory at the peak" in s for s in said)
    assert any("already finished (2 steps)" in s for s in said)
    for name, stage in (("sft", "sft"), ("mine", "dpo")):
        run = Run(str(tmp_path / "runs" / name))
        assert run.finished() and run.job()["stage"] == stage and run.provenance()["steps"] == 2
    assert Run(str(tmp_path / "runs" / "mine")).job()["model"]["base"] == str(tmp_path / "runs" / "sft")
    assert (tmp_path / "runs" / "eval" / "reports" / "report.json").is_file()
