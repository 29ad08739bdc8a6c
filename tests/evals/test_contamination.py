"""Questions that occur in training data are found whatever their case and punctuation; others are not."""

import json

from lib.evals.measures import contamination
from lib.evals.task import Example
from lib.run import Run

LONG = "Write a short poem about the sea, the wind and the old lighthouse keeper who lives alone there"
SHORT = "Name three rivers that flow through Berlin, please"


def test_shared_words():
    training = ["first: WRITE a short poem; about the sea the wind and the old lighthouse keeper! Now.", "nothing"]
    assert contamination.shared([LONG, SHORT, "What is it?"], training) == [True, False, False]
    assert contamination.shared([LONG], [LONG.replace("wind", "rain")]) == [False]  # no 13 consecutive words are left
    assert contamination.shared([SHORT], ["Q: name three rivers that flow through Berlin please?"]) == [True]
    assert contamination.shared(["What is it?"], ["What is it?"]) == [False]  # too short to tell
    assert contamination.shared([], ["x"]) == []


def test_rows_of_the_runs_before_count_and_lost_data_is_said(make_run, tmp_path):
    rows = [[{"role": "user", "content": q}, {"role": "assistant", "content": "Yes."}] for q in (LONG, "Other words?")]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": r}) + "\n" for r in rows))
    first, second = make_run("seen", seed=5), make_run("later", seed=6)
    for path, base, data in (
        (first, "elsewhere", {"source": str(file), "heldout_fraction": 0.0}),
        (second, first, {"source": "demo"}),
    ):
        run = Run(path)
        run.write_json("job.yaml", run.job() | {"model": {"base": base}, "data": data})
    asked = {
        "t": [Example("a", [{"role": "user", "content": SHORT}]), Example("b", [{"role": "user", "content": LONG}])]
    }
    models = {"base": "some/model", "sft": second}
    (found,) = contamination.overlaps(models, asked)  # for a model that isn't one of our runs, nothing is known
    assert (found.task, found.run, found.found, found.n, found.first) == ("t", "sft", 1, 2, ["b"])
    file.unlink()
    (lost,) = contamination.overlaps(models, asked)
    assert lost.found is None and "chats.jsonl" in lost.note


def test_the_demos_messages_are_held_out_when_they_are_generated(make_run):
    """They share sentences with its training rows by design, but never in a row with the same name and item."""
    from lib.evals.tasks.demo import DemoTask

    run = Run(make_run("demo", seed=7))
    run.write_json("job.yaml", run.job() | {"model": {"base": "elsewhere"}, "data": {"source": "demo"}})
    examples = DemoTask().examples(100)
    (found,) = contamination.overlaps({"sft": run.path}, {"demo": examples})
    assert (found.found, found.n) == (0, 100) and "no training row" in found.note
