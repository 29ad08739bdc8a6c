"""Two workers that resume within the second epoch get that epoch's masks, dropout and prompts, not the first one's."""

import pytest

from tests.methods import embedded, pretrained, rewarded
from tests.methods.as_worker import Two


@pytest.mark.slow
def test_two_workers_resume_exactly_within_the_second_epoch(tiny_model, tmp_path):
    encoder = embedded.base(tiny_model, tmp_path / "encoder")
    base = rewarded.base(tiny_model, str(tmp_path / "base"))
    where = str(tmp_path / "two"), pretrained.texts(tmp_path), encoder, base
    found = Two("tests.methods.resumed", *where, cache=str(tmp_path / "hf")).result()
    for name, (whole, again) in found.items():
        assert len(whole) == 6 and again == whole, name
