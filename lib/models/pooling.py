"""How the vector of a text is made of its tokens' vectors, and what stands in front of the text, by the files of a sentence-transformers
folder."""

from __future__ import annotations

import json
from pathlib import Path

NAMES = {"mean": "mean", "last": "lasttoken", "cls": "cls"}
"""{way of pooling: its name in sentence-transformers}"""
MODULES = ("Transformer", "Pooling", "Normalize")
PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""{role of a text: names of its prompt, the first that exists is used}, as encode_query and encode_document of sentence-transformers do."""


def of(folder: str) -> str | None:
    """Returns a key of NAMES; None if the folder has no such files. Raises ValueError if it describes another kind of embedding."""
    file = Path(folder, "modules.json")
    if not file.is_file():
        return None
    found = None
    for module in json.loads(file.read_text(encoding="utf-8")):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind not in MODULES:
            raise ValueError(f"{folder} ends in a {kind} layer, which isn't computed here.")
        if kind == "Pooling":
            settings = json.loads(Path(folder, module["path"], "config.json").read_text(encoding="utf-8"))
            modes = _modes(settings)
            found = next((ours for ours, theirs in NAMES.items() if modes == [theirs]), None)
            if found is None:
                raise ValueError(f"{folder} pools by {', '.join(modes)}, which isn't computed here.")
    return found


def prompt(folder: str, role: str) -> str:
    """Returns what stands in front of a text, such as E5's "query: " (Wang et al. 2022, https://arxiv.org/abs/2212.03533); "" for most models.

    role: a key of PROMPTS, or "" for the prompt of texts without a role.
    """
    file = Path(folder, "config_sentence_transformers.json")
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    return next((prompts[name] for name in (*PROMPTS.get(role, ()), default) if name in prompts), "")


def _modes(settings: dict) -> list[str]:
    """Returns the ways of pooling, under the names of sentence-transformers 6. Earlier versions had a switch for each."""
    if "pooling_mode" in settings:
        mode = settings["pooling_mode"]
        return [mode] if isinstance(mode, str) else [*mode]
    switches = [
        k.removeprefix("pooling_mode_") for k, v in settings.items() if k.startswith("pooling_mode_") and v is True
    ]
    return [s.removesuffix("_tokens").removesuffix("_token") if s != "lasttoken" else s for s in switches]
