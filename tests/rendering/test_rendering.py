"""While a job is planned, the text that the model will see of a row is compared with the row."""

import json
from types import SimpleNamespace

import pytest

from lib.config.job import Job, Model
from lib.data.check import HOW
from lib.errors import UsageError
from lib.rendering.base import base
from lib.rendering.losses import CALLS, THOUGHTS, TOOLS, lost
from lib.rendering.sample import CHARACTERS, ROWS, Sample, look
from lib.rendering.sequences import Parts, Settings
from lib.stage.plan import Plan
from tests import stages
from tests.conftest import WORDS

TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
ALL = "{% for m in messages %}" + TURN + "{% endfor %}" + OPENING
WRITES_TOOLS = (
    "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m['content'] | trim }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + ' ' + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}" + OPENING
)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


def call(name: str, **arguments) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def chats(*before: dict, answer=None, n: int = 20, **columns) -> list[dict]:
    """Returns n conversations, each with its own question."""
    answers = answer or (lambda i: assistant(f"a {WORDS[i % 18]} stone"))
    return [{"messages": [*before, user(f"what is number {i}?"), answers(i)], **columns} for i in range(n)]


@pytest.fixture
def planned(tiny_model, tmp_path, monkeypatch):
    """planned(stage, rows, template=None, *options) → the Plan of a job on these rows, none of them held out."""
    monkeypatch.setattr("lib.runtime.hardware.local_gpus", lambda: 0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def make(stage: str, rows: list[dict], template: str | None = None, *options: str) -> Plan:
        source = tmp_path / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        argv = ["--model.base", tiny_model, "--data.source", str(source), "--run", str(tmp_path / "run")]
        if template:
            (tmp_path / "t.jinja").write_text(template)
            argv += ["--model.chat_template", str(tmp_path / "t.jinja")]
        argv += ["--data.heldout_fraction", "0", "--dry-run", *options]
        return stages.planned(stage, argv)

    return make


WITHOUT_SYSTEM = "{% for m in messages if m['role'] != 'system' %}" + TURN + "{% endfor %}" + OPENING
WITHOUT_THOUGHTS = ALL.replace("m['content']", "m['content'].split('</think>')[-1]")
SYSTEM = {"role": "system", "content": "speak like a pirate"}
SUM = {"type": "function", "function": {"name": "sum", "description": "adds numbers", "parameters": {}}}


def called(result: str):
    return lambda i: assistant("", tool_calls=[call("add", a=i, b="zwölf")])


LOST = [
    (chats(SYSTEM), WITHOUT_SYSTEM, "system messages in 20 of 20 answers"),
    (chats(answer=lambda i: assistant("yes", reasoning_content=f"thought {i}")), ALL, "reasoning"),
    (chats(answer=lambda i: assistant(f"<think>thought {i}</think>yes {i}")), WITHOUT_THOUGHTS, "reasoning"),
    (chats(answer=called("")), "{# writes no tool_calls #}" + ALL, "tool calls in 20 of 20 answers"),
    (chats(tools=[SUM]), "{# tools #}" + ALL, "tools offered in 20 of 20 answers"),
    (chats(), ALL.replace("m['content']", "m['content'][:4]"), "user messages"),
]


@pytest.mark.parametrize(("rows", "template", "what"), LOST, ids=[what for *_, what in LOST])
def test_text_that_the_template_leaves_out(planned, rows, template, what):
    with pytest.raises(UsageError, match=f"model.chat_template: .* leaves out .*{what}") as e:
        planned("sft", rows, template)
    assert "rows.jsonl:1" in str(e.value) and "data.incomplete: accept" in str(e.value)
    accepted = planned("sft", rows, template, "--data.incomplete", "accept")
    assert any(what in note for note in accepted.notes)
    assert accepted.check.summary()["rendered"]["train"]["lost"]


def test_a_template_that_writes_everything(planned):
    def thoughts(i: int) -> dict:
        calls = [call("add", a=1e-5, b=['z"ö'])]
        return assistant("  spaces  ", reasoning_content=f'th"ink {i}', tool_calls=calls)

    found = planned("sft", chats(SYSTEM, answer=thoughts, tools=[SUM]), WRITES_TOOLS).rendered
    assert found.train.lost == {} and found.train.examples == 20


def test_reasoning_of_earlier_answers_may_be_left_out():
    """Templates of reasoning models leave it out of prompts too; the answer that is learnt keeps its own reasoning."""
    earlier = assistant("<think>old thought</think>first", reasoning_content="older thought")
    said = "what? first and then? <think> new thought </think> second"
    prompt = [user("what?"), earlier, user("and then?")]
    assert lost(said, Parts(prompt, [assistant("<think>new thought</think>second")]), None) == []
    assert lost("what? first and then? second", Parts(prompt, [assistant("<think>new</think>second")]), None) == [
        THOUGHTS
    ]


def test_a_text_is_not_found_inside_another():
    assert lost("yes yes, no", Parts([user("yes")], [assistant("yes yes, no")]), None) == ["user messages"]
    assert lost("yes yes yes, no", Parts([user("yes")], [assistant("yes yes, no")]), None) == []


def test_json_forms_of_a_text():
    parts = Parts([user("q")], [assistant("", tool_calls=[call("f", text='say "é"', n=0.1)])])
    for ascii_only in (False, True):
        once = json.dumps(parts.answer[0]["tool_calls"][0]["function"]["arguments"], ensure_ascii=ascii_only)
        for written in (once, json.dumps(once, ensure_ascii=ascii_only)):
            assert lost(f"q f {written}", parts, None) == []
    assert lost('q f {"text": "say", "n": 0.1}', parts, None) == [CALLS]
    assert lost('q f text n 0.1 say "é"', parts, [SUM]) == [TOOLS]


def test_a_template_that_fails_at_one_row(planned):
    rows = chats()
    rows[13]["messages"].insert(0, SYSTEM)
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + ALL
    for accept in ([], ["--data.incomplete", "accept"]):  # training would fail on it
        with pytest.raises(UsageError, match=r"fails at 1 of 20 rows.*rows.jsonl:14: TemplateError: no system role"):
            planned("sft", rows, template, *accept)
    with pytest.raises(UsageError, match=r"fails at 20 of 20 rows.*TemplateSyntaxError"):
        planned("sft", rows, "{% if %}")


def test_a_generation_prompt_that_training_leaves_out(planned):
    thinking = ALL.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}")
    with pytest.raises(UsageError, match=r"generation prompt ends in '<think>\\n' .*20 of 20 answers"):
        planned("sft", chats(), thinking)
    pairs = [{"prompt": f"what is {i}?", "chosen": "good", "rejected": "bad"} for i in range(20)]
    with pytest.raises(UsageError, match=r"generation prompt .*20 of 20 pairs"):
        planned("dpo", pairs, thinking)
    # A reward model generates no answer, so its rows have no generation prompt.
    assert planned("reward", pairs, thinking).rendered.train.parted == 0


