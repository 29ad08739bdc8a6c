"""jobs/merge.py: the arithmetic of each method, and a merge of real folders."""

import hashlib
import shutil

import pytest
import torch

from lib.errors import UsageError
from lib.evals.measures.contamination import overlaps
from lib.evals.task import Example
from lib.methods.model_merging import job, work
from lib.methods.model_merging.combine import combined
from lib.run import Run
from tests.conftest import run_job, sign

START = torch.tensor([1.0, 1.0, 1.0, 1.0])
CHANGES = [torch.tensor([4.0, -1.0, 2.0, 0.0]), torch.tensor([-2.0, -1.0, 3.0, 0.5])]


def change(method: str, weights: list[float], density: float = 0.5, seed: int = 0) -> list[float]:
    others = [START + c for c in CHANGES]
    return (combined("layer.weight", START, others, weights, method, density, seed)[0] - START).tolist()


@pytest.mark.parametrize(
    ("method", "weights", "expected"),
    [
        ("linear", [0.5, 0.5], [1, -1, 2.5, 0.25]),
        ("linear", [1, -1], [6, 0, -1, -0.5]),
        # Kept: 4 and 2 of the first; -2 and 3 of the second. The sum's sign at the first entry is that of 4.
        ("ties", [1, 1], [4, 0, 2.5, 0]),
        ("ties", [1, 0.5], [4, 0, 1.75, 0]),
    ],
)
def test_literal(method, weights, expected):
    assert change(method, weights) == expected


def test_dare_keeps_a_share_and_makes_up_for_the_rest():
    drawn = {tuple(change("dare_linear", [1, 0], seed=seed)) for seed in range(40)}
    assert drawn == {(a, b, c, 0.0) for a in (0.0, 8.0) for b in (0.0, -2.0) for c in (0.0, 4.0)}
    assert change("dare_ties", [1, 1], seed=3) == change("dare_ties", [1, 1], seed=3)
    global_draws = torch.get_rng_state()
    change("dare_ties", [1, 1])
    assert torch.equal(torch.get_rng_state(), global_draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_model_with_weight_1_comes_out_as_it_was(dtype):
    start, other = (torch.randn(500, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (0, 1))
    theta, dots = combined("w", start, [other], [1.0], "linear", 1.0, 0)
    assert torch.equal(theta.to(dtype), other)
    assert float(dots) == pytest.approx(float((other.double() - start.double()).square().sum()))


def test_what_rounding_changed_is_no_change():
    start = torch.randn(500, generator=torch.Generator().manual_seed(0))
    other = start.bfloat16()
    other[7] += 1
    theta, dots = combined("w", start, [other, other], [0.5, 0.5], "ties", 0.2, 0)
    assert int((theta != start.bfloat16().double()).sum()) == 1 and float(dots[0, 0]) == pytest.approx(1, rel=0.02)


@pytest.mark.slow
def test_a_merge_of_two_runs(runs, tmp_path, local_ray):
    from transformers import AutoModelForCausalLM

    words = [
        "--runs.a",
        runs["sft"],
        "--runs.b",
        runs["dpo"],
        "--weights.a",
        "0.75",
        "--weights.b",
        "0.5",
        "--run",
        str(tmp_path / "m"),
    ]
    done = run_job("merge", *words, env=local_ray)
    assert done.returncode == 0, done.stderr
    assert "cosine of their changes " in done.stdout and "--runs.merged" in done.stdout
    start, a, b, made = (
        dict(AutoModelForCausalLM.from_pretrained(where).named_parameters())
        for where in (runs["base"], f"{runs['sft']}/model", f"{runs['dpo']}/model", tmp_path / "m/model")
    )
    for name, value in made.items():
        exact = start[name].double() + 0.75 * (a[name].double() - start[name]) + 0.5 * (b[name].double() - start[name])
        assert torch.equal(value, exact.float()), name
    provenance = Run(str(tmp_path / "m")).provenance()
    assert (
        provenance["status"] == "finished" and provenance["parent"] == runs["base"] and provenance["dtype"] == "float32"
    )
    assert 0 < provenance["changed"]["a"] < provenance["changed"]["b"]
    assert "already finished" in run_job("merge", *words).stdout
    assert "another merge (weights)" in run_job("merge", *words, "--weights.a", "1").stderr
    question = [Example("x", [{"role": "user", "content": " ".join("abcdefghijklmnop")}], "")]
    searched = overlaps({"merged": str(tmp_path / "m")}, {"task": question})
    assert [(o.run, o.found, o.n) for o in searched] == [("merged", 0, 1)]  # in the data of both runs


def test_models_of_other_shapes_or_tokens_are_refused(runs, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name, spoil in (
        ("rows", lambda m, t: m.resize_token_embeddings(m.config.vocab_size + 3)),
        ("tokens", lambda m, t: t.add_tokens("<new>")),
    ):
        where = tmp_path / name
        model, tok = AutoModelForCausalLM.from_pretrained(runs["base"]), AutoTokenizer.from_pretrained(runs["base"])
        spoil(model, tok)
        model.save_pretrained(where)
        tok.save_pretrained(where)
        planned = job.plan(
            job.parse(
                [
                    "--runs.a",
                    runs["sft"],
                    "--runs.b",
                    str(where),
                    "--model.base",
                    runs["base"],
                    "--run",
                    str(tmp_path / "m"),
                ]
            )
        )
        Run(str(tmp_path / "m")).write_json("job.yaml", job.stored(planned.job))
        with pytest.raises(
            Exception, match=r"^runs.b: (\d+ of its tensors are not like|its tokens are not those of a)"
        ):
            work.make(planned.job)
        shutil.rmtree(tmp_path / "m")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "runs: there are none"),
        (["--runs.a", "sft", "--weights.b", "1"], "weights.b: there is no run of that name"),
        (["--runs.a", "sft", "--runs.b", "dpo", "--weights.b", "1"], "weights: a has none"),
        (["--runs.a", "sft", "--weights.a", "nan"], "weights: must be a number"),
        (["--runs.a", "sft", "--density", "0.5"], "density: linear keeps all changes"),
        (["--runs.a", "sft", "--method", "ties", "--density", "1.5"], r"density: must be in \(0, 1\], is 1.5"),
        (["--runs.a", "reward"], "runs.a: .* is a reward model"),
        (["--runs.a", "sft", "--runs.b", "later"], "model.base: a was trained from .*; b was trained from .*. Name the model"),
        (["--runs.a", "sft", "--runs.b", "template"], "runs.b: was trained with another chat template than a"),
        (["--runs.a", "base"], "model.base: a was trained from an unknown model"),
        (["--runs.a", "sft", "--run", "sft"], "run: .* exists and is no merge"),
    ],
)  # fmt: skip
def test_refused(words, said, runs, tmp_path):
    there = dict(runs)
    template = "{{ messages }}"
    for name, changed in (
        ("later", {"parent": runs["sft"]}),
        ("template", {"template_sha256": hashlib.sha256(template.encode()).hexdigest()}),
    ):
        made = Run(str(shutil.copytree(runs["sft"], tmp_path / name)))
        if name == "template":
            made.write_text("model/chat_template.jinja", template)
        made.write_json("provenance.json", made.provenance() | changed)
        sign(made)
        there[name] = made.path
    words = [there.get(word, word) for word in words]
    with pytest.raises(UsageError, match=said):
        job.plan(job.parse([*words, *([] if "--run" in words else ["--run", str(tmp_path / "m")])]))
