"""lm-eval's tasks in our engine: the same scores as lm-eval's own hf backend, on local data."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lib.evals import registry
from lib.evals.evaluate import evaluate
from lib.evals.job import EvalJob
from lib.evals.measures import lm_eval_harness
from lib.evals.plan import plan
from lib.evals.report.gate import Rule
from lib.evals.tasks.harness_tasks import LmEval
from lib.run import Run
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
LONG = WHOLE | {"doc_to_target": "{{long}}", "metric_list": [{"metric": "byte_perplexity"}]}
KINDS = {"toy_choice": CHOICES, "toy_answer": ANSWERS, "toy_word": LAST_WORD, "toy_whole": WHOLE, "toy_long": LONG}


@pytest.fixture(autouse=True)
def no_list_of_packages(monkeypatch):
    """lm-eval adds a description of the environment to its results, which takes seconds of `pip list` and isn't used here."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", str)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: YAML file} of five tasks over one file of 12 rows."""
    import yaml

    folder = tmp_path_factory.mktemp("tasks")
    things = WORDS[:12]
    rows = [
        {
            "question": f"the {a} is near the",
            "choices": [f" {a}", f" {things[i - 1]}", " it"],
            "answer": i % 3,
            "text": a,
            "long": f"the {a} is near the {things[i - 1]}. " * 80,  # longer than the tiny model's window of 512
        }
        for i, a in enumerate(things)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "fewshot_split": "test",
    }
    for name, kind in KINDS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **kind, "metadata": {"version": 1}}))
    return {name: str(folder / f"{name}.yaml") for name in KINDS}


@pytest.fixture
def job(files, tiny_model, tmp_path):
    names = [f"lm_eval:{f}" for f in files.values()]
    return EvalJob(run=str(tmp_path / "e"), runs={"tiny": tiny_model}, tasks=names, dtype="float32", limit=None)


@pytest.fixture(scope="module")
def starting(tiny_model, tmp_path_factory) -> str:
    """The tiny model with a tokenizer that begins every text with its start token, like Gemma's and Llama's."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("starting") / "model")
    tok = AutoTokenizer.from_pretrained(folder)
    start = (tok.bos_token, tok.bos_token_id)
    tok.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start])
    tok.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("red")["input_ids"][0] == start[1]
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        LmEval(),
        LmEval(num_fewshot=2),
        LmEval(num_fewshot=2, apply_chat_template=True, system_instruction="be brief"),
    ],
    ids=["as the task says", "few-shot", "chat"],
)
def test_each_documents_scores_are_lm_evals_own(job, files, tiny_model, starting, local_ray, settings):
    """For a model whose tokenizer begins texts with a start token and for one whose doesn't."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(next(iter(files.values()))).rsplit("/", 1)[0], include_defaults=False)
    job = replace(job, runs={"plain": tiny_model, "starting": starting}, lm_eval=settings)
    report = evaluate(plan(job), say=lambda line: None)
    ours = {(m.task, m.metric, m.run): m for m in report.metrics if not m.versus}
    rows = [json.loads(line) for line in Run(job.run).read_text("reports/examples.jsonl").splitlines()]
    documents = {(r["task"], r["id"], r["run"]): r for r in rows}
    asked = {k: v for k, v in vars(settings).items() if k != "allow_code"}
    for run, folder in job.runs.items():
        theirs = simple_evaluate(
            model="hf", model_args=f"pretrained={folder},dtype=float32", tasks=list(KINDS), task_manager=manager,
            batch_size=4, device="cpu", bootstrap_iters=0, verbosity="ERROR", log_samples=True, **asked,
        )  # fmt: skip
        for task, samples in theirs["samples"].items():
            for s in samples:
                mine = documents[task, f"{task}-{s['doc_id']}", run]
                assert mine["asked"] == s["arguments"][0][0]
                assert set(mine["scores"]) == set(s["metrics"])
                if task in ("toy_choice", "toy_word"):
                    assert [c["text"] for c in mine["choices"]] == [a[1] for a in s["arguments"]]
                    found = [c["logprob"] for c in mine["choices"]]
                    assert found == pytest.approx([r[0][0] for r in s["resps"]], abs=1e-3)
                elif task == "toy_answer":
                    assert mine["answer"] == s["resps"][0][0]
                else:
                    assert mine["logprob"] == pytest.approx(s["resps"][0][0], rel=1e-5)
            for metric in samples[0]["metrics"]:
                m = ours[task, metric, run]
                assert m.value == pytest.approx(theirs["results"][task][f"{metric},none"], rel=1e-4), (task, metric)
                assert m.n == 12
    assert len(ours) == 2 * (2 + 1 + 2 + 2 + 1) + 2 and ("toy_answer", "cut_off", "plain") in ours
    assert ours["toy_whole", "bits_per_byte", "plain"].better == "lower"
    chances = {k[:2]: m.chance for k, m in ours.items()}
    assert chances.pop(("toy_choice", "acc")) == chances.pop(("toy_choice", "acc_norm")) == pytest.approx(1 / 3)
    assert set(chances.values()) == {None}  # no one can guess a word
    worked = [t.what for t in report.timings if t.what.startswith("evaluate: plain")]
    assert len(set(worked)) == len(worked) == 5 and "evaluate: plain on toy_choice, 36 log-probabilities" in worked
    assert ours["toy_choice", "acc_norm", "plain"].headline and not ours["toy_choice", "acc", "plain"].headline


