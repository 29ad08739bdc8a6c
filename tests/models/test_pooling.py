"""The settings in a sentence-transformers folder."""

import json

import pytest

from lib.models import pooling


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (None, ("", "", "")),
        ({"prompts": {"query": "", "document": ""}, "default_prompt_name": None}, ("", "", "")),
        ({"prompts": {"query": "query: ", "passage": "passage: "}}, ("", "query: ", "passage: ")),
        ({"prompts": {"query": "Q: ", "sts": "S: "}, "default_prompt_name": "sts"}, ("S: ", "Q: ", "S: ")),
    ],
)
def test_the_prompt_in_front_of_a_text(settings, found, tmp_path):
    if settings is not None:
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert tuple(pooling.prompt(str(tmp_path), role) for role in ("", "query", "document")) == found
