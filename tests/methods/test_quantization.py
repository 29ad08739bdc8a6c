"""Quantisation: every method gives a smaller run that loads and answers nearly the same; unsupported requests are rejected."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from lib import data
from lib.errors import UsageError
from lib.evals import plan as evals
from lib.evals.job import EvalJob
from lib.generation.sampling import Sampling
from lib.generation.transformers_generator import TransformersGenerator
from lib.methods.compression import measure, report
from lib.methods.compression.measure import Needs, Rate
from lib.methods.quantization import job as quantize_job
from lib.models import quantized_formats
from lib.models.encode import Encoder
from lib.models.quantization import compressed_tensors, gptq, schemes
from lib.run import Run
from lib.runtime import hardware
from serve import serving
from tests import warm
from tests.conftest import PATIENCE, REPO, run_job, sign
from tests.stages import planned

NEAR = {"int8": 0.012, "int8_dynamic": 0.016, "w8a8": 0.016, "w4a16": 0.196, "bnb_int8": 0.016, "nf4": 0.17}
"""Upper bound of ‖logits − the original's‖ / ‖the original's‖ for each method on the tiny model: 1.5 times the measured values
(0.0078, 0.0105, 0.0104, 0.1306, 0.0104, 0.1155)."""


def logits(folder: str) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(5, 165).reshape(2, 80)
    with torch.inference_mode():
        return model(input_ids=ids).logits


def made(make_run, method: str, base: str, name: str | None = None) -> str:
    """Returns a finished run with quantised weights, made by the job's own function."""
    run = Run(make_run(name or f"{method}-run", "quantize"))
    run.remove("model")
    schemes.quantize(method, Run(base).at("model"), run.at("model"), None)
    run.write_json("provenance.json", run.provenance() | {"parent": base})
    sign(run)
    return run.path


@pytest.mark.parametrize("method", list(NEAR))
def test_every_method_loads_again_is_smaller_and_near(method, runs, make_run):
    before, after = Path(runs["sft"], "model"), Path(made(make_run, method, runs["sft"]), "model")
    assert {p.suffix for p in after.iterdir()} <= {".safetensors", ".json", ".jinja"}  # no pickle files
    sizes = [sum(p.stat().st_size for p in d.glob("*.safetensors")) for d in (before, after)]
    assert sizes[1] < 0.7 * sizes[0]
    a, b = logits(str(before)), logits(str(after))
    distance = ((a - b).norm() / a.norm()).item()
    print(f"{method}: {distance:.4f}")
    assert 0 < distance < NEAR[method]
    assert quantized_formats.found(str(after)) == schemes.METHODS[method].format
    text = TransformersGenerator(str(after), "float32").generate(["the red"], Sampling(max_new_tokens=2))[0][0].text
    assert isinstance(text, str)  # evaluation must not replace the layers of a quantised format


def test_rows_by_hand():
    """s = max|w| / 127: 1.27 / 127 = 0.01; a row of zeros also has a scale."""
    q, scale = compressed_tensors.rows(torch.tensor([[1.27, -0.5, 0.004, 0.006], [0.0, 0.0, 0.0, 0.0]]))
    assert q.tolist() == [[127, -50, 0, 1], [0, 0, 0, 0]] and q.dtype == torch.int8
    assert scale[:, 0].tolist() == pytest.approx([0.01, 1e-8])


def test_groups_by_hand():
    """s = max|w| / 7.5 for each 32: 7.5 / 7.5 = 1, and 15 / 7.5 = 2; the largest value is clipped to 7; an int32 stores eight."""
    weight = torch.zeros(1, 64)
    weight[0, :4], weight[0, 32:34] = torch.tensor([7.5, -6.0, 0.4, 0.6]), torch.tensor([-15.0, 5.0])
    q, scale = compressed_tensors.groups(weight)
    assert scale.tolist() == [[1.0, 2.0]]
    assert q[0, :5].tolist() == [7, -6, 0, 1, 0] and q[0, 32:35].tolist() == [-8, 2, 0]
    assert compressed_tensors.packed(q)[0, 0].item() & 0xFFFFFFFF == 0x8888982F
    with pytest.raises(ValueError, match="w4a16 needs a multiple of 32 inputs, and a layer has 40"):
        compressed_tensors.groups(torch.zeros(2, 40))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_w8a8_is_within_half_a_step_and_leaves_the_rest(dtype, tiny_model, tmp_path):
    compressed_tensors.quantize(Path(tiny_model), tmp_path / "q", dtype, compressed_tensors.SCHEMES["w8a8"])
    old, new = load_file(Path(tiny_model, "model.safetensors")), load_file(tmp_path / "q/model.safetensors")
    layers = {n for n in old if "proj" in n}
    assert len(layers) == 14 and new.keys() == old.keys() | {f"{n}_scale" for n in layers}
    for name, weight in old.items():
        weight = weight.to(getattr(torch, dtype))
        if name in layers:
            step = new[f"{name}_scale"].double()
            assert new[name].dtype == torch.int8 and step.shape == (weight.shape[0], 1)
            # 1e-6: in float32, w / s itself is rounded before it is rounded to an integer.
            assert ((weight.double() - step * new[name]).abs() <= step / 2 * (1 + 1e-6)).all()
        else:
            assert torch.equal(new[name], weight)


