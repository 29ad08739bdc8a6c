"""Fields parsed from source equal those of the imported class."""

import dataclasses

import pytest

from lib.config import trl_fields


@pytest.mark.parametrize(
    "dotted",
    [
        "trl.trainer.sft_config:SFTConfig",
        "trl.trainer.dpo_config:DPOConfig",
        "trl.trainer.reward_config:RewardConfig",
        "peft.tuners.lora.config:LoraConfig",
    ],
)
def test_same_names_and_defaults_as_the_real_class(dotted):
    import importlib

    module, name = dotted.split(":")
    real = {f.name: f for f in dataclasses.fields(getattr(importlib.import_module(module), name)) if f.init}
    read = trl_fields.read(dotted)
    assert set(read) == {n for n in real if not n.startswith("_")}
    for key, f in read.items():
        if f.default is not None:
            assert f.default == real[key].default


def test_unknown_class():
    with pytest.raises(LookupError, match="no class Nope"):
        trl_fields.read("trl.trainer.dpo_config:Nope")
