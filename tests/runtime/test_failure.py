"""The messages that a user gets, and the failures that Ray retries."""

import errno

import pytest
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError

from lib.runtime.failure import StopTraining, explain, worth_retrying


@pytest.mark.parametrize(
    ("error", "retry", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), False, ["disk is full", "save_total_limit"]),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 267392 vs 267280"),
            False,
            ["disk is full", "unexpected pos"],
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            False,
            ["GPU ran out of memory", "scale.micro_batch"],
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            ),
            True,
            ["machine ran out of memory"],
        ),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True, ["worker was lost"]),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by remote peer"), True, ["worker was lost"]),
        (ActorDiedError(), True, ["worker was lost", "--resume"]),
        (
            ConnectionError('Could not connect to the endpoint URL: "http://127.0.0.1:9/"'),
            True,
            ["store", "AWS_ENDPOINT_URL"],
        ),
        (
            StopTraining("loss is nan at step 3. Lower train.learning_rate"),
            False,
            ["loss is nan at step 3", "train.learning_rate"],
        ),
        (KeyError("surprise"), False, ["surprise"]),
    ],
)
def test_cause_evidence_remedy(error, retry, says):
    grouped = WorkerGroupError("1 worker failed", {1: error})
    text = explain(grouped)
    for word in says:
        assert word in text
    assert "\n" not in text
    assert worth_retrying(grouped) is retry


def test_what_fails_after_the_training_says_that_the_model_is_there(runs, capsys):
    from lib.run import Run
    from lib.stage.driver import ending

    def ended(error):
        with pytest.raises(SystemExit) as e, ending(Run(runs["sft"]), "Continue with: …", trains=True):
            raise error
        said = capsys.readouterr().err
        assert "Continue with: …" in said
        return e.value.code, said

    code, said = ended(ActorDiedError())
    assert code == 1 and "The model is finished, but: A worker was lost" in said
    code, said = ended(KeyboardInterrupt())
    assert code == 130 and "Interrupted; the model is finished." in said


def test_a_quantisation_that_never_began_leaves_no_run(tmp_path, capsys):
    """Otherwise its folder would be rejected because it isn't a run."""
    from lib.run import Run
    from lib.stage.driver import ending

    with pytest.raises(SystemExit, match="1"), ending(Run(str(tmp_path / "run")), "Continue with: …"):
        raise ConnectionError("no cluster")
    assert "no cluster" in capsys.readouterr().err and not (tmp_path / "run").exists()
