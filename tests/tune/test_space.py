"""The space of a search: what it draws, its corners and its grid."""

import optuna
import pytest

from tune import space
from tune.journal import Trial
from tune.proposals import propose, told
from tune.settings import Settings

TREE = {
    "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "model.adapter": {"choice": ["none", "lora"]},
    "model.peft.r": {"choice": [2, 8], "when": {"model.adapter": "lora"}},
    "model.peft.target_modules": {"choice": [["q_proj"], ["q_proj", "v_proj"]], "when": {"model.adapter": ["lora"]}},
    "train.warmup_steps": {"randint": [0, 3]},
    "train.weight_decay": {"quniform": [0, 0.3, 0.1]},
    "train.max_grad_norm": {"uniform": [0.5, 2]},
}
SPACE, _ = space.read(TREE)


def tried(number: int, settings: dict, value: float, status: str) -> Trial:
    return Trial(number, settings, status=status, reports=[{"step": 10, "eval_loss": value, "seconds": 1.0}])


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_what_is_drawn_is_in_the_space_and_depends_only_on_the_seed_and_the_trials_before(search):
    settings, trials = Settings(search=search), []
    for number in range(25):
        drawn = propose(SPACE, settings, "min", trials, number)
        assert drawn == propose(SPACE, settings, "min", trials, number)
        assert 1e-4 <= drawn["train.learning_rate"] <= 1e-2 and drawn["train.warmup_steps"] in (0, 1, 2)
        assert drawn["train.weight_decay"] in (0.0, 0.1, 0.2, 0.3) and 0.5 <= drawn["train.max_grad_norm"] <= 2
        assert ("model.peft.r" in drawn) == (drawn["model.adapter"] == "lora")
        assert drawn.get("model.peft.target_modules", ["q_proj"]) in (["q_proj"], ["q_proj", "v_proj"])
        status = ("finished", "stopped", "running", "failed")[number % 4]
        trials.append(tried(number, drawn, drawn["train.learning_rate"], status))
    assert len({str(t.settings) for t in trials}) == 25
    other = propose(SPACE, Settings(search=search, seed=1), "min", trials, 25)
    assert other != propose(SPACE, settings, "min", trials, 25)


def test_a_trial_told_to_optuna_has_its_settings_value_and_state():
    drawn = propose(SPACE, Settings(search="random"), "min", [], 3)
    states = {
        s: told(SPACE, tried(3, drawn, 0.5, s), Settings(), "min") for s in ("finished", "stopped", "running", "failed")
    }
    assert {s: t.state.name for s, t in states.items()} == {
        "finished": "COMPLETE", "stopped": "PRUNED", "running": "RUNNING", "failed": "FAIL",
    }  # fmt: skip
    assert states["finished"].value == 0.5 and states["stopped"].intermediate_values == {10: 0.5}
    assert SPACE.draw(optuna.trial.FixedTrial(states["stopped"].params)) == drawn


def test_with_seconds_as_the_second_objective_optuna_proposes_what_is_fast_or_good():
    """The metric wants a high rate and the seconds a low one, so that all rates are equally good trade-offs; weight decay only costs."""
    one, _ = space.read({"train.learning_rate": {"uniform": [0.0, 1.0]}, "train.weight_decay": {"uniform": [0.0, 1.0]}})
    found = {}
    for second in ("none", "seconds"):
        settings, trials = Settings(search="optuna", second_objective=second), []
        for number in range(60):
            drawn = propose(one, settings, "max", trials, number)
            t = tried(number, drawn, drawn["train.learning_rate"] - drawn["train.weight_decay"], "finished")
            t.ended_after = 1 + drawn["train.learning_rate"] + drawn["train.weight_decay"]
            trials.append(t)
        found[second] = [t.settings["train.learning_rate"] for t in trials[30:]]
        assert sum(t.settings["train.weight_decay"] < 0.5 for t in trials[30:]) > 20
    low = {second: sum(r < 0.5 for r in rates) for second, rates in found.items()}
    assert low["none"] < 6 and 10 < low["seconds"] < 27