def test_w8a8_of_a_model_in_several_files(tiny_model, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "many", max_shard_size="200KB")
    for source, target in ((tiny_model, "one"), (tmp_path / "many", "several")):
        compressed_tensors.quantize(Path(source), tmp_path / target, None, compressed_tensors.SCHEMES["w8a8"])
    index = json.loads((tmp_path / "several/model.safetensors.index.json").read_text())
    files = {f: load_file(tmp_path / "several" / f) for f in set(index["weight_map"].values())}
    assert len(files) > 1
    for name, tensor in load_file(tmp_path / "one/model.safetensors").items():
        assert torch.equal(files[index["weight_map"][name]][name], tensor)


@pytest.mark.parametrize("method", ["w8a8", "w4a16"])
def test_a_model_in_integers_gives_the_same_scores_before_and_after_its_first_answer(method, tiny_model, tmp_path):
    schemes.quantize(method, tiny_model, str(tmp_path / "q"), None)
    texts = ["the lamp is", "a river"], [" near the river", " is near"]
    scores = TransformersGenerator(str(tmp_path / "q")).score(*texts)
    later = TransformersGenerator(str(tmp_path / "q"))
    later.generate(["the lamp is"], Sampling(max_new_tokens=2))
    assert scores == later.score(*texts)


@pytest.mark.vllm
@pytest.mark.parametrize(("method", "dtype"), [("w8a8", "auto"), ("w4a16", "bfloat16")])
@pytest.mark.slow
def test_vllm_answers_with_integer_weights(method, dtype, tiny_model, tmp_path):
    """With AMX, vLLM's kernel for w8a8 has no float32, so the dtype is the CPU's own. Heads of 32, as in test_vllm_generator.
    Log-probabilities are compared, since greedy answers may change at near-ties."""
    from transformers import AutoTokenizer

    from lib.generation.vllm_generator import VllmGenerator

    plain = tmp_path / "plain"
    torch.manual_seed(0)
    LlamaForCausalLM(AutoConfig.from_pretrained(tiny_model, head_dim=32)).save_pretrained(plain)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(plain)
    schemes.quantize(method, str(plain), str(tmp_path / "q"), None)
    dtype = hardware.dtype(dtype, "cpu")
    if method == "w4a16" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        with pytest.raises(ValueError, match=r"4-bit weights.*it lacks AVX-512"):
            VllmGenerator(str(tmp_path / "q"), dtype)
        return
    near = {"float32": 0.02, "bfloat16": 0.05}[dtype]
    # vLLM's 4-bit kernel for CPUs has no float32.
    scores = [
        VllmGenerator(str(p), dtype).score(["the lamp is"], [" near the river"])[0] for p in (plain, tmp_path / "q")
    ]
    assert scores[0].tokens == scores[1].tokens
    assert scores[0].logprob == pytest.approx(scores[1].logprob, rel=near) and scores[0].logprob != scores[1].logprob


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--metod", "nf4"], r"--metod is not a key.*--method"),
        (["--model.bass", "x"], r"--model.bass is not a key.*--model.base"),
        (["--method", "nf3"], r"method.*nf3"),
        (["--limit", "many"], "limit"),
        (["--config", "configs/quantise.yaml"], r"no file configs/quantise.yaml.*configs/quantize.yaml"),
    ],
)
def test_wrong_options(argv, says):
    with pytest.raises(UsageError, match=says):
        quantize_job.parse(argv)


