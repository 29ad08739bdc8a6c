"""The objectives of pre-training on hand-written tensors: masks, sentinels, attention patterns, losses."""

import itertools
import math
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from lib.methods.pretraining.blocks import Blocks, Tokens
from lib.models import masking
from lib.models.masking import generator

SPECIAL = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3}
TOKENS = 40


class Tokenizer:
    """Tokens 0 to 3 are BERT's special ones, 30 to 37 T5's: </s>, <pad> and sentinels."""

    pad_token_id, cls_token_id, sep_token_id, mask_token_id, eos_token_id = 0, 1, 2, 3, 30
    vocabulary = (
        SPECIAL | {"</s>": 30} | {f"<extra_id_{n}>": 31 + n for n in range(5)} | {"[R]": 36, "[S]": 37, "[X]": 38}
    )
    all_special_ids = (0, 1, 2, 3, 30)
    added_tokens_decoder: ClassVar = {i: SimpleNamespace(special=True) for i in range(31, 39)}

    def __len__(self):
        return TOKENS

    def get_vocab(self):
        return self.vocabulary


def objective(name: str, **args):
    from lib.methods.pretraining.trainer import OBJECTIVES

    given = {
        "objective": name, "max_length": 16, "mlm_probability": 0.25, "whole_words": False, "separate_texts": False, "next_segment": "random",
        "discriminator_weight": 50.0, "noise_density": 0.25, "mean_noise_span_length": 2.0, "denoisers": "spans",
    }  # fmt: skip
    return OBJECTIVES[name](SimpleNamespace(**given | args), Tokenizer())