@pytest.mark.slow
def test_requests_that_are_wrong(job, tmp_path):
    nameless = tmp_path / "nameless.yaml"
    nameless.write_text("dataset_path: json\n")
    job.tasks = ["lm_eval:arc_esay", "lm_eval:nowhere.yaml", f"lm_eval:{nameless}"]
    with pytest.raises(ValueError) as refused:
        plan(job)
    said = str(refused.value)
    assert "lm-eval has no arc_esay" in said and "arc_easy" in said
    assert "no file" in said and "nowhere.yaml" in said and "no key task" in said


def test_gates_on_a_task_file_and_on_an_unknown_metric(job, files):
    """A rule may use the name of lm-eval's task; a metric that our task doesn't have is rejected before the work."""
    plan(replace(job, gate=[Rule("toy_choice.acc", "tiny", at_least=0.1)]))
    with pytest.raises(ValueError, match=r"gate\[0\].metric: toy_chioce.acc: .*Nearest: toy_choice"):
        plan(replace(job, gate=[Rule("toy_chioce.acc", "tiny", at_least=0.1)]))
    with pytest.raises(ValueError, match=r"gate\[0\].metric: demo has no exat. Nearest: exact"):
        plan(replace(job, tasks=["demo"], gate=[Rule("demo.exat", "tiny", at_least=0.1)]))


def test_the_hint_names_the_family():
    with pytest.raises(ValueError, match="lm_eval:NAME"):
        registry.get("arc_easy")


MISTAKES = {
    "task: [a": "is not YAML: .*line 1",
    "- a": "must hold keys and values",
    "task: t\ninclude: gone.yaml": "there is no file .*gone.yaml",
    "task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}": "data_files: there is no file .*gone.jsonl",
    "task: t\ndoc_to_text: !function utils.ask": r"utils.ask \(.*t.yaml:2\).*lm_eval.allow_code: true",
    "task: t\nclass: !function utils.Mine": r"utils.Mine.*lm_eval.allow_code: true",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_task_file_that_cannot_be_used(job, tmp_path, text):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ValueError, match=MISTAKES[text]):
        plan(replace(job, tasks=[f"lm_eval:{tmp_path / 't.yaml'}"]))


@pytest.mark.slow
def test_functions_of_a_users_task_file_run_where_that_is_allowed(job, files, local_ray, tmp_path):
    import yaml

    config = yaml.safe_load(Path(files["toy_answer"]).read_text())
    (tmp_path / "utils.py").write_text("def ask(doc):\n    return 'about ' + doc['question']\n")
    text = yaml.safe_dump({k: v for k, v in config.items() if k != "doc_to_text"} | {"task": "coded"})
    (tmp_path / "coded.yaml").write_text(text + "doc_to_text: !function utils.ask\n")
    allowed = replace(job, tasks=[f"lm_eval:{tmp_path / 'coded.yaml'}"], lm_eval=LmEval(allow_code=True), limit=2)
    evaluate(plan(allowed), say=lambda line: None)
    rows = [json.loads(line) for line in Run(job.run).read_text("reports/examples.jsonl").splitlines()]
    assert [r["asked"][:10] for r in rows] == ["about the "] * 2


def test_chance_is_one_in_as_many_choices_as_each_document_has():
    """Documents with 2 and 4 choices, and one of 4 with two right answers; once per filter; a probability has no chance level."""
    from types import SimpleNamespace

    task = SimpleNamespace(OUTPUT_TYPE="multiple_choice", doc_to_choice=lambda doc: doc)
    samples = [{"doc_id": i, "doc": ["x"] * n, "target": t} for i, (n, t) in enumerate([(2, 0), (4, 3), (4, [0, 2])])]
    assert lm_eval_harness._chance(task, "acc_norm", samples * 2) == pytest.approx((1 / 2 + 1 / 4 + 2 / 4) / 3)
    assert lm_eval_harness._chance(task, "brier_score", samples) is None
    task.OUTPUT_TYPE = "generate_until"
    assert lm_eval_harness._chance(task, "exact_match", samples) is None
