import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from attune.lake.erased import Erased
from attune.registry.rollouts import RolloutEntry
from tests.eventlog.waiting import eventually
from tests.persona_files import apply
from tests.registry.adapters import verdict_of
from tests.rollout.house import House


def test_each_persona_gets_its_own_newest_policy(house: House) -> None:
    first = house.publish()
    tutors = house.publish(persona="tutor")
    promotion = house.promotion()
    promotion.turn()
    assert house.entered() == [first]
    assert house.entered("tutor") == [tutors]

    second = house.publish()
    promotion.turn()
    promotion.turn()
    assert house.entered() == [first, second]
    assert house.entered("tutor") == [tutors]


def test_a_persona_that_is_applied_later_is_looked_after_too(house: House) -> None:
    promotion = house.promotion()
    policy_id = house.publish(persona="guide")
    promotion.turn()
    assert house.entered("guide") == []

    apply(house.data, "guide", 'system_prompt = ""')

    def promoted() -> bool:
        promotion.turn()
        return house.entered("guide") == [policy_id]

    eventually(promoted, 10)


def test_a_policy_is_promoted_once_its_verdict_is_there(house: House) -> None:
    promotion = house.promotion()
    policy_id = house.publish(passed=None)
    promotion.turn()
    assert house.entered() == []

    house.registry.write_verdict(verdict_of(policy_id), house.signer)
    promotion.turn()
    assert house.entered() == [policy_id]


def test_what_may_not_serve_is_not_promoted(house: House) -> None:
    house.publish(passed=False)
    house.publish(base_model_hash="c" * 64)
    house.registry.claim("default", "concierge")
    damaged = house.publish()
    weights = house.data / "registry" / "policies" / damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    promotion = house.promotion()
    promotion.turn()
    promotion.turn()
    assert house.entered() == []

    whole = house.publish()
    promotion.turn()
    assert house.entered() == [whole]


def test_a_restart_goes_on_exactly_where_it_was(house: House) -> None:
    first = house.publish()
    house.promotion().turn()
    house.promotion().turn()
    second = house.publish()
    house.promotion().turn()
    house.log.append(RolloutEntry(3, "default", "concierge", ((first, 1.0),), "operator", "", 0))
    house.promotion().turn()
    assert house.entered() == [first, second, first]


def test_several_at_once_enter_each_policy_once(house: House) -> None:
    promotions = [house.promotion() for _ in range(8)]
    expected = []
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            expected.append(house.publish())
            list(threads.map(lambda promotion: promotion.turn(), promotions))
    assert house.entered() == expected


def test_a_damaged_log_stops_its_own_persona_only_and_heals(house: House) -> None:
    first = house.publish()
    promotion = house.promotion()
    promotion.turn()
    file = house.data / "registry" / "rollouts" / "default" / "concierge" / "1.json"
    whole = file.read_bytes()
    file.write_bytes(b"{")
    second, tutors = house.publish(), house.publish(persona="tutor")
    promotion.turn()
    assert house.entered("tutor") == [tutors]

    file.write_bytes(whole)
    promotion.turn()
    assert house.entered() == [first, second]


def erase(house: House, dataset_id: str, hours_ago: float) -> None:
    folder = house.data / "datasets" / dataset_id
    folder.mkdir(parents=True)
    erased = Erased(
        dataset_id, "default", "concierge", "thumbs", True, int((time.time() - 3600 * hours_ago) * 1000), {}
    )
    (folder / "erased.json").write_text(json.dumps(asdict(erased)))


def test_a_policy_that_learned_from_somebody_who_was_erased_serves_until_its_successor_does(house: House) -> None:
    house.publish()
    house.promotion().turn()
    erase(house, "d-1", hours_ago=1)
    house.publish()  # made with the same dataset
    house.promotion().turn()
    assert house.entered() == ["p-000001"]
    clean = house.publish(dataset_id="d-2")
    house.promotion().turn()
    assert house.entered() == ["p-000001", clean]


def test_without_a_successor_what_served_before_takes_over_in_time(house: House) -> None:
    house.publish(dataset_id="d-0")
    house.promotion().turn()
    house.publish()
    house.promotion().turn()
    erase(house, "d-1", hours_ago=25)
    house.promotion().turn()
    house.promotion().turn()
    assert house.entered() == ["p-000001", "p-000002", "p-000001"]
    assert house.log.history("default", "concierge")[-1].author == "erasure"


def test_where_nothing_clean_served_before_the_base_takes_over(house: House) -> None:
    house.publish()
    house.promotion().turn()
    house.publish()
    house.promotion().turn()
    erase(house, "d-1", hours_ago=25)
    house.registry.withdraw("p-000001")
    house.promotion().turn()
    assert house.entered() == ["p-000001", "p-000002", "base"]
