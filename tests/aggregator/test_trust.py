"""How much rows weigh: each step by itself, on rows made up here."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attune.aggregator.trust.agreement import agree
from attune.aggregator.trust.caps import level
from attune.aggregator.trust.controls import accuracy, trust_in
from attune.aggregator.trust.rows import Collector, Rows, key_of, person_key, said_last
from attune.aggregator.trust.standing import NOBODY, Standing
from attune.aggregator.trust.weigh import WEIGHED_BY, Weights, weigh
from attune.settings import TrustSettings

NOON = 1_790_000_000_000
ERRANDS = ("cab", "pizza", "mail", "flowers", "alarm", "ticket", "flight", "room", "music", "letter")
OFF = {
    "person_times": 1e6,
    "conversation_weight": 1e9,
    "person_in_cluster_weight": 1e9,
    "cluster_share": 1.0,
    "coordinated_seconds": (),
}


def rules(**changes: Any) -> TrustSettings:
    """Every step off but those that are named."""
    return TrustSettings(**(OFF | changes))


def row(number: int, person: str, **changes: Any) -> dict[str, Any]:
    asked = f"The {ERRANDS[number % 10]}, please, and by {number}."
    return {
        "example_id": f"{number:032x}",
        "givers": [person],
        "conversation_id": f"c{number}",
        "label": "liked" if number % 2 else "disliked",
        "weight": 1.0,
        "messages": [{"role": "user", "content": asked}],
        "created_unix_ms": NOON + number * 3_600_000,
        "split": "train",
    } | changes


def rows_of(rows: Sequence[Mapping[str, Any]], batch_rows: int = 7) -> Rows:
    collector = Collector()
    for batch in pa.Table.from_pylist(list(rows)).to_batches(max_chunksize=batch_rows):
        collector.add(batch)
    return collector.rows()


def weights_by_row(rows: Sequence[Mapping[str, Any]], weights: Weights) -> list[float]:
    places = np.searchsorted(weights.keys, np.array([key_of(each["example_id"]) for each in rows], np.uint64))
    return [float(value) for value in weights.weights[places]]


def changed(weights: Weights) -> dict[str, int]:
    return {name: rows for name, rows in weights.changed().items() if rows}


def town(rows: int = 400, people: int = 40, seed: int = 1) -> list[dict[str, Any]]:
    """Everybody speaks at any time of two weeks, of anything."""
    rng = random.Random(seed)
    return [
        row(
            number,
            f"person-{rng.randrange(people)}",
            created_unix_ms=NOON + rng.randrange(14 * 86_400_000),
            messages=[{"role": "user", "content": f"{rng.choice(ERRANDS)} for {rng.randrange(10**9)}"}],
            label=rng.choice(["liked", "disliked"]),
        )
        for number in range(rows)
    ]


def test_nothing_changes_where_everybody_behaves() -> None:
    weights = weigh(rows_of(town()), TrustSettings(person_in_cluster_weight=8))
    assert changed(weights) == {}
    assert set(weights.weights) == {1.0}


def test_switched_off_it_leaves_every_weight() -> None:
    rows = [row(number, "one", weight=0.5) for number in range(100)]
    weights = weigh(rows_of(rows), TrustSettings(enabled=False))
    assert weights.changed() == {}
    assert weights_by_row(rows, weights) == [0.5] * 100


def test_the_order_in_which_rows_come_does_not_matter() -> None:
    wordless = [{"role": "user", "content": "!"}]
    rows = [*town(), *[row(1000 + number, "loud", messages=wordless) for number in range(200)]]
    rows += [row(2000 + number, "long", conversation_id="c") for number in range(30)]
    first = weigh(rows_of(rows), TrustSettings())
    assert {"person_cap", "conversation_cap"} <= set(changed(first))
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        again = weigh(rows_of(rows, batch_rows=1 + 40 * seed), TrustSettings())
        assert (again.keys == first.keys).all()
        assert (again.weights == first.weights).all()
        assert again.changed() == first.changed()


@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=50), st.floats(1.01, 20))
def test_nobody_is_above_so_many_times_the_mean_that_remains(weights: list[float], times: float) -> None:
    cap = level(np.array(weights), times)
    capped = np.minimum(weights, cap)
    assert capped.max() <= times * capped.mean() * (1 + 1e-9)
    if np.isfinite(cap):
        assert cap == pytest.approx(times * capped.mean())
    else:
        assert max(weights) <= times * np.mean(weights) * (1 + 1e-9)


def test_one_person_weighs_at_most_so_many_times_what_people_weigh_on_average_in_each_split() -> None:
    rows = [row(number, f"person-{number % 20}") for number in range(40)]
    rows += [row(100 + number, "loud") for number in range(500)]
    rows += [row(1000 + number, f"other-{number % 4}", split="heldout") for number in range(8)]
    weights = weigh(rows_of(rows), rules(person_times=3))
    assert changed(weights) == {"person_cap": 500}
    by_row = weights_by_row(rows, weights)
    loud = sum(by_row[40:540])
    assert loud == pytest.approx(3 * (40 + loud) / 21, rel=1e-4)
    assert by_row[:40] + by_row[540:] == [1.0] * 48


def test_a_row_of_two_people_goes_by_the_heavier() -> None:
    rows = [row(number, f"person-{number % 20}") for number in range(40)]
    rows += [row(100 + number, "loud", givers=["loud", f"person-{number % 20}"]) for number in range(100)]
    weights = weights_by_row(rows, weigh(rows_of(rows), rules(person_times=2)))
    assert weights[:40] == [1.0] * 40
    assert max(weights[40:]) < 0.5


def test_one_conversation_weighs_at_most_so_much() -> None:
    rows = [
        row(number, f"person-{number}", conversation_id="long" if number < 30 else f"c{number}") for number in range(50)
    ]
    weights = weigh(rows_of(rows), rules(conversation_weight=6))
    assert weights_by_row(rows, weights) == [0.2] * 30 + [1.0] * 20


def test_rows_without_a_conversation_are_not_one_conversation() -> None:
    rows = [row(number, f"person-{number}", conversation_id="") for number in range(50)]
    assert changed(weigh(rows_of(rows), rules(conversation_weight=6))) == {}


def test_where_nobody_is_named_the_conversation_is_a_person() -> None:
    rows = [row(number, f"person-{number % 20}") for number in range(40)]
    rows += [row(100 + number, "", conversation_id="anonymous") for number in range(100)]
    rows += [row(300 + number, "", conversation_id="") for number in range(100)]
    weights = weights_by_row(rows, weigh(rows_of(rows), rules(person_times=2)))
    assert max(weights[40:140]) < 0.2
    assert weights[:40] + weights[140:] == [1.0] * 140


def test_one_person_weighs_at_most_so_much_on_one_topic_and_is_whole_elsewhere() -> None:
    rows = town()
    on_topic = [f"Please water the plants of {number}" for number in range(20)]
    rows += [
        row(1000 + number, "gardener", messages=[{"role": "user", "content": text}])
        for number, text in enumerate(on_topic)
    ]
    rows += [
        row(2000 + number, f"person-{number}", messages=[{"role": "user", "content": "Water plants"}])
        for number in range(5)
    ]
    rows += [row(3000, "gardener")]
    weights = weights_by_row(rows, weigh(rows_of(rows), rules(person_in_cluster_weight=4)))
    assert sum(weights[400:420]) == pytest.approx(4)
    assert weights[420:] == [1.0] * 6


def test_one_prompt_cluster_weighs_at_most_its_share() -> None:
    rows = town(400, people=200)
    plants = [{"role": "user", "content": "plants"}]
    rows += [row(1000 + number, f"person-{number % 80}", messages=plants) for number in range(200)]
    weights = weights_by_row(rows, weigh(rows_of(rows), rules(cluster_share=0.15)))
    assert sum(weights[400:]) == pytest.approx(90)
    assert weights[:400] == [1.0] * 400


def test_what_most_people_speak_of_is_no_topic_and_a_few_cannot_make_it_one_by_volume() -> None:
    rows = [
        row(n, f"person-{n % 60}", messages=[{"role": "user", "content": "good morning" if n % 60 < 40 else f"{n}"}])
        for n in range(400)
    ]
    assert changed(weigh(rows_of(rows), rules(cluster_share=0.05, person_in_cluster_weight=0.5))) == {}
    rows += [row(5000 + n, f"loud-{n % 3}", messages=[{"role": "user", "content": "plants"}]) for n in range(900)]
    assert changed(weigh(rows_of(rows), rules(person_in_cluster_weight=4))) == {"person_in_cluster_cap": 900}


def attack(minute: bool, people: int = 4, votes: int = 6) -> list[dict[str, Any]]:
    rng = random.Random(7)
    return [
        row(
            5000 + number,
            f"attacker-{number % people}",
            created_unix_ms=NOON + (rng.randrange(60_000) if minute else rng.randrange(14 * 86_400_000)),
            messages=[{"role": "user", "content": f"lock the door for {rng.randrange(10**9)}"}],
            label="liked",
        )
        for number in range(people * votes)
    ]


def test_people_who_say_the_same_within_a_minute_weigh_next_to_nothing() -> None:
    rows = [*town(), *attack(minute=True)]
    weights = weigh(rows_of(rows), rules(coordinated_seconds=(60, 600, 3600)))
    by_row = weights_by_row(rows, weights)
    assert changed(weights) == {"coordinated": 24}
    assert max(by_row[400:]) < 0.05
    assert by_row[:400] == [1.0] * 400


def test_the_same_votes_over_two_weeks_are_no_coordination() -> None:
    assert changed(weigh(rows_of([*town(), *attack(minute=False)]), rules(coordinated_seconds=(60, 600, 3600)))) == {}


def test_an_hour_in_which_everybody_is_busy_is_no_coordination() -> None:
    busy = town(400, people=200, seed=3)
    for each in busy:
        each["created_unix_ms"] = NOON + each["created_unix_ms"] % 1_800_000
    assert changed(weigh(rows_of(busy), rules(coordinated_seconds=(60, 600, 3600)))) == {}


def test_no_time_of_the_day_is_safe_for_an_attack_across_a_minutes_end() -> None:
    straddling = attack(minute=True)
    for number, each in enumerate(straddling):
        each["created_unix_ms"] = 60_000 * (NOON // 60_000) + (number % 2) * 20_000 - 10_000
    weights = weights_by_row(
        [*town(), *straddling], weigh(rows_of([*town(), *straddling]), rules(coordinated_seconds=(60,)))
    )
    assert max(weights[400:]) < 0.05


def test_wrong_answers_to_control_questions_cost_weight_and_right_ones_give_none() -> None:
    right, wrong = np.array([0.0, 20.0, 0.0, 2.0, 0.0]), np.array([0.0, 0.0, 3.0, 2.0, 20.0])
    assert trust_in(accuracy(right, wrong)).tolist() == pytest.approx([1, 1, 0.384615, 0.714286, 0], abs=1e-6)


def standing(**accuracies: float) -> Standing:
    keys = {person_key(name, "", ""): accurate for name, accurate in accuracies.items()}
    return Standing(np.array(sorted(keys), np.uint64), np.array([keys[key] for key in sorted(keys)]))


def test_a_person_who_fails_control_questions_weighs_less_everywhere() -> None:
    rows = [row(number, ("careless", "careful", "unknown")[number % 3]) for number in range(12)]
    weights = weigh(rows_of(rows), rules(), controls=standing(careless=0.65, careful=0.99))
    assert weights_by_row(rows, weights)[:3] == [0.5, 1.0, 1.0]
    assert changed(weights) == {"control_questions": 4}


def test_reviewers_agreement_counts_only_where_it_is_set() -> None:
    rows = [row(number, ("alone", "with others")[number % 2]) for number in range(12)]
    doubted = standing(alone=0.5)
    assert changed(weigh(rows_of(rows), rules(), agreement=doubted)) == {}
    weights = weigh(rows_of(rows), rules(reviewers_agreement=True), NOBODY, doubted)
    assert weights_by_row(rows, weights)[:2] == [0.0, 1.0]


def test_dawid_and_skene_find_who_guesses_who_is_contrary_and_what_is_good() -> None:
    rng = np.random.default_rng(1)
    good = rng.random(300) < 0.6
    rates = np.array([0.9, 0.85, 0.9, 0.5, 0.1])
    answer, reviewer = (each.ravel() for each in np.meshgrid(np.arange(300), np.arange(5), indexing="ij"))
    called = good[answer] == (rng.random(answer.size) < rates[reviewer])
    found = agree(answer, reviewer, called)
    assert ((found.good > 0.5) == good).mean() > 0.95
    assert found.accuracy() == pytest.approx(rates, abs=0.09)


def test_two_who_judged_little_are_thought_of_as_everybody_is() -> None:
    found = agree(np.array([0, 0]), np.array([0, 1]), np.array([True, False]))
    assert found.accuracy() == pytest.approx([0.8, 0.8], abs=0.06)
    assert agree(np.empty(0, int), np.empty(0, int), np.empty(0, bool)).accuracy().tolist() == []


def test_a_row_says_what_changed_its_weight_and_the_weight_is_the_product() -> None:
    rows = [
        *town(),
        *attack(minute=True),
        *[row(9000 + n, "loud", weight=0.5, conversation_id="c") for n in range(300)],
    ]
    batch = pa.Table.from_pylist([{**each, "weighed_by": []} for each in rows]).to_batches()[0]
    schema = batch.schema.set(
        batch.schema.get_field_index("weighed_by"),
        pa.field("weighed_by", WEIGHED_BY),
    )
    done = weigh(rows_of(rows), TrustSettings()).apply(batch.cast(schema)).to_pylist()
    assert any(len(each["weighed_by"]) > 1 for each in done)
    for before, after in zip(rows, done, strict=True):
        assert after["weight"] == pytest.approx(
            before["weight"] * np.prod([step["factor"] for step in after["weighed_by"]]), abs=1e-5
        )


def test_no_rows_at_all_are_weighed_too() -> None:
    empty = pa.Table.from_pylist([row(1, "one")]).slice(1).to_batches() or []
    collector = Collector()
    for batch in empty:
        collector.add(batch)
    assert changed(weigh(collector.rows(), TrustSettings())) == {}


def test_what_a_user_said_last_is_the_prompt() -> None:
    messages = pa.array(
        [
            [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "two"},
                {"role": "tool", "content": "3"},
            ],
            [],
            [{"role": "assistant", "content": "four"}],
            None,
            [{"role": "user", "content": "five"}, {"role": "user", "content": "six"}],
        ]
    )
    assert said_last(messages) == ["one", "", "", "", "six"]
    assert said_last(messages.slice(1, 4)) == ["", "", "", "six"]
