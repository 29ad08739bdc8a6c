"""What only vLLM serves, each against transformers on the same tiny model: LoRA runs that come later, a draft, vectors."""

import shutil
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from lib.run import Run
from lib.sampling import Sampling
from lib.transformers_generator import TransformersGenerator
from tests.serve.conftest import serving

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
PROMPTS = [[{"role": "user", "content": f"what is {w}?"}] for w in ("lamp", "the red table", "a garden near the river")]


@pytest.fixture(scope="module")
def wide(tiny_model, tmp_path_factory) -> str:
    """The tiny model with heads of 32, since vLLM's attention on CPUs has none of 16."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = str(tmp_path_factory.mktemp("wide"))
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    torch.manual_seed(0)
    wild = {"head_dim": 32, "initializer_range": 0.3}  # with smaller weights it says the same token again and again
    LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model, **wild)).save_pretrained(folder)
    return folder


def lora(base: str, where: Path, seed: int, r: int = 8) -> Run:
    """A finished LoRA run of `base`, its adapter drawn at random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    config = LoraConfig(r=r, init_lora_weights=False, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    run = Run(str(where))
    model.save_pretrained(run.at("adapter"))
    model.merge_and_unload().save_pretrained(run.at("model"))
    AutoTokenizer.from_pretrained(base).save_pretrained(run.at("model"))
    run.write_json("job.yaml", {"run": run.path, "stage": "sft", "model": {"base": base, "adapter": "lora"}})
    run.write_json("provenance.json", {"status": "finished", "model_sha256": where.name})
    return run


def answers(url: str, model: str) -> list[list[int]]:
    """Tokens of the greedy answers."""
    api = openai.OpenAI(base_url=url, api_key="-", max_retries=0, timeout=120)
    how = {"max_tokens": 12, "temperature": 0, "extra_body": {"return_token_ids": True}}
    said = [api.chat.completions.create(model=model, messages=p, **how) for p in PROMPTS]
    assert {s.model for s in said} == {model}
    return [s.choices[0].token_ids for s in said]


def expected(folder: str) -> list[list[int]]:
    """What transformers answers."""
    return [list(a[0].tokens) for a in TransformersGenerator(folder).generate(PROMPTS, Sampling(max_new_tokens=12))]


def test_lora_runs_are_found_when_they_are_asked_for(wide, tmp_path):
    root = tmp_path / "runs"
    early = lora(wide, root / "early", seed=1)
    outside = lora(wide, tmp_path / "outside", seed=2)
    args = {"run": wide, "name": "base", "adapters_from": str(root), "dtype": "float32"}
    with serving(tmp_path, args) as (url, _):
        api = openai.OpenAI(base_url=url, api_key="-", max_retries=0)
        assert [m.id for m in api.models.list().data] == ["base", "early"]
        assert answers(url, "early") == expected(early.at("model")) != expected(wide)
        assert answers(url, "base") == expected(wide)
        with pytest.raises(openai.NotFoundError, match=r"no model 'erly' here. Nearest: early. It has base, early"):
            answers(url, "erly")
        late = lora(wide, root / "late", seed=3)  # after the server started
        assert answers(url, "late") == expected(late.at("model")) != expected(early.at("model"))
        for path in ("../outside", outside.path, outside.at("adapter")):
            with pytest.raises(openai.NotFoundError):
                answers(url, path)
        route = {"lora_name": "x", "lora_path": outside.at("adapter"), "model": "base"}
        assert httpx.post(f"{url}/load_lora_adapter", json=route).status_code == 404
        high = lora(wide, root / "high", seed=6, r=128)
        with pytest.raises(openai.BadRequestError, match="high has rank 128, and there is room for 64"):
            answers(url, high.name)
        shutil.rmtree(high.path)
        broken = lora(wide, root / "broken", seed=4)
        Path(broken.at("adapter/adapter_model.safetensors")).write_bytes(b"nothing")
        with pytest.raises(openai.BadRequestError, match="'broken' was found but could not be loaded"):
            answers(url, "broken")
        assert [m.id for m in api.models.list().data] == ["base", "early", "late", "broken"]


def test_a_draft_changes_no_answer(wide, tmp_path):
    student = lora(wide, tmp_path / "student", seed=5)
    args = {"run": wide, "name": "base", "draft": student.path, "draft_tokens": 3, "dtype": "float32"}
    with serving(tmp_path, args) as (url, _):
        assert answers(url, "base") == expected(wide)
        metrics = httpx.get(url.replace("/v1", "/metrics")).text
        counted = {line.split("{")[0]: float(line.split()[-1]) for line in metrics.splitlines() if "spec_decode" in line and line[0] != "#"}  # fmt: skip
        assert (
            counted["vllm:spec_decode_num_draft_tokens_total"] == 3 * counted["vllm:spec_decode_num_drafts_total"] > 0
        )


def test_vectors(wide, tmp_path):
    from serve.embedding import Embedder

    texts = ["the red lamp", "a stone near the river"]
    with serving(tmp_path, {"run": wide, "name": "base", "task": "embed", "dtype": "float32"}) as (url, _):
        api = openai.OpenAI(base_url=url, api_key="-", max_retries=0)
        found = np.array([d.embedding for d in api.embeddings.create(model="base", input=texts).data])
    embedder = Embedder(wide, "float32", "cpu")
    assert np.abs(found - np.array(embedder.vectors(embedder.read(texts)))).max() < 1e-4
