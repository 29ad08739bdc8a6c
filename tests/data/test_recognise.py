"""The format recognised from the columns, and the errors if none fits or the stage can't use it."""

import pytest

from lib.data.formats import FORMATS
from lib.data.recognise import column_types, fitting, recognise

U = {"role": "user", "content": "Name a fruit."}
A = {"role": "assistant", "content": "Fig."}
B = {"role": "assistant", "content": "Brick."}
HUMAN = {"from": "human", "value": "Name a fruit."}
GPT = {"from": "gpt", "value": "Fig."}


def test_columns_are_typed_by_what_most_rows_hold():
    rows = [{"a": "x", "b": None, "c": True}, {"a": 3, "b": None, "c": False}, {"a": "y", "d": [1]}]
    assert column_types(rows) == {"a": "text", "c": "flag"}


def test_a_string_label_is_not_a_flag():
    """XSTest's label is "safe" or "unsafe": its prompts are prompts, not judged answers."""
    types = column_types([{"prompt": "How do I kill a process?", "completion": "With kill.", "label": "safe"}])
    assert fitting(types) == ["prompt-completion", "prompt"]


def test_the_format_that_explains_more_columns_wins():
    pair = {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "Brick."}}
    assert recognise([pair], ("chat", "text"), "auto", "data.source") == ("sharegpt-preference", [])
    judged = {"messages": [U, A], "label": False}
    assert recognise([judged], ("chat",), "auto", "data.source") == ("messages-labelled", [])
    assert recognise([judged], ("chat",), "messages", "data.source") == ("messages", [])


def test_a_stage_gets_the_columns_of_its_own_kind():
    """UltraFeedback has both pairs and a messages column."""
    row = {"prompt": "Name a fruit.", "chosen": [U, A], "rejected": [U, B], "messages": [U, A]}
    assert recognise([row], ("chat", "text"), "auto", "data.source") == ("messages", ["preference"])
    assert recognise([row], ("preference",), "auto", "data.source") == ("preference", ["messages"])


def test_unrecognised_shows_the_first_row_and_what_is_known():
    with pytest.raises(ValueError) as e:
        recognise([{"Frage": "Wo?", "Antwort": "Da. " * 40}], ("chat",), "auto", "data.source")
    message = str(e.value)
    assert message.startswith(
        "data.source: the format isn't recognised. The first row:\n  Frage: 'Wo?'\n  Antwort: 'Da. "
    )
    assert len(max(message.splitlines(), key=len)) < 120
    assert "data.columns: {theirs: ours}" in message
    assert all(name in message and all(c in message for c in f.needs) for name, f in FORMATS.items())


def test_of_no_use_to_the_stage():
    with pytest.raises(ValueError) as e:
        recognise([{"text": "Once."}], ("preference",), "auto", "data.source")
    assert str(e.value).startswith("data.source: the rows are text, but this stage wants preference rows.")
    assert "hh-rlhf" in str(e.value) and "alpaca," not in str(e.value)


def test_an_insisted_format_names_the_column_it_lacks():
    with pytest.raises(
        ValueError, match=r"data.format is alpaca, which needs the column 'output'; the columns are instruc"
    ):
        recognise([{"instruction": "Hi", "response": "Ho"}], ("chat",), "alpaca", "data.source")
