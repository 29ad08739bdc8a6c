"""Stored replies of a judge: a finished evaluation runs again without its endpoint, and refused questions are counted."""

from dataclasses import replace

import pytest

from lib.evals.judging import openai_client
from lib.evals.judging.llm_judge import Unreadable
from lib.evals.judging.openai_client import Unreachable
from tests.evals.api import better, talk

NOWHERE = "http://127.0.0.1:9/v1"


def pairs(n: int) -> list:
    return [(talk(f"question {i}.", "good"), talk(f"question {i}.", "bad")) for i in range(n)]


def refusing(refused: range):
    """A judge whose API answers HTTP 400 to these questions."""
    return lambda p: (400, {}) if any(f"question {i}." in p for i in refused) else better(p)


def test_refused_questions_in_a_row_do_not_mean_a_dead_endpoint(api, panel):
    """Twelve in a row: the endpoint answers each, so the other questions are sent too, and the refused ones are counted."""
    ours = panel(api(refusing(range(6))).judge(at_once=1))
    assert [p.share for p in ours.compare(pairs(20))] == [None] * 6 + [1.0] * 14
    assert (ours.endpoint.spent()["refused"], ours.endpoint.spent()["failed"]) == (12, 0)
    (warning,) = ours.endpoint.warnings()
    assert (
        warning.startswith("12 of 40 questions to the judge referee were refused by its API") and "HTTP 400" in warning
    )


def test_a_finished_evaluation_runs_again_with_no_endpoint(api, panel, monkeypatch):
    monkeypatch.setattr(openai_client, "TRIES", 1)
    server = api(refusing(range(6)))
    first = panel(server.judge())
    shares = [p.share for p in first.compare(pairs(20))]
    again = panel(replace(server.judge(), url=NOWHERE))
    again.endpoint.check()
    assert [p.share for p in again.compare(pairs(20))] == shares and len(server.asked) == 40
    assert again.endpoint.spent() | {"cached": 40, "refused": 12, "failed": 0} == again.endpoint.spent()
    assert [s.tops for s in again.honesty()] == [s.tops for s in first.honesty()]
    with pytest.raises(Unreachable, match=f"nothing answers at {NOWHERE}"):
        again.compare([(talk("a new question", "x"), talk("a new question", "y"))])


@pytest.mark.parametrize("kind", ["grade", "refused"])
def test_grades_and_refusals_are_kept_too(kind, api, panel):
    server = api(lambda p: (400, {}) if "question 1." in p else "[[7]] [[complied]]" if kind == "refused" else "[[7]]")
    talks = [talk(f"question {i}.", "x") for i in range(4)]
    found = getattr(panel(server.judge()), kind)(talks)
    again = panel(replace(server.judge(), url=NOWHERE))
    again.endpoint.check()
    assert found[1] is None and getattr(again, kind)(talks) == found


def test_with_nothing_kept_of_this_model_a_missing_endpoint_is_told_at_once(api, panel):
    server = api(better)
    panel(server.judge()).compare(pairs(2))
    with pytest.raises(Unreachable, match="nothing answers"):
        panel(replace(server.judge(), url=NOWHERE, model="another")).endpoint.check()
    with pytest.raises(Unreachable, match="has no refere"):
        panel(replace(server.judge(), model="refere")).endpoint.check()


def test_the_same_model_at_another_address_finds_its_replies_and_the_report_says_so(api, panel):
    first, second = api(better), api(lambda p: "[[B]]")
    panel(first.judge()).compare(pairs(3))
    ours = panel(second.judge())
    assert [p.share for p in ours.compare(pairs(3))] == [1.0] * 3 and not second.asked
    (warning,) = ours.endpoint.warnings()
    assert warning.startswith(f"6 of 6 replies of the judge referee were kept from {first.url}, not from {second.url}")


def test_another_model_or_other_weights_are_asked_anew(api, panel, tmp_path):
    server = api(better)
    folder = tmp_path / "judge-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for model in ("referee", "other", str(folder)):
        panel(replace(server.judge(), model=model)).compare(pairs(1))
    assert len(server.asked) == 6
    (folder / "config.json").write_text('{"now": "another"}')
    panel(replace(server.judge(), model=str(folder))).compare(pairs(1))
    assert len(server.asked) == 8


def test_refused_questions_are_asked_again_where_the_endpoint_is_there(api, panel):
    """The server may have been restarted with a longer window."""
    server = api(refusing(range(1)))
    panel(server.judge()).compare(pairs(3))
    server.say = better
    assert [p.share for p in panel(server.judge()).compare(pairs(3))] == [1.0] * 3 and len(server.asked) == 8


def test_where_most_questions_are_refused_the_reason_is_the_apis(api, panel):
    with pytest.raises(Unreadable, match=r"did not answer 6 of 8 questions.*HTTP 400"):
        panel(api(refusing(range(3))).judge()).compare(pairs(4))


def test_what_failed_among_answers_fails_among_them_again(api, panel, monkeypatch):
    """Nine questions that never get an answer, spread over thirty: a second run doesn't give up sooner than the first."""
    monkeypatch.setattr(openai_client, "TRIES", 1)
    lost = [f"question {i}." for i in range(0, 27, 3)]
    server = api(lambda p: (503, {}) if any(q in p for q in lost) else better(p))
    shares = [p.share for p in panel(server.judge(at_once=1)).compare(pairs(30))]
    assert [p.share for p in panel(server.judge(at_once=1)).compare(pairs(30))] == shares and shares.count(None) == 9
    again = panel(replace(server.judge(), url=NOWHERE))
    again.endpoint.check()
    assert [p.share for p in again.compare(pairs(30))] == shares


def test_kept_replies_do_not_hide_that_the_endpoint_is_gone(api, panel, monkeypatch):
    monkeypatch.setattr(openai_client, "TRIES", 1)
    server = api(better)
    panel(server.judge()).compare(pairs(3))
    server.say = lambda p: (503, {})
    with pytest.raises(Unreachable, match=r"8 questions in a row got no answer"):
        panel(server.judge(at_once=1)).compare(pairs(10))