def blocks(count: int = 3, length: int = 16, seed: int = 0, ends=(5, 9)) -> Blocks:
    """Blocks of tokens 4 to 29. Each block has three texts, which end after the positions `ends`."""
    cuts = [0, *ends, length]
    texts = []
    for n in range(count):
        ids = [4 + (n * 7 + i * 5) % 26 for i in range(length)]
        texts += [{"ids": ids[a:b], "words": [i // 2 for i in range(b - a)]} for a, b in itertools.pairwise(cuts)]
    return Blocks(texts, length, seed, "train")


def tokens(made: Blocks) -> list[list[int]]:
    return [made[n]["input_ids"].tolist() for n in range(len(made))]


def batch(name: str, made: Blocks | None = None, **args) -> dict:
    made = blocks() if made is None else made
    return {k: v.tolist() for k, v in objective(name, **args).collate([made[i] for i in range(len(made))]).items()}


# -- blocks ----------------------------------------------------------------------------------------------------------


def test_texts_are_joined_and_cut_and_the_rest_is_counted():
    made = Blocks(
        [{"ids": [1, 2, 3], "words": [0, 0, -1]}, {"ids": [4, 5, 6, 7], "words": [0, 1, 2, -1]}], 3, 0, "train"
    )
    assert tokens(made) == [[1, 2, 3], [4, 5, 6]] and [made[n]["texts"].tolist() for n in range(2)] == [
        [0] * 3,
        [1] * 3,
    ]
    assert len(made) == 2 and made.left_out == 1
    assert Blocks([], 3, 0, "train").left_out == 0 == len(Blocks([], 3, 0, "train"))


def test_tokens_in_a_file_are_those_in_memory(tmp_path):
    """In chunks of two texts, and a block crosses several."""
    from datasets import Dataset

    texts = [{"ids": [n * 10 + i for i in range(n % 4)], "words": [i // 2 for i in range(n % 4)]} for n in range(1, 20)]
    Dataset.from_list(texts).to_parquet(tmp_path / "texts.parquet", batch_size=2)
    filed = Dataset.from_parquet(str(tmp_path / "texts.parquet"), cache_dir=str(tmp_path), batch_size=2)
    assert len(filed.data.column("ids").chunks) > 5
    for length in (1, 5, 27):
        here, there = Blocks(texts, length, 0, "train"), Blocks(Tokens(filed), length, 0, "train")
        assert len(here) == len(there) == 30 // length and here.left_out == there.left_out
        for n in range(len(here)):
            for key in ("input_ids", "texts", "words", "other", "other_words"):
                assert here[n][key].tolist() == there[n][key].tolist()


def test_words_of_different_texts_are_different():
    made = Blocks([{"ids": [1, 2], "words": [0, 0]}, {"ids": [3, 4], "words": [0, 1]}], 4, 0, "train")
    words = made[0]["words"].tolist()
    assert words[0] == words[1] and len(set(words)) == 3


def test_draws_depend_on_seed_epoch_and_block_alone():
    def drawn(made, index):
        return made[index]["draws"].random(4).tolist()

    made = blocks()
    first = drawn(made, 1)
    assert first == drawn(made, 1) == drawn(blocks(), 1)  # again, and from blocks made again
    others = [drawn(made, 2), drawn(made, 1 + len(made)), drawn(blocks(seed=1), 1)]
    assert all(first != other for other in others)
    assert made[1 + len(made)]["input_ids"].tolist() == made[1]["input_ids"].tolist()
    assert generator("a").random() == 0.16441050396696144  # on every machine


def test_the_other_block_is_never_the_block_itself():
    made = blocks(4)
    for index in range(40):
        assert made[index]["other"].tolist() != made[index]["input_ids"].tolist()


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [False, True])
def test_the_same_number_of_positions_is_chosen_in_each_block(words):
    free = np.array([False, *[True] * 18, False])
    numbers = np.array([-1, *(i // 3 for i in range(18)), -1]) if words else None
    counts, share = set(), np.zeros(20)
    for n in range(300):
        chosen = masking.choose(free, 0.3, generator(str(n)), numbers)
        counts.add(int(chosen.sum()))
        share += chosen / 300
    assert counts == {6} and share[0] == share[-1] == 0  # 0.3 · 20
    assert abs(share[1:-1] - 1 / 3).max() < 4 * math.sqrt(2 / 9 / 300)
    if words:  # six positions are two whole words
        chosen = masking.choose(free, 0.3, generator("a"), numbers)
        assert sorted(np.bincount(numbers[chosen])[np.unique(numbers[chosen])]) == [3, 3]


def test_80_percent_become_masks_and_10_percent_random():
    ids, regular = np.full(20_000, 5), np.arange(10, 20)
    chosen = np.arange(20_000) % 2 == 0
    out = masking.replace(ids, chosen, 3, regular, generator("a"))
    assert (out[~chosen] == 5).all() and set(out[chosen].tolist()) == {3, 5, *range(10, 20)}
    for share, found in ((0.8, out == 3), (0.1, (out >= 10)), (0.1, (out == 5) & chosen)):
        assert abs(found[chosen].mean() - share) < 4 * math.sqrt(share * (1 - share) / 10_000)


def test_spans_have_the_density_and_mean_length_of_t5():
    for n in range(50):
        noise = masking.spans(100, 0.15, 3.0, generator(str(n)))
        starts = noise & ~np.roll(noise, 1)
        assert noise.sum() == 15 and starts.sum() == 5 and not noise[0] and noise[-1]
    assert masking.spans(4, 0.5, 1.0, generator("a")).tolist() == [False, True, False, True]
    assert masking.spans(8, 0.15, 3.0, generator("a")).sum() == 1


def test_masked_tokens_and_labels_are_those_of_the_text():
    found, made = batch("mlm"), blocks()
    for ids, labels, text in zip(found["input_ids"], found["labels"], tokens(made), strict=True):
        assert len(ids) == 18 and (ids[0], ids[-1]) == (1, 2) and labels[0] == labels[-1] == -100
        for shown, label, real in zip(ids[1:-1], labels[1:-1], text, strict=True):
            assert (label == -100 and shown == real) or label == real
        assert sum(label != -100 for label in labels) == 4  # 0.25 · 18, rounded to even
    assert found["attention_mask"] == [[1] * 18] * 3


def test_a_special_token_is_never_chosen():
    made = Blocks([{"ids": [4, 5, 2] * 5 + [6], "words": [0] * 16}], 16, 0, "train")
    for epoch in range(30):
        labels = objective("mlm", mlm_probability=0.5).collate([made[epoch]])["labels"]
        assert 2 not in labels.tolist()[0]


# -- next-sentence prediction -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "swapped"])
def test_half_of_the_second_segments_follow(kind):
    from lib.methods.pretraining.nsp import pair

    made, wrong = blocks(3), 0
    for index in range(300):
        block = made[index]
        text, other = block["input_ids"].tolist(), block["other"].tolist()
        first, second, words, y = pair(block, kind)
        at, wrong = len(first), wrong + y
        assert len(first) + len(second) == 16 == len(words)
        if y == 0:
            assert [*first, *second] == text and 4 <= at <= 12
        elif kind == "random":
            assert [*first] == text[:at] and [*second] == other[at:]
        else:
            assert [*second, *first] == text
    assert abs(wrong / 300 - 0.5) < 4 * math.sqrt(0.25 / 300)


def test_segments_are_between_separators_and_have_their_type():
    found = batch("nsp")
    for ids, kinds in zip(found["input_ids"], found["token_type_ids"], strict=True):
        at = ids.index(2)
        assert ids[0] == 1 and ids[-1] == 2 and len(ids) == 19
        assert kinds == [0] * (at + 1) + [1] * (18 - at)


# -- span corruption --------------------------------------------------------------------------------------------------


def test_the_example_of_t5s_paper():
    """ "Thank you for inviting me to your party last week", figure 2 of Raffel et al. 2020."""
    words = np.arange(4, 14)
    noise = np.array([False, False, True, True, False, False, False, False, True, False])
    assert list(masking.replaced(words, noise, [31, 32])) == [4, 5, 31, 8, 9, 10, 11, 32, 13]
    assert list(masking.replaced(words, ~noise, [31, 32, 33])) == [31, 6, 7, 32, 12, 33]


def test_source_and_target_hold_every_token_once():
    found, made = batch("span_corruption"), blocks()
    for source, target, start, text in zip(
        found["input_ids"], found["labels"], found["decoder_input_ids"], tokens(made), strict=True
    ):
        assert start == [0, *target[:-1]] and source[-1] == target[-1] == 30
        missing, current = {}, None
        for token in target[:-1]:
            if token > 30:
                missing[current := token] = []
            else:
                missing[current].append(token)
        back = [t for token in source[:-1] for t in missing.get(token, [token])]
        assert back == text and sum(map(len, missing.values())) == 4


def test_the_mixture_of_ul2_names_its_mode():
    made, seen = blocks(4), set()
    made_by = objective("span_corruption", denoisers="mixture", max_length=16)
    for index in range(60):
        source, target = made_by.corrupted(made[index]["input_ids"], made[index]["draws"])
        mode = int(source[0])
        seen.add(mode)
        if mode == 37:  # [S]: the last quarter is one span
            assert source.tolist() == [37, *made[index]["input_ids"][:12], 31, 30]
            assert target.tolist() == [31, *made[index]["input_ids"][12:], 30]
    assert seen == {36, 37, 38}


def test_a_tokenizer_without_enough_sentinels_is_refused():
    with pytest.raises(ValueError, match=r"model.base: its tokenizer has no <extra_id_5>"):
        objective("span_corruption", max_length=64)


# -- attention --------------------------------------------------------------------------------------------------------


def test_who_sees_whom():
    import torch

    from lib.methods.pretraining.attention import packed, seen

    texts, prefix = torch.tensor([[0, 0, 0, 1, 1]]), torch.tensor([[True, True, False, True, False]])
    assert seen(texts, prefix)[0].int().tolist() == [
        [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1],
    ]  # fmt: skip
    assert packed(texts, prefix)["position_ids"].tolist() == [[0, 1, 2, 0, 1]]


def test_every_text_has_a_prefix_and_something_to_predict():
    from lib.methods.pretraining.prefix_lm import prefixes

    texts, seen = np.array([0, 0, 0, 0, 1, 1, 2]), set()
    for n in range(50):
        found = prefixes(texts, generator(str(n))).tolist()
        assert (
            found[4:] == [1, 0, 1] and found[:1] + found[3:4] == [1, 0] and found[:4] == sorted(found[:4], reverse=True)
        )
        seen.add(sum(found[:4]))
    assert seen == {1, 2, 3}
    made = batch("prefix_lm")
    for ids, labels, prefix in zip(made["input_ids"], made["labels"], made["prefix"], strict=True):
        assert labels == [-100 if p else i for i, p in zip(ids, prefix, strict=True)]


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_changed_token_is_noticed_by_those_that_see_it(kernel):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lib.methods.pretraining.attention import packed, seen

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, attn_implementation=kernel, **shape)).eval()
    texts = torch.tensor([[0] * 5 + [1] * 4])
    prefix = torch.tensor([[True, True, True, False, False, True, True, False, False]])
    ids, sees = torch.randint(0, 64, (1, 9)), seen(texts, prefix)[0]
    with torch.no_grad():
        before = model(input_ids=ids, **packed(texts, prefix)).logits
        for j in range(9):
            changed = ids.clone()
            changed[0, j] = (ids[0, j] + 1) % 64
            apart = (model(input_ids=changed, **packed(texts, prefix)).logits - before).abs().amax(-1)[0]
            assert [bool(a > 1e-6) for a in apart] == sees[:, j].tolist()


def test_the_first_token_of_a_separate_text_is_not_predicted():
    labels = batch("clm", separate_texts=True)["labels"]
    assert [[i for i, label in enumerate(row) if label == -100] for row in labels] == [[0, 5, 9]] * 3
    assert [[i for i, label in enumerate(row) if label == -100] for row in batch("clm")["labels"]] == [[0]] * 3


# -- losses -----------------------------------------------------------------------------------------------------------


def found(parts: dict) -> dict:
    return {name: (float(p.total), p.count, p.weight) for name, p in parts.items()}


def test_the_loss_of_a_causal_model():
    """Three tokens; the model gives the second probability ½ and the third ¼."""
    import torch

    logits = torch.log(torch.tensor([[[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]]))
    inputs = {
        "input_ids": torch.tensor([[0, 1, 2]]),
        "attention_mask": torch.ones(1, 3),
        "labels": torch.tensor([[-100, 1, 2]]),
    }
    parts, metrics = objective("clm").losses(lambda **_: SimpleNamespace(logits=logits), inputs)
    assert found(parts)["nll"] == (pytest.approx(math.log(2) + math.log(4)), 2, 1.0)
    assert found(metrics)["mean_token_accuracy"] == (1.0, 2, 1.0)


def test_the_losses_of_a_masked_model_and_the_next_segment():
    import torch

    tokens = torch.log(torch.tensor([[[0.5, 0.25, 0.25]] * 3] * 2))
    following = torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    labels = torch.tensor([[-100, 0, -100], [-100, 1, -100]])
    inputs = {k: torch.zeros(2, 3, dtype=torch.long) for k in ("input_ids", "attention_mask", "token_type_ids")}
    out = SimpleNamespace(logits=tokens, prediction_logits=tokens, seq_relationship_logits=following)
    parts, _ = objective("mlm").losses(lambda **_: out, inputs | {"labels": labels})
    assert found(parts) == {"nll": (pytest.approx(math.log(2) + math.log(4)), 2, 1.0)}
    parts, metrics = objective("nsp").losses(
        lambda **_: out, inputs | {"labels": labels, "wrong": torch.tensor([1, 0])}
    )
    assert found(parts)["next_nll"] == (pytest.approx(math.log(4) + math.log(2)), 2, 1.0)
    assert found(metrics)["next_accuracy"] == (1.0, 2, 1.0)


def test_both_losses_of_electra():
    """One of four tokens is masked. The generator gives the original ½; the discriminator σ(0) everywhere but σ(ln 3) = ¾ where the token
    was replaced."""
    import torch

    labels = torch.tensor([[-100, 5, -100, -100]])
    said = torch.log(torch.tensor([[0.25] * 2 + [0.0] * 3 + [0.5]]).clamp(min=1e-9))
    replaced = torch.tensor([[False, True, False, False]])
    logits = torch.tensor([[0.0, math.log(3), 0.0, 0.0]])
    parts, metrics = objective("electra").losses(lambda **_: (said, logits, replaced), {"labels": labels})
    assert found(parts)["generator_nll"] == (pytest.approx(math.log(2), rel=1e-5), 1, 1.0)
    assert found(parts)["discriminator_nll"] == (pytest.approx(3 * math.log(2) + math.log(4 / 3)), 4, 50.0)
    assert found(metrics)["replaced_share"] == (1.0, 4, 1.0)


def test_the_generators_draws_have_its_distribution():
    import torch

    from lib.methods.pretraining.electra import drawn

    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).expand(5, 3)
    assert drawn(logits, torch.tensor([0.0, 0.49, 0.51, 0.79, 0.999])).tolist() == [0, 0, 1, 1, 2]
