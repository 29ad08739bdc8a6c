"""BERTScore in a report equals the paper's formula, computed here from the encoder's own embeddings."""

import json
from dataclasses import replace

import pytest

from lib.evals.evaluate import evaluate
from lib.evals.job import EvalJob
from lib.evals.plan import plan
from lib.run import Run


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """Folder of a random BERT (2 layers, width 32) over the letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    letters = [chr(c) for c in range(33, 127)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocab))
    # Without model_max_length, like DeBERTa's tokenizer.
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(vocab), **shape)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def job(runs, chats_file, encoder, tmp_path) -> EvalJob:
    return EvalJob(
        run=str(tmp_path / "e"), runs={"sft": runs["sft"]}, tasks=["bertscore", "reference"], bert_encoder=encoder,
        task_data={"reference": chats_file}, limit=5, max_new_tokens=12, dtype="float32",
        decoding=["t=1"],
    )  # fmt: skip


def by_hand(encoder: str, answer: str, reference: str) -> tuple[float, float, float]:
    """The equations of section 3: precision, recall and F1 of greedy matching by cosine. As in the authors' code, tokens may match [CLS]
    and [SEP], but these two don't count themselves."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tok, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()

    def embed(text):
        ids = tok(text.strip(), return_tensors="pt", truncation=True)
        with torch.no_grad():
            x = model(**ids).last_hidden_state[0]
        return x / x.norm(dim=-1, keepdim=True)

    like = embed(answer) @ embed(reference).T
    if len(like) == 2:  # control characters, which give no tokens
        return 0.0, 0.0, 0.0
    p, r = like.max(1).values[1:-1].mean().item(), like.max(0).values[1:-1].mean().item()
    return p, r, 2 * p * r / (p + r)


@pytest.mark.slow
def test_it_is_the_papers_formula(job, encoder, local_ray):
    report = evaluate(plan(job), say=lambda line: None)
    rows = [json.loads(line) for line in Run(job.run).read_text("reports/examples.jsonl").splitlines()]
    want = [by_hand(encoder, r["answer"], r["reference"]) if r["answer"].strip() else (0.0,) * 3 for r in rows]
    got = {m.metric: m.value for m in report.metrics if m.task == "bertscore"}
    for name, values in zip(("precision", "recall", "f1"), zip(*want, strict=True), strict=True):
        assert got[name] == pytest.approx(sum(values) / len(values), abs=1e-5)
    assert any(r["answer"].strip() for r in rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bert_encoder": None}, "bert_encoder: bertscore needs an encoder"),
        ({"bert_encoder": "./nowhere"}, "bert_encoder: nowhere has no config.json"),
        ({"task_data": {}}, "task_data.reference: give a file"),
    ],
)
def test_wrong_requests(job, change, message):
    with pytest.raises(ValueError, match=message):
        plan(replace(job, **change))
