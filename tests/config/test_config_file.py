"""A job's YAML is read as people mean it, or rejected with the file's name."""

import typing

import pytest

from cluster.estimate.workload import stage
from lib import errors
from lib.config import config_file
from lib.evals import cli as eval_cli
from lib.stage import training_cli

SFT = "trl.trainer.sft_config:SFTConfig"


@pytest.fixture
def read(tmp_path):
    """read(text or bytes, *options) → the sft Job of a file with that content."""

    def job(data: str | bytes, *options: str):
        path = tmp_path / "c.yaml"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return training_cli.parse(stage("sft"), ["--config", str(path), *options]).job

    return job


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("train: {eval_strategy: no}", "eval_strategy", "no"),
        ("train: {packing: no}", "packing", False),
        ("train: {packing: yes}", "packing", True),
        ("train: {max_steps: 010}", "max_steps", 10),
        ("train: {max_steps: 1_000}", "max_steps", 1000),
        ("train: {max_steps: 0x10}", "max_steps", 16),
        ("train: {learning_rate: 1e-4}", "learning_rate", 1e-4),
        ("train: {learning_rate: 2}", "learning_rate", 2.0),
        ("train: {run_name: 007}", "run_name", "007"),
        ("train: {run_name: 2026-11-28}", "run_name", "2026-11-28"),
        ("train: {run_name: 12:30}", "run_name", "12:30"),
        ("train: {data_seed: null}", "data_seed", None),
        ("train: {lr_scheduler_kwargs: {num_cycles: 010, off: off}}", "lr_scheduler_kwargs", {"num_cycles": 10, "off": "off"}),
        ("train: {optim_target_modules: [1, no]}", "optim_target_modules", ["1", "no"]),
    ],
)  # fmt: skip
def test_values_are_what_people_mean(text, key, meant, read):
    got = read(text).train[key]
    assert got == meant and type(got) is type(meant)


def test_text_stays_as_it_is_written(read):
    job = read("run: 010\nmodel: {revision: 1e5}\ndata: {name: no, columns: {no: question, question: 1}}\n")
    assert (job.run, job.model.revision, job.data.name) == ("010", "1e5", "no")
    assert job.data.columns == {"no": "question", "question": "1"}


def test_a_revision_like_a_number_survives_a_resume(tmp_path):
    """job.yaml stores it as 1e5 without quotes."""
    import yaml

    from lib.run import Run

    job = training_cli.parse(stage("sft"), ["--model.revision", "1e5", "--run", str(tmp_path / "run")]).job
    Run(job.run).write_text("job.yaml", yaml.safe_dump(job.to_dict()))
    assert training_cli.parse(stage("sft"), ["--resume", job.run]).job == job


def test_empty_sections_hold_nothing(read):
    assert read("train:\nmodel:\n  peft:\nscale: null\n").train == {}


def test_merge_keys_are_no_duplicates(read):
    job = read("train: &t {seed: 1, max_steps: 5}\nmodel: {}\n")
    assert job.train["seed"] == 1
    tree = config_file.load(b"a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert tree["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_files_with_a_byte_order_mark(encoding, read):
    assert read("run: größe\n".encode(encoding)).run == "größe"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("run: null", ["run: must not be null"]),
        ("data: {source: ~}", ["data.source: must not be null"]),
        ("eval: {tasks: null}", ["eval.tasks: must not be null"]),
        ("train: {learning_rate: null}", ["train.learning_rate: must not be null"]),
        ("train: {max_steps: 1:30}", ["train.max_steps: 1:30 is not a number"]),
        ("train: {max_steps: '1:30'}", ["train.max_steps: 1:30 is not a number"]),
        ("train: {seed: 1, max_steps: 2, seed: 3}", ["seed is set twice", "line 1"]),
        ("run: a\nmodel: {}\nrun: b", ["run is set twice: line 1 and line 3"]),
        ("null: 3", ["null is not a key"]),
        ("[a, b]: 3", ["a key must be a word"]),
        ("run: !!binary aGk=", ["not valid YAML", "binary"]),
        ("run: é".encode("latin-1"), ["UTF-8"]),
        ("run: x".encode("utf-16-le"), ["UTF-8"]),
        (b"\x89PNG\r\n\x1a\n", ["UTF-8"]),
    ],
)
def test_what_nobody_means_is_refused_with_the_file(data, says, read, tmp_path):
    with pytest.raises(errors.UsageError) as e:
        read(data)
    for word in [*says, str(tmp_path / "c.yaml")]:
        assert word in str(e.value), str(e.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--train.max_steps", "1:30"], "--train.max_steps: 1:30 is not a number"),
        (["--train.max_steps=1:30"], "--train.max_steps: 1:30 is not a number"),
        (["--eval.limit", "ten"], "eval.limit: must be a whole number or null, is ten."),
        (["--train.max_steps", "1e3"], "train.max_steps: must be a whole number, is 1000.0."),
        (["--train.learning_rate", "nan"], "train.learning_rate: must be a number (float), is nan."),
        (["--eval.tasks", "demo"], "eval.tasks: must be a list: [a, b], is demo."),
        (
            ["--model.quantization", "4bits"],
            "model.quantization: must be one of 'none', '8bit', '4bit', is 4bits. Nearest: 4bit, 8bit.",
        ),
        (["--config", "again.yaml"], "--config: give one file"),
    ],
)
def test_messages_about_types_are_one_plain_line(options, says, read):
    with pytest.raises(errors.UsageError) as e:
        read("run: x", *options)
    assert says in str(e.value)


def test_evaluation_reads_by_the_same_rules(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("run: 010\nruns: {base: 12:30, sft: 1}\ntasks: [demo]\nlimit: 020\n")
    job = eval_cli.parse(["--config", str(path)]).job
    assert (job.run, job.runs, job.limit) == ("010", {"base": "12:30", "sft": "1"}, 20)
    with pytest.raises(errors.UsageError, match=r"limit: must be a whole number or null, is ten\."):
        eval_cli.parse(["--limit", "ten"])
    with pytest.raises(errors.UsageError, match="--limit: 1:30 is not a number"):
        eval_cli.parse(["--limit", "1:30"])
    path.write_text("gate: null\n")
    with pytest.raises(errors.UsageError, match="gate: must not be null"):
        eval_cli.parse(["--config", str(path)])


def test_every_dataclass_of_an_evaluation_is_a_section_of_keys(tmp_path):
    job = eval_cli.parse(["--lm_eval.num_fewshot", "5", "--judge.at_once", "2"]).job
    assert (job.lm_eval.num_fewshot, job.judge.at_once) == (5, 2)
    (tmp_path / "e.yaml").write_text("lm_eval: {num_fewshot: 3}\n")
    assert eval_cli.parse(["--config", str(tmp_path / "e.yaml")]).job.lm_eval.num_fewshot == 3
    (tmp_path / "e.yaml").write_text("lm_eval: 3\n")
    with pytest.raises(errors.UsageError, match="lm_eval is a section of keys, but holds 3"):
        eval_cli.parse(["--config", str(tmp_path / "e.yaml")])
    with pytest.raises(errors.UsageError, match=r"--lm_eval.num_fewshto is not a key.*--lm_eval.num_fewshot"):
        eval_cli.parse(["--lm_eval.num_fewshto", "5"])


def test_what_types_take():
    assert config_file.takes(int | None, type(None)) and not config_file.takes(int, type(None))
    assert config_file.takes(typing.Literal["no", "yes"], str) and config_file.takes(typing.Any, int)
    assert not config_file.takes(list[str], str)
