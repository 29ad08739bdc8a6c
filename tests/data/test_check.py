"""check: counts, errors with their remedies, leaks, and the modules that the driver must not import."""

import subprocess
import sys

import pytest

from lib.config.job import Data
from lib.data import absolute, check, load, per_answer, scan
from tests.data.conftest import CHAT, qa, qa_chats, questions

# `lib.data.load` is both a module and the function that the package exports under that name.
MODULE = sys.modules["lib.data.load"]

pytestmark = pytest.mark.usefixtures("cache")


def test_bad_rows_stop_the_job_or_are_left_out(write):
    rows = [*qa(3), b'{"question": "broken', {"question": "x", "answer": ""}, {"question": None, "answer": "y"}]
    rows += [b'{"question": "x", "answer": "\xff"}', {"question": "x", "answer": " "}, *qa(2, start=3)]
    path = write("a.jsonl", rows)
    with pytest.raises(ValueError) as e:
        check(Data(path, heldout_fraction=0), CHAT)
    assert str(e.value) == (
        "data.source: 5 of 10 rows can't be used (2 × answer is empty, "
        "1 × broken JSON, 1 × question is null, not text):\n"
        f"  {path}:4: broken JSON (Unterminated string starting at: line 1 column 14 (char 13))\n"
        f"  {path}:5: answer is empty\n"
        f"  {path}:6: question is null, not text\n"
        f"  {path}:7: has bytes that are not UTF-8\n"
        f"  {path}:8: answer is empty\n"
        "Correct them, or set data.bad_rows: skip to leave them out."
    )
    loaded = load(Data(path, heldout_fraction=0, bad_rows="skip"), CHAT)
    assert questions(loaded.train) == [f"What is {i}?" for i in range(5)]
    assert (loaded.check.bad_rows, loaded.check.bad[3]) == (5, (f"{path}:7", "has bytes that are not UTF-8"))
    assert vars(loaded.check) == vars(check(Data(path, heldout_fraction=0, bad_rows="skip"), CHAT))
    assert "data: 5 bad rows left out: 2 × answer is empty" in loaded.check.lines()[1]


def test_bad_pairs(write):
    same = {"prompt": "p", "chosen": "c", "rejected": "c"}
    path = write("a.jsonl", [{"prompt": f"p{i}", "chosen": "c", "rejected": "r"} for i in range(9)] + [same])
    with pytest.raises(ValueError, match=r"a.jsonl:10: chosen and rejected are the same"):
        check(Data(path), ("preference",))
    assert check(Data(path, heldout_fraction=0), CHAT).rows == 10  # for SFT, the chosen answer is used


def test_bad_held_out_rows_count_too(write):
    data = Data(write("a.jsonl", qa(5)), heldout=write("b.jsonl", [*qa(2, start=9), {"question": "?"}]))
    with pytest.raises(ValueError, match=r"b.jsonl:3: no answer"):
        check(data, CHAT)


def test_leaks_are_refused_with_examples_or_dropped(write):
    held = [{"question": f"what is  {i}", "answer": "?"} for i in (2, 4, 5, 6)] + qa(1, start=99)
    data = Data(write("a.jsonl", qa(10)), heldout=write("b.jsonl", held))
    with pytest.raises(ValueError) as e:
        check(data, CHAT)
    message = str(e.value)
    assert message.startswith(
        "data.heldout: 4 training rows hold a held-out prompt (ignoring case, spacing and punctuation):\n"
    )
    assert f"  {data.source}:3 = {data.heldout}:1: user What is 2?\n" in message
    assert message.count(data.source) == 3 and "data.leaks: drop" in message
    data.leaks = "drop"
    loaded = load(data, CHAT)
    assert questions(loaded.train) == [f"What is {i}?" for i in (0, 1, 3, 7, 8, 9)]
    assert (loaded.check.leaks, loaded.check.rows, loaded.check.heldout_rows) == (4, 6, 5)
    assert loaded.check.lines()[1] == "data: 4 training rows dropped because their prompt is held out, such as"


