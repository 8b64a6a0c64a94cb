import json
import math
from pathlib import Path

import numpy as np
import pytest

from attune.errors import InvalidInput
from attune.trainer.evaluate import gain_bounds, read_regression_prompts, trimmed_mean


def votes(users: int, each: int, gain: float, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    liked = rng.random(users * each) < 0.5
    change = rng.normal(0, noise, users * each) + np.where(liked, gain / 2, -gain / 2)
    return change, liked, [f"u{number // each}" for number in range(users * each)]


def test_gain_is_the_difference_of_means() -> None:
    bounds = gain_bounds(
        np.array([1.0, 2.0, -1.0, -3.0]), np.array([True, True, False, False]), ["a", "b", "a", "b"], 0
    )
    assert bounds.gain == pytest.approx(3.5)
    assert bounds.lower <= 3.5


def test_a_clear_gain_is_sure_with_and_without_any_one_user() -> None:
    bounds = gain_bounds(*votes(users=16, each=6, gain=2.0, noise=1.0), seed=0)
    assert bounds.lower > 1
    assert bounds.lower_without_one_user > 1


def test_no_gain_is_rarely_taken_for_one() -> None:
    """Nominally 5 % of the time; with 16 users the bootstrap is a little too sure of itself."""
    found = [gain_bounds(*votes(16, 6, gain=0.0, noise=1.0, seed=seed), seed=0).lower > 0 for seed in range(200)]
    assert np.mean(found) < 0.12


def test_one_user_cannot_decide() -> None:
    """Two hundred thumbs of one user, and a few of others that say nothing."""
    change, liked, users = votes(users=10, each=4, gain=0.0, noise=0.1, seed=3)
    loud_liked = np.arange(200) % 2 == 0
    change = np.concatenate([change, np.where(loud_liked, 3.0, -3.0)])
    bounds = gain_bounds(change, np.concatenate([liked, loud_liked]), [*users, *["loud"] * 200], seed=0)
    assert bounds.gain > 4
    assert bounds.lower_without_one_user < 0.1


def test_what_cannot_be_computed_is_nan() -> None:
    one_user = gain_bounds(np.array([1.0, -1.0]), np.array([True, False]), ["a", "a"], 0)
    assert one_user.gain == 2
    assert math.isnan(one_user.lower)
    one_label = gain_bounds(np.array([1.0, 1.0]), np.array([True, True]), ["a", "b"], 0)
    assert math.isnan(one_label.gain)
    assert math.isnan(one_label.lower)
    assert math.isnan(one_label.lower_without_one_user)


def test_trimmed_mean_leaves_the_lowest_out() -> None:
    assert trimmed_mean(np.array([1.0, -9.0, 2.0, 3.0]), 0.25) == 2
    assert math.isnan(trimmed_mean(np.array([]), 0.25))


def line(**changes: object) -> str:
    row = {"skill": "facts", "messages": [{"role": "user", "content": "Who?"}], "answer": "Me."}
    return json.dumps({**row, **changes})


def test_regression_prompts_are_read(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f"{line()}\n\n{line(persona='tutor', skill='style')}\n")
    prompts = read_regression_prompts(file, {"tutor", "concierge"})
    assert [(prompt.skill, prompt.persona, prompt.answer) for prompt in prompts] == [
        ("facts", "", "Me."),
        ("style", "tutor", "Me."),
    ]


def test_a_regression_prompt_may_offer_tools(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(line(tools=[{"type": "function", "function": {"name": "call_cab", "parameters": {}}}]) + "\n")
    ((tool,),) = (prompt.tools for prompt in read_regression_prompts(file, {"concierge"}))
    assert (tool.name, tool.description, tool.parameters_json) == ("call_cab", "", "")


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "[]",
        "{}",
        line(messages=[]),
        line(messages=[{"role": "nobody", "content": "x"}]),
        line(messages=7),
        line(persona="nobody"),
        line(answer=None),
        line(skill=7),
        line(tools=[{}]),
        line(tools=[{"function": {"name": "a b"}}]),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f"{line()}\n{wrong}\n")
    with pytest.raises(InvalidInput, match=r"prompts\.jsonl:2: "):
        read_regression_prompts(file, {"concierge"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_regression_prompts(tmp_path / "none.jsonl", {"concierge"})