def test_optuna_finds_the_better_half_of_a_space_more_often_than_random_search():
    """The value is the distance of log10(learning rate) from -3; the space is 2 decades wide."""
    import math

    one, _ = space.read({"train.learning_rate": {"loguniform": [1e-4, 1e-2]}})

    def distances(search: str) -> list[float]:
        trials: list[Trial] = []
        for number in range(40):
            drawn = propose(one, Settings(search=search), "min", trials, number)
            away = abs(math.log10(drawn["train.learning_rate"]) + 3)
            trials.append(tried(number, drawn, away, "finished"))
        return [t.reports[0]["eval_loss"] for t in trials[20:]]

    assert sum(distances("optuna")) < 0.5 * sum(distances("random"))


def test_the_grid_has_every_combination_once():
    listed, _ = space.read({k: v for k, v in TREE.items() if "uniform" not in v and "loguniform" not in v})
    grid = listed.grid()
    assert len(grid) == (1 + 2 * 2) * 3 * 4  # with model.adapter none, the keys of LoRA don't exist
    settings = Settings(search="grid")
    assert [propose(listed, settings, "min", [], n) for n in range(len(grid) + 1)] == [*grid, None]
    with pytest.raises(ValueError, match=r"^space.train.learning_rate: search: grid needs listed values"):
        SPACE.grid()


def test_the_corners_are_all_combinations_of_ends_or_each_end_if_those_are_too_many():
    few, _ = space.read({"a": {"uniform": [0, 1]}, "b": {"randint": [2, 5]}, "c": {"choice": ["x", "y", "z"]}})
    assert len(few.corners()) == 2 * 2 * 3
    assert {c["b"] for c in few.corners()} == {2, 4}
    many, _ = space.read({f"k{i}": {"uniform": [0, 1]} for i in range(7)})
    assert len(many.corners()) == 8  # all at their lower ends, and each at its upper end


def test_steps_of_whole_numbers_stay_whole():
    s, _ = space.read({"train.max_length": {"quniform": [64, 256, 64]}})
    assert s.parameters[0].all() == [64, 128, 192, 256]
    assert all(
        isinstance(propose(s, Settings(search="random"), "min", [], n)["train.max_length"], int) for n in range(9)
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"logunifrom": [1, 2]},
            "needs one of choice, grid, uniform, loguniform, quniform, randint, has logunifrom. Nearest: loguniform",
        ),
        ({"uniform": [2, 1]}, "uniform must have its lower end first, has 2 and 1."),
        ({"loguniform": [0, 1]}, "loguniform must start above 0, starts at 0."),
        ({"uniform": [0, "1"]}, "uniform must be [low, high] in numbers"),
        ({"uniform": [0, float("inf")]}, "uniform must have finite ends"),
        ({"uniform": [0, 1, 2]}, "uniform must be [low, high] in numbers"),
        ({"quniform": [0, 1]}, "quniform must be [low, high, step] in numbers"),
        ({"quniform": [0, 1, 2]}, "quniform must have a step between 0 and 1, has 2."),
        ({"randint": [0.5, 2]}, "randint must have whole numbers"),
        ({"choice": []}, "choice must be a list of values, is []."),
        ({"choice": [1, 1]}, "choice lists a value twice"),
        ({"choice": [1], "grid": [2]}, "needs one of"),
        ([1, 2], "must be {kind: values}"),
        ({"choice": [1, 2], "when": {"b": 1}}, "when: b is not a key of the space above this one."),
        ({"choice": [1, 2], "when": {"a": 9}}, "when: a never is 9."),
        ({"choice": [1, 2], "when": "a"}, "when must be {key: value or list of values}"),
    ],
)
def test_a_wrong_parameter_is_named_with_the_remedy(given, says):
    _, problems = space.read({"a": {"choice": [1, 2]}, "x": given})
    assert len(problems) == 1 and problems[0].startswith("space.x: ") and says in problems[0]