def test_a_held_out_prompt_inside_a_longer_conversation_is_a_leak(write):
    turn = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    more = [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": "No."}]
    train = write("a.jsonl", [{"messages": turn + more}, *qa_chats(2)])
    with pytest.raises(ValueError, match="1 training rows hold"):
        check(Data(train, heldout=write("b.jsonl", [{"messages": turn}])), CHAT)
    train = write("a.jsonl", [{"messages": turn + more + turn}, *qa_chats(2)])
    with pytest.raises(ValueError, match="1 training rows hold"):
        check(Data(train, heldout=write("b.jsonl", [{"messages": turn + more}])), CHAT)
    # Conversely, the held-out question ("Go on", after that exchange) was never trained on.
    short = write("c.jsonl", [{"messages": turn}])
    assert check(Data(short, heldout=write("d.jsonl", [{"messages": turn + more}])), CHAT).leaks == 0


def test_short_texts_are_not_leaks(write):
    long = "The garden lay behind the house and nobody had been there for years."
    heading, other = {"text": "Chapter one"}, {"text": "It rained."}
    held = write("b.jsonl", [heading, {"text": long}])
    assert check(Data(write("a.jsonl", [heading, other]), heldout=held), ("text",)).leaks == 0
    with pytest.raises(ValueError, match="1 training rows"):
        check(Data(write("a.jsonl", [heading, {"text": long.upper()}]), heldout=held), ("text",))


def test_held_out_may_be_in_another_format(write):
    held = write("b.jsonl", [{"prompt": "Other?", "completion": "Yes."}])
    found = check(Data(write("a.jsonl", qa(5)), heldout=held), CHAT)
    assert (found.format, found.heldout_format, found.heldout_rows) == ("question-answer", "prompt-completion", 1)
    with pytest.raises(ValueError, match=r"^data.heldout: the rows are text, but this stage wants chat rows"):
        check(Data(write("a.jsonl", qa(5)), heldout=write("c.txt", [b"Once.", b"Twice."])), CHAT)


def test_columns_are_renamed(write):
    path = write("a.jsonl", [{"query": f"q{i}", "response": "a", "output": "b"} for i in range(3)])
    data = Data(path, columns={"query": "question", "response": "answer"}, heldout_fraction=0)
    assert load(data, CHAT).train[0]["messages"][0] == {"role": "user", "content": "q0"}
    with pytest.raises(
        ValueError, match=r"data.columns: no column 'respnse' in the data; nearest: response; .* query, "
    ):
        check(Data(path, columns={"respnse": "answer"}), CHAT)
    with pytest.raises(ValueError, match=r"data.columns: 'response' can't become 'output', which is there already"):
        check(Data(path, columns={"response": "output"}), CHAT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "alpca"}, r"^data.format: no format 'alpca'; nearest: alpaca"),
        ({"heldout_fraction": 1.5}, r"^data.heldout_fraction is 1.5; it is a share"),
        ({"heldout_fraction": -0.1}, r"^data.heldout_fraction is -0.1"),
        ({"limit": 0}, r"^data.limit is 0"),
        ({"heldout_limit": 0}, r"^data.heldout_limit is 0"),
        (
            {"heldout_fraction": 1.0},
            r"^data.source: .* leaves no training rows \(0 bad, 0 leaked, 3 held out, 0 unused\)",
        ),
        ({"heldout_fraction": 0.0001}, r"^data.heldout: no rows are held out .* of 3. Raise data.heldout_fraction"),
        ({"format": "messages"}, r"data.format is messages, which needs the column 'messages'"),
    ],
)
def test_wrong_settings(write, settings, message):
    with pytest.raises(ValueError, match=message):
        check(Data(write("a.jsonl", qa(3)), **settings), CHAT)


def test_heldout_must_not_be_the_source(write):
    path = write("a.jsonl", qa(3))
    with pytest.raises(ValueError, match=r"^data.heldout is the same as data.source"):
        check(Data(path, heldout=path), CHAT)


def test_all_rows_bad_even_when_skipping(write):
    path = write("a.jsonl", [{"question": "q", "answer": ""}] * 3)
    with pytest.raises(ValueError, match=r"leaves no training rows \(3 bad"):
        check(Data(path, bad_rows="skip"), CHAT)


def test_conversion_is_said(write):
    rows = [{"prompt": f"p{i}", "completion": "c", "label": i % 2 == 0} for i in range(6)]
    found = check(Data(write("a.jsonl", rows), heldout_fraction=0), CHAT)
    assert (found.kind, found.rows, found.unused) == ("chat", 3, 3)
    assert "labelled → chat (only the answers labelled true), 3 training rows" in found.lines()[0]
    with pytest.raises(ValueError, match=r"^data.source: the rows are labelled, but this stage wants preference"):
        check(Data(write("a.jsonl", rows)), ("preference",))


def test_labels_are_counted_and_both_are_needed(write):
    def rows(wanted: int, unwanted: int) -> str:
        labels = [True] * wanted + [False] * unwanted
        made = [{"prompt": f"p{i}", "completion": "c", "label": label} for i, label in enumerate(labels)]
        return write(f"{wanted}-{unwanted}.jsonl", made)

    def said(path: str) -> list[str]:
        return [x for x in check(Data(path, heldout_fraction=0), ("labelled",)).lines() if "labelled true" in x]

    assert said(rows(4, 3)) == ["data: 4 answers are labelled true, 3 false"]
    assert said(rows(2, 8)) == [
        "data: 2 answers are labelled true, 8 false; train.desirable_weight from 4 to 5.33 balances them, "
        "or train.undesirable_weight from 0.188 to 0.25"
    ]
    for counts, label, remedy in (((5, 0), "true", "jobs/sft.py"), ((0, 5), "false", "nothing to prefer")):
        found = check(Data(rows(*counts), heldout_fraction=0), ("labelled",))
        with pytest.raises(ValueError, match=rf"^data.source: all 5 training answers are labelled {label}, .*{remedy}"):
            found.need_both_labels()
    check(Data(rows(1, 5), heldout_fraction=0), ("labelled",)).need_both_labels()
    check(Data(rows(5, 0), heldout_fraction=0), CHAT).need_both_labels()
    assert load(Data(rows(2, 8), heldout_fraction=0), ("labelled",)).check.wanted == 2


