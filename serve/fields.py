"""Checks the fields of a request before transformers' server reads them: it would answer 500 to most wrong ones."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any


def check(asked: dict[str, Any], needs: str, vocabulary: int, template: str = "", only_text: bool = True) -> None:
    """Raises ValueError naming the first wrong field, or the required field `needs` if it is missing.

    vocabulary: number of tokens; template: the model's chat template; only_text: whether the model reads only text.
    """
    if needs not in asked:
        raise ValueError(f"{needs}: must be {RULES[needs][1]}.")
    for key, (good, says) in RULES.items():
        if asked.get(key) is not None and not good(asked[key]):
            raise ValueError(f"{key}: must be {says}.")
    for token in asked.get("logit_bias") or {}:
        if not int(token) < vocabulary:
            raise ValueError(f"logit_bias: must be keyed by token ids below {vocabulary}; {token} is not.")
    if "messages" in asked:
        _messages(asked["messages"], template, only_text)
    if (more := asked.get("generation_config")) is not None:
        _generation_config(more)


def number(low: float, high: float, above: bool = False):
    """Returns a check for a number from `low` to `high`; above: `low` itself is excluded."""
    return lambda x: type(x) in (int, float) and low <= x <= high and not (above and x == low)


def whole(low: int):
    return lambda x: type(x) is int and x >= low


def text(x) -> bool:
    return isinstance(x, str)


def _stop(x) -> bool:
    return all(map(text, texts := [x] if text(x) else x)) and all(texts) if isinstance(x, str | list) else False


def _bias(x) -> bool:
    return isinstance(x, dict) and all(k.isascii() and k.isdigit() and number(-100, 100)(v) for k, v in x.items())


def _named(tools) -> bool:
    return _objects(tools) and all(isinstance(f := t.get("function"), dict) and text(f.get("name")) for t in tools)


def _template_kwargs(x) -> bool:
    from transformers import PreTrainedTokenizerBase

    taken = {"messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {"documents"}
    return isinstance(x, dict) and not taken & x.keys()


def _objects(x) -> bool:
    return isinstance(x, list) and all(isinstance(each, dict) for each in x)


RULES = {
    "stream": (lambda x: isinstance(x, bool), "true or false"),
    "temperature": (number(0, 2), "a number from 0 to 2"),
    "top_p": (number(0, 1, above=True), "a number above 0, and 1 at most"),
    "max_tokens": (whole(1), "a whole number of 1 or more"),
    "seed": (lambda x: type(x) is int and -(2**63) <= x < 2**63, "a whole number of 64 bits"),
    "n": (whole(1), "a whole number of 1 or more"),
    "best_of": (whole(1), "a whole number of 1 or more"),
    "logprobs": (lambda x: x is False, "false: the transformers engine gives none"),
    "top_logprobs": (lambda x: type(x) is int and x == 0, "0: the transformers engine gives none"),
    "stop": (_stop, "a text, or a list of texts, none of them empty"),
    "logit_bias": (_bias, "an object {token id: number from -100 to 100}"),
    "tools": (_named, "a list of objects, each with a function that has a name"),
    "chat_template_kwargs": (_template_kwargs, "an object without the arguments that the server sets itself"),
    "suffix": (text, "a text"),
    "prompt": (lambda x: text(x) and x != "", "a text that isn't empty"),
    "messages": (
        lambda x: _objects(x) and len(x) > 0 and all(text(m.get("role")) and m["role"] for m in x),
        "a list of objects with a role",
    ),
}
"""{field: (check of a value, description of valid values)}; null counts as missing."""


ROLES = ("system", "developer", "user", "assistant", "tool", "function")
TEXTS = ("text", "input_text", "output_text")
INSTEAD = ("tool_calls", "function_call", "refusal", "reasoning_content")
"""Fields that an assistant's message may have instead of content."""
ANY_ROLE = r"""\{\{[^}]*(\[['"]role['"]\]|\.role)"""
"""Matches a chat template that prints the role it is given."""


def _messages(messages: list[dict], template: str, only_text: bool) -> None:
    for i, m in enumerate(messages):
        content, role = m.get("content"), m["role"]
        named = re.search(ANY_ROLE, template) or any(quoted in template for quoted in (f"'{role}'", f'"{role}"'))
        if role not in ROLES and not named:
            raise ValueError(
                f"messages: the role of number {i} is {role!r}, which the model's chat template doesn't mention. Known: {', '.join(ROLES)}."
            )
        if content is None and not (role == "assistant" and any(m.get(k) is not None for k in INSTEAD)):
            raise ValueError(f"messages: number {i} has no content.")
        if content is not None and not text(content):
            if not _objects(content) or not all(text(part.get("type")) for part in content):
                raise ValueError(
                    f"messages: the content of number {i} must be a text, or a list of objects with a type."
                )
            if other := [part["type"] for part in content if part["type"] not in TEXTS and only_text]:
                raise ValueError(
                    f"messages: a part of number {i} is of type {other[0]}, and this model reads text only."
                )
            if not all(text(part.get("text")) for part in content if part["type"] in TEXTS):
                raise ValueError(f"messages: a part of number {i} has type text but no text.")
        if m.get("tool_calls") is not None:
            _tool_calls(i, m["tool_calls"])


def _tool_calls(i: int, calls) -> None:
    functions = [call.get("function") or call for call in calls] if _objects(calls) else [None]
    for f in functions:
        if not isinstance(f, dict) or not text(f.get("name")) or not isinstance(f.get("arguments"), str | dict):
            raise ValueError(f"messages: tool_calls of number {i} must be a list of functions with name and arguments.")
        try:
            json.loads(f["arguments"]) if text(f["arguments"]) else None
        except (ValueError, RecursionError):
            raise ValueError(f"messages: the arguments of a tool call of number {i} are not JSON.") from None


def _generation_config(given) -> None:
    from transformers import GenerationConfig

    try:
        config = GenerationConfig(**json.loads(given))
        config.validate()
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError(f"generation_config: must be the JSON text of a transformers GenerationConfig: {e}") from None
    if config.stop_strings is not None and not _stop(config.stop_strings):
        raise ValueError(f"generation_config: stop_strings must be {RULES['stop'][1]}.")
    if (config.num_beams or 1) > 1:
        raise ValueError(
            "generation_config: beam search is not supported, since it can't be stopped when the client disconnects."
        )
