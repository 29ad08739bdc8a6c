"""serve/fields.py: requests of OpenAI's clients are accepted, and unsupported fields are named."""

import pytest

from serve.fields import check

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + m['content'] }}{% endfor %}"
SOME = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def messages(*given: dict) -> dict:
    return {"messages": [{"role": "user", "content": "hi"}, *given]}


@pytest.mark.parametrize(
    "given",
    [
        # The client's own message when it is sent back: model_dump() has a null for each missing field.
        {
            "role": "assistant",
            "content": "yes",
            "tool_calls": None,
            "function_call": None,
            "refusal": None,
            "name": None,
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": None, "reasoning_content": "well"},
        {"role": "user", "content": []},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"role": "developer", "content": "be brief"},
        {"role": "ipython", "content": "4"},
    ],
)
def test_what_clients_send(given):
    check(messages(given), "messages", 100, CHATML)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"role": "ipython", "content": "4"}, "the role of number 1 is 'ipython'"),
        ({"role": "user", "content": None}, "number 1 has no content"),
        ({"role": "assistant", "content": None}, "number 1 has no content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "type image_url"),
        ({"role": "assistant", "content": "a", "tool_calls": [{"id": "c"}]}, "tool_calls"),
    ],
)
def test_what_cannot_be_heeded_is_named(given, says):
    with pytest.raises(ValueError, match=says):
        check(messages(given), "messages", 100, SOME)