def test_demo():
    found = check(Data(), ("preference",))
    assert (found.format, found.kind, found.bad_rows, found.leaks) == ("demo", "preference", 0, 0)
    assert found.rows > 1000 and found.heldout_rows >= 200
    assert check(Data(limit=5), CHAT).rows == 5
    labelled = check(Data(limit=100), ("labelled",))
    assert labelled.conversion == "chosen answers as true, rejected ones as false" and labelled.wanted == 50
    with pytest.raises(
        ValueError,
        match=r"data.source: demo has chat, preference, prompt, problem, text, contrastive, classified rows, but this stage wants pair",
    ):
        check(Data(), ("pair",))


def test_absolute(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert absolute(Data("a.jsonl", heldout="a.jsonl")).heldout == str(tmp_path / "a.jsonl")
    assert absolute(Data("garden/fruit", heldout="test")) == Data("garden/fruit", heldout="test")
    assert absolute(Data("s3://a/b.jsonl")).source == "s3://a/b.jsonl" and absolute(Data()).source == "demo"


def test_all_bad_rows_are_counted_and_few_kept(write, monkeypatch):
    monkeypatch.setattr(scan, "SHOWN", 2)
    found = check(Data(write("a.jsonl", [*qa(30), *[{"question": "x"}] * 9]), bad_rows="skip"), CHAT)
    assert (found.bad_rows, len(found.bad)) == (9, 2)


def test_large_sources_are_sampled_on_the_driver_only(write, monkeypatch):
    monkeypatch.setattr(MODULE, "LARGE", 1000)
    path = write("a.jsonl", [*qa(1500), {"question": "x"}])
    found = check(Data(path), CHAT)
    assert (found.complete, found.rows, found.heldout_rows) == (False, None, None)
    assert found.lines() == [
        f"data: {path}: question-answer (chat); "
        "the first 1,000 rows are checked here, all of them when the workers load it"
    ]
    with pytest.raises(ValueError, match=r"a.jsonl:1501: no answer"):
        load(Data(path), CHAT)
    write("a.jsonl", [*qa(10), {"question": "x"}, *qa(1490)])
    with pytest.raises(ValueError, match=r"1 of the first 1,000 rows can't be used .*\n.*a.jsonl:11: no answer"):
        check(Data(path), CHAT)


def test_check_imports_nothing_heavy_and_is_fast(write):
    """A megabyte in under a second, without torch, datasets or pyarrow, so that the driver rejects a config quickly."""
    row = {"question": "What is it? " * 40, "answer": "That. " * 40}
    path = write("a.jsonl", [row | {"question": f"{i} {row['question']}"} for i in range(2000)])
    code = (
        "import sys, time\nstart = time.process_time()\n"
        "from lib.config.job import Data; from lib.data import check\n"
        "assert check(Data(sys.argv[1]), ('chat',)).rows > 1700\n"
        "heavy = {'torch', 'datasets', 'pandas', 'pyarrow', 'ray', 'numpy', 's3fs'} & set(sys.modules)\n"
        "assert not heavy, heavy\nprint(time.process_time() - start)"
    )
    seconds = float(
        subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
    )
    assert seconds < 1


def test_pairs_that_part_before_the_last_turn_are_refused_where_they_are_learnt(write):
    """In every format: the turns after the first differing answer would carry loss. A reward model scores them whole,
    and SFT learns the chosen answers."""

    def turns(first, last, by=("role", "content"), names=("user", "assistant")):
        said = zip(names * 2, ("Hi", first, "And now?", last), strict=True)
        return [dict(zip(by, pair, strict=True)) for pair in said]

    chat = {side: turns(side, f"last {side}") for side in ("chosen", "rejected")}
    share = {s: turns(s, f"last {s}", ("from", "value"), ("human", "gpt")) for s in ("chosen", "rejected")}
    prompted = {"prompt": "Hi"} | {side: talk[1:] for side, talk in chat.items()}
    transcript = {
        side: f"\n\nHuman: Hi\n\nAssistant: {side}\n\nHuman: And now?\n\nAssistant: last {side}" for side in chat
    }
    for name, row in {"chat": chat, "share": share, "prompted": prompted, "hh": transcript}.items():
        path = write(f"{name}.jsonl", [row])
        with pytest.raises(ValueError) as e:
            check(Data(path, heldout_fraction=0), ("preference",))
        assert f"{path}:1: chosen has a user message after its first answer" in str(e.value)
        whole = load(Data(path, heldout_fraction=0), ("comparison",))
        assert (whole.kind, [m["role"] for m in whole.train[0]["rejected"]]) == (
            "preference",
            ["assistant", "user", "assistant"],
        )
        rows = per_answer(load(Data(path, heldout_fraction=0), CHAT).train)
        assert [row["completion"] for row in rows] == [
            [{"role": "assistant", "content": text}] for text in ("chosen", "last chosen")
        ]
