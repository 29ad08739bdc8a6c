"""Finds the text of a row that is missing from its rendering: a chat template may silently leave out parts it has no place for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from lib.data.rows import Message
from lib.rendering.sequences import Parts

THINK = re.compile(r"</?think>")

NAMES = {"system": "system messages", "user": "user messages", "assistant": "answers", "tool": "tools' results"}
THOUGHTS, CALLS, TOOLS = "reasoning (reasoning_content or <think>)", "tool calls", "tools offered"


def lost(rendered: str, parts: Parts, tools: list | None) -> list[str]:
    """Returns the names of the parts that are missing from the rendering of prompt and answer. Only text is compared: a template
    may strip the ends of a message and choose how it writes JSON. Reasoning in earlier answers may be missing, since templates
    also leave it out during inference.
    """
    wanted = [*_tools(tools or [])]
    for message in parts.prompt:
        wanted += _texts(message, thoughts=False)
    for message in parts.answer:
        wanted += _texts(message, thoughts=True)
    missing = []
    # Longest first, each match removed, so that a short text is not found inside another message.
    for text, name in sorted(wanted, key=lambda w: -len(w[0])):
        found = next((form for form in _forms(text) if form in rendered), None)
        if found is None:
            missing.append(name)
        else:
            rendered = rendered.replace(found, "\0", 1)
    return list(dict.fromkeys(missing))


def _texts(message: Message, thoughts: bool) -> Iterator[tuple[str, str]]:
    """Yields (text, its name) of a message."""
    name, content = NAMES[message["role"]], message["content"]
    if message["role"] != "assistant":
        yield from _stripped(content, name)
        return
    *thought, spoken = THINK.split(content)
    yield from _stripped(spoken, name)
    for text in [*thought, message.get("reasoning_content") or ""] if thoughts else []:
        yield from _stripped(text, THOUGHTS)
    for call in message.get("tool_calls") or []:
        yield from _stripped(call["function"]["name"], CALLS)
        for leaf in _leaves(call["function"]["arguments"]):
            yield from _stripped(leaf, CALLS)


def _tools(tools: list) -> Iterator[tuple[str, str]]:
    for tool in tools:
        function = tool.get("function") or {}
        for key in ("name", "description"):
            yield from _stripped(str(function.get(key) or ""), TOOLS)


def _stripped(text: str, name: str) -> Iterator[tuple[str, str]]:
    if text := text.strip():
        yield text, name


def _leaves(value) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inside in value.items():
            yield key
            yield from _leaves(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _leaves(inside)
    elif isinstance(value, str):
        yield value
    elif value is not None and not isinstance(value, bool):
        yield json.dumps(value)


def _forms(text: str) -> Iterator[str]:
    """Yields the text, the text as escaped in JSON, and as escaped in JSON that is itself a JSON string."""
    yield text
    for ascii_only in (False, True):
        once = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield once
        yield json.dumps(once, ensure_ascii=ascii_only)[1:-1]
