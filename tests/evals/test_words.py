"""Measures that count words, on texts of any script."""

import pytest
from rouge_score.tokenizers import DefaultTokenizer

from lib.evals.measures.diversity import distinct, self_bleu
from lib.evals.task import Example
from lib.evals.tasks.reference import Reference
from lib.evals.tasks.words import RougeTokenizer

TEXTS = {
    "Russian": ("Кошка сидит на красном стуле", "Собака бежит через большой мост"),
    "Chinese": ("猫坐在红色的椅子上", "狗跑过一座大桥"),
    "Japanese": ("猫は赤い椅子に座っている", "ねずみが大きな橋を渡る"),
    "Thai": ("แมวนั่งบนเก้าอี้สีแดง", "หมาวิ่งข้ามสะพานใหญ่"),
    "German": ("Die Größe der Tür überrascht", "Ein Vogel singt über uns"),
    "Hindi": ("बिल्ली लाल कुर्सी पर बैठी है", "कुत्ता बड़े पुल के पार दौड़ता है"),
}


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_is_like_itself_and_unlike_another(language):
    one, other = TEXTS[language]
    score = lambda a, b: Reference().score(Example("x", [], a), b)  # noqa: E731
    same, different = score(one, one), score(one, other)
    for metric, most in {"rouge1": 1, "rouge2": 1, "rougeL": 1, "bleu": 100, "chrf": 100}.items():
        assert same[metric] == pytest.approx(most), metric
        assert different[metric] < 0.5 * most, metric
    assert self_bleu([one, one], 0) == pytest.approx(100) and self_bleu([one, other], 0) < 30
    assert distinct([one, one], 2) == 0.5


def test_half_of_a_text_without_spaces_is_half_like_it():
    score = Reference().score(Example("x", [], "猫坐在红色的椅子上"), "猫坐在红色的")
    assert score["rouge1"] == pytest.approx(2 * (6 / 9) / (1 + 6 / 9)) and 0 < score["bleu"] < 100


def test_words_keep_their_letters():
    assert RougeTokenizer().tokenize("Größe, naïve") == ["größe", "naïv"]


def test_english_has_rouge_scores_own_tokens():
    text = "It's 3.5 times the SIZES of running-shoes; don't you agree? (No.) a_b"
    assert RougeTokenizer().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)
