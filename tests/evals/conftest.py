"""A judge's API with replies chosen by the test."""

import pytest

from lib.evals.judging import llm_judge
from lib.evals.judging.llm_judge import Panel
from lib.evals.judging.openai_client import Endpoint
from lib.run import Run
from tests.evals.api import Api


@pytest.fixture
def api():
    """api(say) → Api; closed at the end of the test."""
    made = []

    def make(say) -> Api:
        made.append(Api(say))
        return made[-1]

    yield make
    for a in made:
        a.server.shutdown()
        a.server.server_close()


@pytest.fixture
def panel(tmp_path):
    """panel(Judge) → Panel that stores its replies in a run of the test."""
    return lambda j: Panel(j, Endpoint(j, Run(str(tmp_path / "run"))), llm_judge.prompts(j.prompts))