def test_a_template_that_ends_no_turn(planned):
    endless = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    with pytest.raises(UsageError, match=r"20 of 20 answers have no token that ends the turn"):
        planned("sft", chats(), endless)


def test_the_token_that_ends_a_turn(planned, tiny_model):
    other = ALL.replace("<|im_end|>", "<|endoftext|>")  # special, but not the tokenizer's eos_token
    assert planned("sft", chats(), other).rendered.train.ends == {"<|endoftext|>": 20}
    assert planned("sft", chats(), ALL).rendered.train.ends == {"<|im_end|>": 20}


LONG = 60
"""Words of a long prompt or answer (in tokens it is longer); train.max_length is 48 below."""


def lengths(n_long_prompts: int, n_long_answers: int, n: int = 20):
    """Returns rows with a long prompt, then rows with a long answer, then short ones."""
    for i in range(n):
        asked = "lamp " * (LONG if i < n_long_prompts else 1) + str(i)
        answered = "stone " * (LONG if n_long_prompts <= i < n_long_prompts + n_long_answers else 1)
        yield asked, answered


def test_lengths_of_answers(planned):
    rows = [{"messages": [user(q), assistant(a)]} for q, a in lengths(4, 6)]
    with pytest.raises(
        UsageError, match=r"train.max_length: 48 .*10 of 20 answers .*4 are dropped, 6 lose their end.* 50%"
    ):
        planned("sft", rows, ALL, "--train.max_length", "48")
    accepted = planned(
        "sft", rows, ALL, "--train.max_length", "48", "--data.incomplete", "accept", "--scale.global_batch", "8"
    )
    train = accepted.rendered.train
    assert (train.examples, train.dropped, train.cut, train.alike) == (20, 4, 6, 0)
    assert "3 epochs of 16 rows ≈ 6 steps" in dict(accepted.lines())["length"]
    needed = train.longest
    assert planned("sft", rows, ALL, "--train.max_length", str(needed)).rendered.train.cut == 0
    split = ["--train.packing", "true", "--train.packing_strategy", "bfd_split"]
    assert planned("sft", rows, ALL, "--train.max_length", "48", *split).rendered.train.cut == 0


