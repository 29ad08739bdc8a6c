"""Rows with a class: the columns that are recognised, the names of classes, and what other stages get of them."""

import pytest

from lib.config.job import Data
from lib.data import check, load
from lib.data.formats import FORMATS
from lib.data.recognise import recognise
from lib.data.rows import BadRow


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": None}, "label is missing"),
        ({"label": 3.8}, "label is a score, not a class"),
        ({"label": ["a"]}, "label is .*, not a class"),
        ({"text": " "}, "text is empty"),
    ],
)
def test_bad_rows(change, said):
    with pytest.raises(BadRow, match=said):
        FORMATS["text-label"].read({"text": "x", "label": "a"} | change)


def test_a_blank_label_is_a_bad_row(write):
    rows = [{"text": f"t{n}", "label": " " if n == 3 else "a"} for n in range(9)]
    with pytest.raises(ValueError, match=r"1 of 9 rows can't be used \(1 × label is empty\)"):
        check(Data(write("a.jsonl", rows), heldout_fraction=0), ("classified",))


def test_other_stages_get_what_they_got_before(write):
    rows = [{"text": f"t{n}", "label": n % 2} for n in range(9)]
    texts = check(Data(write("a.jsonl", rows), heldout_fraction=0), ("chat", "text"))
    assert (texts.kind, texts.rows, texts.conversion) == ("text", 9, "the texts without their labels")
    judged = [{"prompt": "Why?", "completion": "So.", "label": True, "text": "x"}]
    assert recognise(judged, ("labelled",), "auto", "data.source")[0] == "labelled"
    assert recognise(judged, ("chat", "text"), "auto", "data.source")[0] == "labelled"
    nli = [{"sentence1": f"t{n}", "sentence2": "u", "label": 0} for n in range(9)]
    with pytest.raises(
        ValueError,
        match=r"the rows are sentence1-sentence2-label \(classified\), but this stage wants contrastive rows",
    ):
        check(Data(write("b.jsonl", nli)), ("contrastive",))
    assert check(Data(write("b.jsonl", nli), heldout_fraction=0), ("contrastive", "text")).rows == 18


def test_classes_are_counted_and_stored(write, cache):
    rows = [{"premise": f"p{n}", "hypothesis": "h", "label": n % 11} for n in range(110)]
    data = Data(write("a.jsonl", rows), heldout_fraction=0.3)
    found, loaded = check(data, ("classified",)), load(data, ("classified",))
    assert found.class_names() == [str(n) for n in range(11)], "numbers are sorted by their value"
    assert loaded.check.classes == found.classes and loaded.check.heldout_classes == found.heldout_classes
    assert sum(found.classes.values()) == found.rows and sum(found.heldout_classes.values()) == found.heldout_rows
    assert (
        loaded.train[0] == {"text": rows[0]["premise"], "second": "h", "label": "0"} or loaded.train[0]["second"] == "h"
    )
    both = check(
        Data(write("b.jsonl", [{"text": f"t{n}", "label": f"c{n % 20:02}"} for n in range(40)]), heldout_fraction=0),
        ("classified",),
    )
    assert "20 classes: c00 (2), c01 (2)" in "\n".join(both.lines()) and "… (the rarest is c00, 2)" in "\n".join(
        both.lines()
    )