def test_wrong_requests(runs, make_run, chats_file, tmp_path, monkeypatch):
    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: True)
    new = ["--run", str(tmp_path / "new"), "--method", "nf4"]
    nf4 = made(make_run, "nf4", runs["sft"], "nf4-again")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("x")
    for argv, says in [
        ([*new, "--model.base", "runs/nowhere"], "model.base: .*no run"),
        ([*new, "--model.base", nf4], f"model.base: .*holds bitsandbytes.*can't be quantised again.*{runs['sft']}"),
        ([*new, "--model.base", runs["reward"]], "model.base: .*reward model"),
        ([*new, "--model.base", runs["sft"], "--engine", "vllm"], "engine: vllm doesn't load nf4"),
        ([*new, "--model.base", runs["sft"], "--tasks", "demmo"], "demmo"),
        (
            [
                *new,
                "--model.base",
                runs["sft"],
                "--tasks",
                "[]",
                "--data.source",
                chats_file,
                "--data.heldout_fraction",
                "0",
            ],
            "data.source: .* has no held-out rows",
        ),
        (
            ["--model.base", runs["sft"], "--method", "nf4", "--run", runs["dpo"]],
            "run: .*already holds a run.*--resume",
        ),
        (["--model.base", runs["sft"], "--method", "nf4", "--run", str(tmp_path / "other")], "exists and is not a run"),
    ]:
        with pytest.raises(UsageError, match=says):
            quantize_job.plan(quantize_job.parse(argv))


def test_the_data_is_the_parents_unless_given(runs, pairs_file, chats_file, make_run):
    base = Run(make_run("own-data"))
    base.write_json("job.yaml", base.job() | {"data": {"source": chats_file, "heldout_fraction": 0.5}})
    job = quantize_job.parse(["--model.base", base.path]).job
    assert job.data.source == chats_file and job.data.heldout_fraction == 0.5
    assert quantize_job.parse(["--model.base", base.path, "--data.limit", "3"]).job.data.source == "demo"


def test_the_shipped_configuration_is_right(runs, tmp_path):
    argv = ["--config", str(REPO / "configs/quantize.yaml"), "--model.base", runs["sft"], "--run", str(tmp_path / "r")]
    assert quantize_job.plan(quantize_job.parse([*argv, "--method", "nf4"])).check.heldout_rows == 200
    known = schemes.METHODS
    assert quantize_job.KEYS.schema()["properties"]["method"]["enum"] == list(known)
    assert list(NEAR) == [m for m in known if not known[m].calibrated]  # GPTQ needs an environment with a package index


def test_what_else_meets_a_quantised_run(runs, make_run, tmp_path, monkeypatch):
    """Training rejects it; vLLM is refused for an nf4 run before any worker starts, and auto chooses transformers."""
    nf4 = made(make_run, "nf4", runs["sft"], "nf4-met")
    with pytest.raises(UsageError, match=f"model.base: .*bitsandbytes weights, which can't be trained.*{runs['sft']}"):
        planned("sft", ["--model.base", nf4, "--run", str(tmp_path / "r")])
    monkeypatch.setattr("lib.generation.vllm_generator.installed", lambda: True)
    with pytest.raises(
        ValueError, match=r"^runs.b: .*bitsandbytes weights, which vLLM doesn't load. Say engine: trans"
    ):
        evals.plan(EvalJob(runs={"a": runs["sft"], "b": nf4}, engine="vllm"))
    assert not evals.plan(EvalJob(runs={"a": runs["sft"], "b": nf4})).specs[0].vllm
    assert evals.plan(EvalJob(runs={"a": runs["sft"]})).specs[0].vllm
    with pytest.raises(ValueError, match=r"^run: .*bitsandbytes"):
        serving.plan(serving.parse({"run": nf4, "engine": "vllm"}))
    assert not serving.plan(serving.parse({"run": nf4})).vllm
    assert serving.plan(serving.parse({"run": runs["sft"], "kv_cache_dtype": "fp8"})).serving.kv_cache_dtype == "fp8"
    with pytest.raises(ValueError, match=r"^kv_cache_dtype: only vLLM"):
        serving.plan(serving.parse({"run": runs["sft"], "kv_cache_dtype": "fp8", "engine": "transformers"}))


