"""Prompts with a common prefix: it is read once, and the next token's logits equal those of each prompt read alone."""

import pytest
import torch

from lib.generation import kv_cache
from lib.generation.kv_cache import Cached


@pytest.fixture(scope="module")
def model(tiny_model):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.mark.parametrize("beginning", [0, kv_cache.WORTH - 1, kv_cache.WORTH, 40])
def test_logits_are_those_of_each_prompt_alone(model, beginning):
    same = list(range(5, 5 + beginning))
    prompts = [same + rest for rest in ([200, 201, 202], [300], [400, 401, 402, 403, 404], [300])]
    fed, more = [], [7, 8, 9, 10]
    hook = model.register_forward_pre_hook(lambda m, _, kw: fed.append(kw["input_ids"].shape), with_kwargs=True)
    with torch.inference_mode():
        read = Cached(model, prompts, 3, "cpu")
        hook.remove()
        assert (fed[0][0] == 1) == (
            beginning >= kv_cache.WORTH
        )  # one row for all of them, if the prefix is long enough
        for step in range(3):
            for i, prompt in enumerate(prompts):
                alone = model(input_ids=torch.tensor([prompt + more[i : i + 1] * step])).logits[0, -1]
                assert torch.allclose(read.logits_BV[i], alone, atol=1e-5)
            read.feed(torch.tensor(more)[:, None])
        read.keep(torch.tensor([2, 0]))
        assert read.logits_BV.shape[0] == read.mask_BT.shape[0] == 2


def test_rows_join_and_leave_while_others_are_written(model):
    """A shorter row joins, then a longer one; once the longest has left, no column is only padding."""

    def alone(*ids):
        return model(input_ids=torch.tensor([ids])).logits[0, -1]

    first, short, long = list(range(5, 17)), [300, 301], list(range(100, 130))
    with torch.inference_mode():
        read = Cached(model, [first], 3, "cpu")
        read.feed(torch.tensor([[7]]))
        read.join(Cached(model, [short], 3, "cpu"))
        read.feed(torch.tensor([[8], [9]]))
        read.join(Cached(model, [long], 3, "cpu"))
        read.feed(torch.tensor([[10], [11], [12]]))
        want = [alone(*first, 7, 8, 10), alone(*short, 9, 11), alone(*long, 12)]
        assert torch.allclose(read.logits_BV, torch.stack(want), atol=1e-5)
        read.keep(torch.tensor([1, 0]))
        read.trim()
        assert read.joinable() and read.mask_BT.shape[1] == len(first) + 3 == read.cache.get_seq_length()
        read.feed(torch.tensor([[13], [14]]))
        want = [alone(*short, 9, 11, 13), alone(*first, 7, 8, 10, 14)]
        assert torch.allclose(read.logits_BV, torch.stack(want), atol=1e-5)


def test_a_prompt_that_is_the_beginning_of_the_others(model):
    prompts = [list(range(5, 45)), list(range(5, 50))]
    with torch.inference_mode():
        read = Cached(model, prompts, 3, "cpu")
        for row, prompt in zip(read.logits_BV, prompts, strict=True):
            assert torch.allclose(row, model(input_ids=torch.tensor([prompt])).logits[0, -1], atol=1e-5)


def test_a_sliding_window_shares_nothing(tiny_model):
    """The padding between the prefix and the rest would use up the window."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=1024, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=24,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    prompts = [[*range(5, 45), 200, 201, 202, 203, 204, 205, 206, 207], [*range(5, 45), 300]]
    with torch.inference_mode():
        read = Cached(model, prompts, 3, "cpu")
        for row, prompt in zip(read.logits_BV, prompts, strict=True):
            assert torch.allclose(row, model(input_ids=torch.tensor([prompt])).logits[0, -1], atol=1e-4)


def test_reading_on_copies_nothing_while_there_is_room(model):
    with torch.inference_mode():
        read = Cached(model, [[5, 6, 7], [8, 9]], 3, "cpu")
        layer = read.cache.layers[0]
        places = set()
        for _ in range(kv_cache.ROOM):
            read.feed(torch.tensor([[4], [5]]))
            places.add(layer.keys.data_ptr())
        assert len(places) == 1 and layer.keys.shape[-2] == 3 + kv_cache.ROOM
        read.feed(torch.tensor([[4], [5]]))
        assert layer.keys.data_ptr() not in places
        alone = model(input_ids=torch.tensor([[5, 6, 7] + [4] * (kv_cache.ROOM + 1)])).logits[0, -1]
        assert torch.allclose(read.logits_BV[0], alone, atol=1e-5)
