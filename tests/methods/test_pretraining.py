"""What the objectives of pre-training make of texts: blocks, masks, segments, sentinels."""

import math

import numpy as np
import pytest

from lib.methods.pretraining.blocks import Blocks, Tokens
from lib.models import masking
from lib.models.masking import generator
from tests.methods.handwritten import batch, blocks, objective, tokens

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