def test_a_few_long_answers_are_mentioned_and_no_error(planned):
    rows = [{"messages": [user(q), assistant(a)]} for q, a in lengths(0, 1)]
    notes = planned("sft", rows, ALL, "--train.max_length", "48").notes
    assert any("1 of 20 answers" in n and "1 lose their end" in n for n in notes)


def test_lengths_of_pairs(planned):
    """If both sides begin alike, they are equal after truncation."""
    rows = [{"prompt": q, "chosen": a + " red", "rejected": a + " salt"} for q, a in lengths(4, 6)]
    accept = [ALL, "--train.max_length", "48", "--data.incomplete", "accept"]
    train = planned("dpo", rows, *accept).rendered.train
    assert (train.examples, train.dropped, train.cut, train.alike) == (20, 4, 6, 6)
    train = planned("reward", rows, *accept).rendered.train
    assert (train.examples, train.dropped, train.cut, train.alike) == (20, 10, 0, 0)
    with pytest.raises(UsageError, match=r"6 of 20 pairs chosen and rejected are the same tokens"):
        planned("dpo", rows, *accept[:-2])


def test_sides_that_the_template_makes_alike(planned):
    rows = [{"prompt": f"what is {i}?", "chosen": "red", "rejected": "red  "} for i in range(20)]
    with pytest.raises(UsageError, match="20 of 20 pairs chosen and rejected are the same tokens"):
        planned("reward", rows, ALL.replace("m['content']", "m['content'].strip()"))


def test_rows_longer_than_the_model_has_positions(planned):
    rows = chats(answer=lambda i: assistant("stone " * (600 if i == 3 else 1)))
    with pytest.raises(UsageError, match=r"1 of 20 answers are longer than the 512 positions"):
        planned("sft", rows, ALL)
    notes = planned("sft", rows, ALL, "--train.max_length", "512").notes
    assert any("1 lose their end" in n for n in notes)


def test_answers_marked_as_context_are_not_learnt(planned):
    rows = [
        {"messages": [user(f"q {i}"), assistant("bad", weight=0), user("again"), assistant("good")]} for i in range(8)
    ]
    found = planned("sft", rows, ALL)
    assert found.rendered.train.examples == 8
    assert found.rendered.shown[1][1].count("⟦") == 1 and found.rendered.shown[1][1].endswith("⟦good<|im_end|>\n⟧")


def test_each_answer_of_a_conversation_is_a_row_of_the_batch(planned):
    rows = [{"messages": [*chats(n=1)[0]["messages"], user(f"and {i}?"), assistant("no")]} for i in range(16)]
    assert (
        "3 epochs of 32 rows ≈ 12 steps"
        in dict(planned("sft", rows, ALL, "--scale.global_batch", "8").lines())["length"]
    )


