"""Converts turns in common formats (OpenAI, ShareGPT, typed parts, hh-rlhf) to the messages of lib/data/rows.py."""

from __future__ import annotations

import json
import math
import re
from difflib import get_close_matches

from lib.data.marks import mark
from lib.data.rows import BadRow, Message, missing_as_null

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    "function_call": "call",
    "tool_call": "call",
}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def with_system(system: object, messages: list[Message]) -> list[Message]:
    """Puts a row's separate system text first, unless it is empty or the conversation starts with its own."""
    if system is not None and not isinstance(system, str):
        raise BadRow(f"system is {kind_of(system)}, not text")
    if not system or not system.strip() or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def read_turns(turns: object, name: str) -> list[Message]:
    """Converts [{role, content}, …] or [{from, value}, …] to messages. Raises BadRow, naming the column `name`.

    A ShareGPT function_call turn becomes tool_calls: of the previous message, if that is the assistant's, otherwise of
    a new one. An observation becomes a tool message. An empty system message is left out.
    """
    if isinstance(turns, dict):
        turns = [turns]
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"{name} is {kind_of(turns)}, not a list of messages")
    messages: list[Message] = []
    for n, turn in enumerate(turns, 1):
        where = f"{name}[{n}]"
        if not isinstance(turn, dict):
            raise BadRow(f"{where} is {kind_of(turn)}, not a message")
        turn = missing_as_null(turn)
        given = turn.get("role", turn.get("from"))
        if not isinstance(given, str) or given.lower() not in ROLES:
            near = get_close_matches(str(given).lower(), ROLES, 1)
            raise BadRow(f"{where} has role {given!r}" + (f" (nearest: {near[0]})" if near else ""))
        role = ROLES[given.lower()]
        message = _read_message(role, turn, where)
        if role == "system" and not message["content"].strip():
            continue
        if role == "call" and messages and messages[-1]["role"] == "assistant":
            if ("weight" in message) != ("weight" in messages[-1]):
                raise BadRow(f"{where} has another weight mark than the text before it (they form one message)")
            messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
            continue
        messages.append(message | {"role": "assistant"} if role == "call" else message)
    return messages


def _read_message(role: str, turn: dict, where: str) -> Message:
    content = turn.get("content", turn.get("value"))
    reasoning = turn.get("reasoning_content") or turn.get("reasoning") or turn.get("thinking")
    calls = turn.get("tool_calls") or []
    calls = list(calls) if isinstance(calls, list) else [calls]
    if turn.get("function_call") and role == "assistant":  # OpenAI before November 2023
        calls.append(turn["function_call"])
    if role == "call":
        calls.append(content)
        content = ""
    if isinstance(content, list):
        content, thought, more = _read_parts(content, where)
        reasoning, calls = reasoning or thought, calls + more
    if content is None and calls:
        content = ""
    if isinstance(content, dict) and role == "tool":  # a tool's answer as an object
        content = json.dumps(_json(content, f"{where} (tool)"), ensure_ascii=False)
    if not isinstance(content, str):
        raise BadRow(f"{where} ({role}) has {kind_of(content)} for content")
    message: Message = {"role": role, "content": content}
    if reasoning:
        if not isinstance(reasoning, str):
            raise BadRow(f"{where} ({role}) has {kind_of(reasoning)} for reasoning")
        message["reasoning_content"] = reasoning
    if calls:
        if role not in ("assistant", "call"):
            raise BadRow(f"{where} ({role}) calls a tool")
        message["tool_calls"] = [call for raw in calls for call in _read_calls(raw, where)]
    for key in ("name", "tool_call_id"):
        if role == "tool" and isinstance(turn.get(key), str):
            message[key] = turn[key]
    return message | mark(turn, where) if role in ("assistant", "call") else message


