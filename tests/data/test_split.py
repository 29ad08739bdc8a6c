"""Prompts that differ only in case, space and punctuation count as the same; different sums stay different."""

import pytest

from lib.data.rows import prompts_of
from lib.data.split import digest, is_heldout, normalise

U = {"role": "user", "content": "Hi"}
A = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("prompt", "normalised"),
    [
        ("  What's   the\ncapital of FRANCE?! ", "whats the capital of france"),
        ("Straße, (bitte).", "strasse bitte"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ？", "full width"),
        ("3.5 + 2,000 at 17:30.", "3.5 + 2,000 at 17:30"),
        ("“Quoted” – text…", "quoted – text"),
        ("???", "???"),
    ],
)
def test_normalise(prompt, normalised):
    assert normalise(prompt) == normalised


def test_sums_are_not_the_same():
    sums = ["What is 3 - 2?", "What is 3 + 2?", "What is 3 * 2?", "What is 3 / 2?", "What is 3.2?", "What is 32?"]
    assert len({digest(s) for s in sums}) == len(sums)
    assert digest("What is 3 - 2?") == digest("what is  3 - 2")


def test_digest_and_side_never_change():
    """The literal values: a new release must not move anyone's held-out rows."""
    assert digest("What is 3 - 2?").hex() == "2abad0cbcb7898a10856663e36b807ec"
    held = [i for i in range(100) if is_heldout(digest(f"prompt {i}"), 0.1)]
    assert held == [1, 2, 13, 16, 24, 27, 29, 33, 39, 44, 46, 59, 66, 75, 77]


def test_share():
    keys = [digest(f"prompt {i}") for i in range(20_000)]
    count = sum(is_heldout(k, 0.1) for k in keys)
    assert abs(count - 2000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5  # 4 standard deviations of a binomial
    assert not any(is_heldout(k, 0.0) for k in keys) and all(is_heldout(k, 1.0) for k in keys)
    assert all(is_heldout(k, 0.2) for k in keys if is_heldout(k, 0.1))  # a larger share contains the smaller one


def test_prompts_of():
    system = {"role": "system", "content": "Be brief."}
    assert prompts_of("chat", {"messages": [system, U, A, U, A]}) == [
        "system Be brief. \nuser Hi ",
        "system Be brief. \nuser Hi \nassistant Hello \nuser Hi ",
    ]
    assert prompts_of("preference", {"prompt": [U], "chosen": [A], "rejected": [U]}) == ["user Hi "]
    assert prompts_of("prompt", {"prompt": [U, A, U]}) == ["user Hi ", "user Hi \nassistant Hello \nuser Hi "]
    assert prompts_of("text", {"text": "Once."}) == ["Once."]
    assert prompts_of("pair", {"a": "x", "b": "y", "score": 1.0}) == ["x\ny"]