def test_the_plan_shows_a_row_with_what_is_learnt_marked(planned):
    lines = dict(planned("sft", chats(SYSTEM), ALL).lines())
    whole = (
        "<|im_start|>system\nspeak like a pirate<|im_end|>\n<|im_start|>user\nwhat is number 0?<|im_end|>\n"
        "<|im_start|>assistant\n⟦a red stone<|im_end|>\n⟧"
    )
    assert lines[""] == whole and "rows.jsonl:1" in lines["a row"]
    assert planned("sft", [{"text": f"once {i}"} for i in range(9)]).rendered.shown[1][1] == "⟦once 0<|im_end|>⟧"
    pairs = [{"prompt": f"what is {i}?", "chosen": "good", "rejected": "bad"} for i in range(20)]
    shown = dict(planned("dpo", pairs, ALL).rendered.shown)
    assert shown["chosen"].endswith("assistant\n⟦good<|im_end|>\n⟧") and shown["rejected"] == "… ⟦bad<|im_end|>\n⟧"


def test_no_template_and_no_end_of_text(tiny_model, tmp_path):
    import shutil

    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny_model, tmp_path / "bare")
    tok = AutoTokenizer.from_pretrained(folder)
    tok.chat_template, tok.eos_token = None, None
    (folder / "chat_template.jinja").unlink()
    tok.save_pretrained(folder)
    plain = Settings.of("sft", SimpleNamespace(max_length=9))
    known = base(Model(str(folder)), plain)
    assert known.unfit("chat", plain).startswith("model.chat_template") and "eos_token" in known.unfit("text", plain)


def test_the_sample_is_spread_over_all_rows():
    sample = Sample()
    for i in range(10_000):
        sample.keep("text", "train", {"text": "word"}, f"f:{i}")
    assert ROWS / 2 <= len(sample.rows) <= ROWS
    assert {int(place[2:]) % sample.every for _, place, _ in sample.rows} == {0}
    assert int(sample.rows[-1][1][2:]) >= 10_000 - sample.every
    for i in range(100):
        sample.keep("text", "train", {"text": "word" * 10_000}, f"g:{i}")
    assert sample.size <= CHARACTERS


def test_a_base_that_is_not_on_this_machine():
    sample = Sample()
    sample.keep("text", "train", {"text": "word"}, "f:1")
    found, problems, notes = look(
        Job("runs/x", "sft", Model("s3://b/run")), stages.stage("sft").config, sample, True, True
    )
    assert found is None and not problems and "checked when the workers start: s3://b/run" in notes[0]


def test_reasoning_is_learnt_masked_or_removed_by_one_key(planned):
    """The last line shows, between the marks, what carries loss."""
    rows, seen = chats(answer=lambda i: assistant(f"so {i}", reasoning_content=f"thought {i}")), {}
    for how in ("learn", "mask", "remove"):
        plan = planned("sft", rows, ALL, "--data.reasoning", how)
        seen[how] = plan.rendered.shown[-1][1].partition("<|im_start|>assistant\n")[2]
        assert ("data", f"20 answers have reasoning, {HOW[how]}") in plan.lines()
        assert plan.check.summary()["reasoning"] == 20 and plan.rendered.train.lost == {} == plan.rendered.train.first
    assert seen["learn"] == "⟦<think>\nthought 0\n</think>\n\nso 0<|im_end|>\n⟧"
    assert seen["mask"] == "<think>\nthought 0\n</think>\n\n⟦so 0<|im_end|>\n⟧"
    assert seen["remove"] == "⟦so 0<|im_end|>\n⟧"
    with pytest.raises(UsageError, match=r"leaves out reasoning .*Set data.reasoning: learn"):
        planned("sft", rows, ALL)
    with pytest.raises(UsageError, match=r"leaves out reasoning .* in 20 of 20"):  # <think> in the text is lost, too
        planned("sft", rows, WITHOUT_THOUGHTS, "--data.reasoning", "learn")
    assert "<think>thought 0</think>" in planned("sft", rows, WRITES_TOOLS).rendered.shown[-1][1]