def _read_parts(parts: list, where: str) -> tuple[str, str, list]:
    """Reads typed parts [{"type": "text", "text"|"value": …}, {"type": "reasoning" …}, {"type": "tool_call" …}].

    Returns (text, reasoning, tool calls)."""
    texts, thoughts, calls = [], [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        value = (part.get(kind) or part.get("value") or part.get("text")) if isinstance(part, dict) else part
        if isinstance(part, str):
            texts.append(part)
        elif kind in ("text", "input_text", "output_text") and isinstance(value, str):
            texts.append(value)
        elif kind in ("reasoning", "thinking") and isinstance(value, str):
            thoughts.append(value)
        elif kind in ("tool_call", "function_call"):
            calls.append(value if value is not None else part)
        else:
            raise BadRow(f"{where} has a part of type {kind!r}; text, reasoning and tool_call are read")
    return "\n".join(texts), "\n".join(thoughts), calls


def _read_calls(raw: object, where: str) -> list[dict]:
    """Converts one call or a list of them, as objects or JSON text, to [{"type": "function", "function": {name, arguments}}]."""
    call = _json(raw, f"{where}: the tool call")
    if isinstance(call, list):
        return [one for item in call for one in _read_calls(item, where)]
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where}: the tool call has no name")
    given = "parameters" if "arguments" not in function and "parameters" in function else "arguments"
    arguments = _json(function.get(given) or {}, f"{where}: the tool call's arguments")
    if not isinstance(arguments, dict):
        raise BadRow(f"{where}: the tool call's arguments are {kind_of(arguments)}, not an object")
    named = _ordered({"name": function["name"], "arguments": arguments}, function)
    known = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return [_ordered(known | {"type": "function", "function": named}, call)]


def _ordered(new: dict, old: dict) -> dict:
    """Orders the keys of `new` as in `old`, since templates render them in order."""
    return {key: new[key] for key in [*old, *new] if key in new}


def read_tools(raw: object) -> dict:
    """Converts a row's tools, a list or JSON text, to {"tools": [{"type": "function", "function": …}]}; {} if there are none."""
    if raw is None or raw == "":
        return {}
    tools = _json(raw, "tools")
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        raise BadRow("tools is not a list of objects")
    return {"tools": [t if "function" in t else {"type": "function", "function": t} for t in tools]} if tools else {}


# "\n\nHuman:" or "\n\nAssistant:" opens a turn; at the start of the string the blank line may be missing.
_SPEAKER = re.compile(r"(?:\n\n|\A\s*)(Human|Assistant):")


def is_transcript(text: str) -> bool:
    first = _SPEAKER.match(text)
    return bool(first) and "\n\nAssistant:" in text


def read_transcript(text: object, name: str) -> list[Message]:
    """Converts a transcript of hh-rlhf (Bai et al. 2022), "\\n\\nHuman: … \\n\\nAssistant: …", to messages.

    Turns are stripped. Consecutive turns of the same speaker, as some annotators wrote, are joined with a blank line,
    because chat templates require the roles to alternate.
    """
    if not isinstance(text, str):
        raise BadRow(f"{name} is {kind_of(text)}, not a transcript")
    pieces = _SPEAKER.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        raise BadRow(f"{name} doesn't start with 'Human:'")
    messages: list[Message] = []
    for speaker, text in zip(pieces[1::2], pieces[2::2], strict=True):
        role, content = ROLES["human" if speaker == "Human" else "assistant"], text.strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content}".strip()
        else:
            messages.append({"role": role, "content": content})
    return messages


def split_common(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """Splits two conversations into (prompt, chosen, rejected). The prompt is their longest common start that ends before an
    answer."""
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    while same > 0 and chosen[same - 1]["role"] not in ("user", "tool"):
        same -= 1
    if same == 0:
        raise BadRow("chosen and rejected share no prompt")
    return chosen[:same], chosen[same:], rejected[same:]


def _json(raw: object, what: str) -> object:
    try:
        value = json.loads(raw) if isinstance(raw, str) else raw
    except ValueError as e:
        raise BadRow(f"{what} is not JSON ({e})") from None
    if (odd := _not_json(value)) is not None:
        raise BadRow(f"{what} has {odd}, which JSON can't hold (write it as text or null)")
    return value


def _not_json(value: object) -> str | None:
    """Returns the first contained value that JSON can't represent: NaN, Infinity, Parquet's dates and bytes. None: there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else repr(value)
    if value is None or isinstance(value, str | int):
        return None
    if not isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    inside = value.values() if isinstance(value, dict) else value
    return next((odd for v in inside if (odd := _not_json(v)) is not None), None)


def kind_of(value: object) -> str:
    names = {type(None): "null", str: "text", list: "a list", dict: "an object", bool: "true/false"}
    if value == []:
        return "an empty list"
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
