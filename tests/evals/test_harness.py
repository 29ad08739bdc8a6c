"""lm-eval's tasks through our engine: the same scores as lm-eval's own hf backend, on local data."""

import json
from dataclasses import replace

import pytest

from lib.evals import tasks
from lib.evals.evaluate import evaluate
from lib.evals.gate import Rule
from lib.evals.job import EvalJob, plan
from tests.conftest import WORDS

CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
}
ANSWERS = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{text}}",
    "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
LAST_WORD = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": " {{text}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc"},
    ],
}
WHOLE = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": m} for m in ("word_perplexity", "bits_per_byte")],
}
KINDS = {"toy_choice": CHOICES, "toy_answer": ANSWERS, "toy_word": LAST_WORD, "toy_whole": WHOLE}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: YAML file} of four tasks over one file of 12 rows."""
    import yaml

    folder = tmp_path_factory.mktemp("tasks")
    things = WORDS[:12]
    rows = [
        {
            "question": f"the {a} is near the",
            "choices": [f" {a}", f" {things[i - 1]}", " it"],
            "answer": i % 3,
            "text": a,
        }
        for i, a in enumerate(things)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
    }
    for name, kind in KINDS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **kind, "metadata": {"version": 1}}))
    return {name: str(folder / f"{name}.yaml") for name in KINDS}


@pytest.fixture
def job(files, tiny_model, tmp_path):
    names = [f"lm_eval:{f}" for f in files.values()]
    return EvalJob(run=str(tmp_path / "e"), runs={"tiny": tiny_model}, tasks=names, dtype="float32", limit=None)


def test_scores_are_lm_evals_own(job, files, tiny_model, local_ray):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(next(iter(files.values()))).rsplit("/", 1)[0], include_defaults=False)
    theirs = simple_evaluate(
        model="hf", model_args=f"pretrained={tiny_model},dtype=float32", tasks=list(KINDS), task_manager=manager,
        batch_size=4, device="cpu", bootstrap_iters=0, verbosity="ERROR",
    )["results"]  # fmt: skip
    ours = {(m.task, m.metric): m for m in evaluate(job, say=lambda line: None).metrics}
    assert len(ours) == 7
    for (task, metric), m in ours.items():
        assert m.value == pytest.approx(theirs[task][f"{metric},none"], rel=1e-4), (task, metric)
        assert m.n == 12
    assert ours["toy_whole", "bits_per_byte"].better == "lower" and ours["toy_choice", "acc"].better == "higher"


def test_requests_that_are_wrong(job, tmp_path):
    nameless = tmp_path / "nameless.yaml"
    nameless.write_text("dataset_path: json\n")
    job.tasks = ["lm_eval:arc_esay", "lm_eval:nowhere.yaml", f"lm_eval:{nameless}"]
    with pytest.raises(ValueError) as refused:
        plan(job)
    said = str(refused.value)
    assert "lm-eval has no arc_esay" in said and "arc_easy" in said
    assert "no file" in said and "nowhere.yaml" in said and "no key task" in said


def test_a_gate_on_a_task_file_and_one_on_a_metric_that_a_task_has_not(job, files):
    """A rule may name lm-eval's task by its own name, and a metric that ours doesn't have is refused before the work."""
    plan(replace(job, gate=[Rule("toy_choice.acc", "tiny", at_least=0.1)]))
    with pytest.raises(ValueError, match=r"gate\[0\].metric: toy_chioce.acc: .*Nearest: toy_choice"):
        plan(replace(job, gate=[Rule("toy_chioce.acc", "tiny", at_least=0.1)]))
    with pytest.raises(ValueError, match=r"gate\[0\].metric: demo has no exat. Nearest: exact"):
        plan(replace(job, tasks=["demo"], gate=[Rule("demo.exat", "tiny", at_least=0.1)]))


def test_the_hint_names_the_family():
    with pytest.raises(ValueError, match="lm_eval:NAME"):
        tasks.get("arc_easy")
