import pytest

from attune.trainer.examples import Example
from attune.trainer.trigger import Approval, approval, enough_learned, next_dataset


def test_only_the_newest_dataset_is_trained_on() -> None:
    assert next_dataset([], set()) is None
    assert next_dataset(["d-1", "d-2"], set()) == "d-2"
    assert next_dataset(["d-1", "d-2"], {"d-1"}) == "d-2"
    assert next_dataset(["d-1", "d-2"], {"d-2"}) is None


def test_approval_is_of_the_policy_that_serves() -> None:
    examples = [
        Example([1], [2], liked, "u", policy, 0)
        for policy, liked in (("base", False), ("p-000001", True), ("p-000001", True), ("p-000001", False))
    ]
    assert approval(examples, "p-000001") == Approval(liked=2, thumbs=3)
    assert approval(examples, "p-000002") == Approval(liked=0, thumbs=0)


@pytest.mark.parametrize(
    ("liked", "thumbs", "lower"), [(0, 0, 0.0), (0, 10, 0.0), (10, 10, 0.7225), (80, 100, 0.7112), (312, 400, 0.7369)]
)
def test_lower_bound_is_wilsons(liked: int, thumbs: int, lower: float) -> None:
    assert Approval(liked, thumbs).lower == pytest.approx(lower, abs=1e-3)


def test_a_few_thumbs_up_are_not_enough_to_stop() -> None:
    assert not enough_learned(Approval(8, 8), 0.72)
    assert enough_learned(Approval(312, 400), 0.72)
    assert not enough_learned(Approval(290, 400), 0.72)