def test_gptq_calibrates_on_training_rows(runs):
    argv = ["--model.base", runs["sft"], "--method", "gptq_w4a16", "--data.limit", "300"]
    argv += ["--run", f"{runs['sft']}-gptq"]
    job = quantize_job.plan(quantize_job.parse(argv)).job
    rows, encoder = gptq.calibration(job, Run(runs["sft"]).at("model")), Encoder(Run(runs["sft"]).at("model"))
    assert len(rows) == gptq.ROWS == len({tuple(r) for r in rows}) and max(map(len, rows)) <= gptq.TOKENS
    first = data.load(job.data, ("chat", "text")).train[0]["messages"]
    assert rows[0] == encoder.render(first, False)[: gptq.TOKENS] and first[-1]["content"] in encoder.text(rows[0])


def test_memory_and_speed_are_of_this_process(tiny_model):
    prompts = [[{"role": "user", "content": f"what is {i}?"}] for i in range(16)]
    found = measure.needs(tiny_model, False, "float32", prompts, 6)
    assert 0 < found.empty_bytes <= found.answering_bytes and found.alone.low <= found.alone.median <= found.alone.high
    assert found.together.tokens == 16 * 6 * measure.REPEATS and found.together.median > found.alone.median


def test_the_report_by_hand():
    rate = lambda x: Rate(x, x - 1, x + 1, 60)  # noqa: E731
    needs = {
        "before": Needs(1.0, 100 << 20, 150 << 20, 300 << 20, rate(10), rate(100)),
        "nf4": Needs(1.0, 100 << 20, 150 << 20, 200 << 20, rate(20), rate(150)),
    }
    sizes = {"before": 200_000_000, "nf4": 50_000_000}
    got = report.rows(report.Compressed("runs/q", "quantize", "runs/sft", ("before", "nf4"), "", "transformers", {}, sizes, needs, None, ""))  # fmt: skip
    assert got[0] == ("weights on disk", "200 MB", "50 MB", "0.25×")
    assert got[1] == ("memory, peak while answering", "300 MiB", "200 MiB", "-100 MiB")
    assert got[2][1:] == ("200 MiB", "100 MiB", "-100 MiB")
    assert got[4] == ("tokens/s, 1 prompt at a time", "10 [9–11]", "20 [19–21]", "2.00×")


@pytest.mark.slow
@pytest.mark.soak
def test_a_job_that_is_killed_goes_on(runs, local_ray, tmp_path):
    """kill -9 while the weights are quantised leaves an unfinished run; --resume completes it with its report,
    and the run can be a teacher and a parent like any other."""
    run = Run(str(tmp_path / "q"))
    words = ["--model.base", runs["sft"], "--method", "nf4", "--engine", "transformers", "--run", run.path]
    words += ["--tasks", "demo", "perplexity", "--limit", "8", "--max_new_tokens", "6"]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen([warm.python(), "jobs/quantize.py", *words], cwd=REPO, env=env, start_new_session=True)
    give_up = time.time() + PATIENCE
    while not run.provenance() and time.time() < give_up:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert run.provenance()["status"] == "running" and not run.finished()
    assert "already holds a run, which stopped (running)" in run_job("quantize", *words).stderr
    done = run_job("quantize", "--resume", run.path, env=local_ray)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(run.read_text("reports/quantize.json"))
    assert found["bytes"]["nf4"] < found["bytes"]["before"] and found["needs"]["nf4"]["answering_bytes"] > 0
    assert {(c["task"], c["a"], c["b"]) for c in found["comparisons"]} >= {("perplexity", "before", "nf4")}
    assert all(m["low"] is not None for m in found["metrics"] if m["metric"] in ("exact", "perplexity"))
    p = run.provenance()
    assert p["status"] == "finished" and p["parent"] == runs["sft"] and p["template_sha256"] and p["model_sha256"]
    assert "weights on disk" in run.read_text("reports/quantize.md") and "weights on disk" in done.stdout
    assert "already finished" in run_job("quantize", "--resume", run.path).stdout
    run.remove("reports")  # as after a kill while measuring: the model stays, the report is repeated
    again = run_job("quantize", "--resume", run.path, "--dry-run")
    assert "only the report is missing" in again.stdout


@pytest.mark.slow
def test_a_quantised_run_teaches(runs, make_run, local_ray, tmp_path):
    teacher = made(make_run, "nf4", runs["sft"], "nf4-teacher")
    words = ["--model.base", runs["sft"], "--train.teacher", teacher, "--run", str(tmp_path / "student")]
    words += ["--data.limit", "16", "--data.heldout_limit", "4", "--train.max_steps", "2", "--train.logging_steps", "1"]
    done = run_job("distill", *words, "--scale.global_batch", "8", "--train.max_length", "512", env=local_ray)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Run(str(tmp_path / "student")).finished()
