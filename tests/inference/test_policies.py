"""Swaps: the rollout log is followed, streams go on, and what is not verified never serves."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from attune.chat.template import ChatTemplate
from attune.inference.engine import Engine
from attune.registry.policies import Probe
from attune.v1 import event_pb2
from tests.inference.house import (
    PERSONAS,
    PROBE_OUTPUT,
    PROBE_PROMPT,
    House,
    ask,
    endless,
    reference_logprobs,
    reference_probe,
)
from tests.inference.waiting import eventually

Adapters = Callable[[int], Path]


async def test_a_policy_in_the_rollout_log_answers_new_requests(house: House, adapter: Adapters) -> None:
    policy_id = await house.publish(adapter(1))
    house.roll_out((policy_id, 1.0))
    await house.policies.refresh()
    await house.stub.Chat(ask(temperature=1), timeout=60)
    await house.stub.Chat(ask(persona="tutor"), timeout=60)
    by_policy, by_tutor = house.responses()
    assert (by_policy.policy_id, by_tutor.policy_id) == (policy_id, "base")
    expected = reference_logprobs(adapter(1), prompt=by_policy.prompt_token_ids, output=by_policy.output_token_ids)
    assert np.abs(np.subtract(by_policy.output_logprobs, expected)).mean() < 0.05
    assert REGISTRY.get_sample_value("attune_policy_in_service", {"persona": "concierge"}) == 1
    assert REGISTRY.get_sample_value("attune_policies_loaded") == 1


async def test_a_running_stream_keeps_its_policy_and_the_old_one_goes_when_it_ended(
    tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path, adapter: Adapters
) -> None:
    async with House.open(tmp_path, endless(engine), template, demo_model) as house:
        first, second = await house.publish(adapter(1)), await house.publish(adapter(2))
        house.roll_out((first, 1.0))
        await house.policies.refresh()
        running = [house.stub.StreamChat(ask(max_tokens=300)) for _ in range(4)]
        starts = [await call.read() for call in running]
        house.roll_out((second, 1.0))
        await house.policies.refresh()
        assert REGISTRY.get_sample_value("attune_policies_loaded") == 2
        assert len(list((tmp_path / "adapters").iterdir())) == 2

        await house.stub.Chat(ask(max_tokens=4), timeout=60)
        for call in running:
            while not (chunk := await call.read()).HasField("end"):
                assert chunk
            assert chunk.end.usage.output_tokens == 300
        await house.policies.refresh()
        assert REGISTRY.get_sample_value("attune_policies_loaded") == 1
        assert {start.start.policy_id for start in starts} == {first}
        assert sorted(event.policy_id for event in house.responses()) == [first] * 4 + [second]
        assert all(event.finish_reason == event_pb2.FINISH_REASON_LENGTH for event in house.responses())


async def test_two_swaps_at_once_leave_each_stream_with_one_policy_of_its_persona(
    tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path, adapter: Adapters
) -> None:
    async with House.open(tmp_path, endless(engine), template, demo_model) as house:
        concierges = [await house.publish(adapter(1)), await house.publish(adapter(2))]
        tutors = await house.publish(adapter(3), persona="tutor")
        personas = ["concierge", "tutor"] * 4
        running = [house.stub.StreamChat(ask(max_tokens=300, persona=persona)) for persona in personas]
        starts = [(await call.read()).start.policy_id for call in running]
        house.roll_out((concierges[0], 1.0))
        house.roll_out((tutors, 1.0), persona="tutor")
        await asyncio.gather(house.policies.refresh(), *(_end_of(call) for call in running[:2]))
        house.roll_out((concierges[1], 1.0))
        await asyncio.gather(house.policies.refresh(), *(_end_of(call) for call in running[2:]))
        # The reference knows no other temperature.
        await house.stub.Chat(ask(max_tokens=4, temperature=1), timeout=60)
        await house.stub.Chat(ask(max_tokens=4, temperature=1, persona="tutor"), timeout=60)

        assert set(starts) == {"base"}
        *earlier, one, other = house.responses()
        assert [event.policy_id for event in earlier] == ["base"] * 8
        assert all(event.finish_reason == event_pb2.FINISH_REASON_LENGTH for event in earlier)
        assert (one.policy_id, other.policy_id) == (concierges[1], tutors)
        for event, seed in ((one, 2), (other, 3)):
            prompt, output = event.prompt_token_ids, event.output_token_ids
            expected = reference_logprobs(adapter(seed), prompt=prompt, output=output)
            assert np.abs(np.subtract(event.output_logprobs, expected)).mean() < 0.05


async def _end_of(call: Any) -> None:
    while not (await call.read()).HasField("end"):
        pass


async def test_a_roll_back_brings_the_earlier_policy_and_the_base_back(house: House, adapter: Adapters) -> None:
    first, second = await house.publish(adapter(1)), await house.publish(adapter(2))
    for policy_id in (first, second, first, "base", second):
        house.roll_out((policy_id, 1.0))
        await house.policies.refresh()
        answer = await house.stub.Chat(ask(max_tokens=2), timeout=60)
        assert answer.responses[0].policy_id == policy_id


async def test_shares_split_conversations_and_keep_each_with_its_policy(house: House, adapter: Adapters) -> None:
    policy_id = await house.publish(adapter(1))
    house.roll_out(("base", 0.5), (policy_id, 0.5))
    await house.policies.refresh()
    picked = {}
    for number in range(200):
        conversation = f"c-{number}"
        lease, again = (house.policies.lease(PERSONAS["concierge"], conversation) for _ in range(2))
        assert lease.policy_id == again.policy_id
        picked[conversation] = lease.policy_id
        lease.release()
        again.release()
    assert 60 < list(picked.values()).count(policy_id) < 140


async def test_the_swap_loop_follows_the_log_by_itself(house: House, adapter: Adapters) -> None:
    import asyncio

    stopping = asyncio.Event()
    following = asyncio.create_task(house.policies.run(stopping))
    policy_id = await house.publish(adapter(1))
    house.roll_out((policy_id, 1.0))
    await eventually(
        lambda: REGISTRY.get_sample_value("attune_policy_in_service", {"persona": "concierge"}) == 1, seconds=30
    )
    stopping.set()
    await following


def flip_weights(policy: Path) -> None:
    file = policy / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def forge_manifest(policy: Path) -> None:
    file = policy / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["metrics"] = {"approval": 1.0}
    file.write_text(json.dumps(manifest))


def link_weights(policy: Path) -> None:
    file = policy / "adapter_model.safetensors"
    file.rename(policy.parent / "elsewhere")
    file.symlink_to(policy.parent / "elsewhere")


def remove_verdict(policy: Path) -> None:
    (policy / "verdict.json").unlink()


@pytest.mark.parametrize("damage", [flip_weights, forge_manifest, link_weights, remove_verdict])
async def test_a_damaged_policy_is_refused_and_the_old_one_goes_on(
    house: House, adapter: Adapters, damage: Callable[[Path], None]
) -> None:
    old, new = await house.publish(adapter(1)), await house.publish(adapter(2))
    house.roll_out((old, 1.0))
    await house.policies.refresh()
    damage(house.folder / "registry" / "policies" / new)
    await refused(house, new, serving=old)


async def test_a_policy_that_did_not_pass_is_refused(house: House, adapter: Adapters) -> None:
    await refused(house, await house.publish(adapter(1), passed=False))


async def test_a_policy_for_another_base_model_is_refused(house: House, adapter: Adapters) -> None:
    await refused(house, await house.publish(adapter(1), base_model_hash="f" * 64))


async def test_a_policy_of_another_persona_is_refused(house: House, adapter: Adapters) -> None:
    await refused(house, await house.publish(adapter(1), persona="tutor"))


async def test_a_policy_that_does_not_exist_is_refused(house: House) -> None:
    await refused(house, "p-000077")


async def test_weights_that_are_not_the_trained_ones_are_refused(house: House, adapter: Adapters) -> None:
    await refused(house, await house.publish(adapter(1), probe=(reference_probe(adapter(2)),)))


async def test_weights_that_never_arrived_are_refused(house: House, adapter: Adapters, tmp_path: Path) -> None:
    # What PEFT starts from: B is zero, and the adapter changes nothing.
    from safetensors.numpy import load_file, save_file

    idle = tmp_path / "idle"
    idle.mkdir()
    weights = load_file(adapter(1) / "adapter_model.safetensors")
    save_file({name: w * (".lora_A." in name) for name, w in weights.items()}, idle / "adapter_model.safetensors")
    (idle / "adapter_config.json").write_bytes((adapter(1) / "adapter_config.json").read_bytes())
    await refused(house, await house.publish(idle))


@pytest.mark.parametrize(
    "change",
    [
        lambda probe: (),
        lambda probe: (replace(probe, output_token_ids=(1_000_000,), logprobs=(0.0,)),),
        lambda probe: (replace(probe, logprobs=probe.logprobs[:-1]),),
        lambda probe: (replace(probe, prompt_token_ids=probe.prompt_token_ids * 400),),
    ],
    ids=["none", "no such token", "cut", "too long"],
)
async def test_a_probe_that_shows_nothing_is_refused(
    house: House, adapter: Adapters, change: Callable[[Probe], tuple[Probe, ...]]
) -> None:
    probe = Probe(PROBE_PROMPT, PROBE_OUTPUT, reference_logprobs(adapter(1)), reference_logprobs(adapter(1), off=True))
    await refused(house, await house.publish(adapter(1), probe=change(probe)))


async def test_more_policies_than_the_engine_holds_are_refused_until_there_is_room(
    house: House, adapter: Adapters
) -> None:
    policies = [await house.publish(adapter(seed)) for seed in (1, 2, 3, 4)]
    house.roll_out(*((policy_id, 1 / 3) for policy_id in policies[:3]))
    await house.policies.refresh()
    await refused(house, policies[3], serving=policies[0], outcome="failed")


async def test_at_the_start_the_newest_entry_that_can_be_served_is(
    house: House, adapter: Adapters, engine: Engine, template: ChatTemplate, demo_model: Path
) -> None:
    good, bad = await house.publish(adapter(1)), await house.publish(adapter(2))
    house.roll_out((good, 1.0))
    house.roll_out((bad, 1.0))
    flip_weights(house.folder / "registry" / "policies" / bad)
    await house.policies.refresh()
    answer = await house.stub.Chat(ask(max_tokens=2), timeout=60)
    assert answer.responses[0].policy_id == good


async def refused(house: House, policy_id: str, *, serving: str = "base", outcome: str = "refused") -> None:
    """The entry is counted and not served; who served before still does, and a later entry is still followed."""
    labels = {"persona": "concierge", "outcome": outcome}
    before = REGISTRY.get_sample_value("attune_swaps_total", labels) or 0
    house.roll_out((policy_id, 1.0))
    await house.policies.refresh()
    await house.policies.refresh()
    assert REGISTRY.get_sample_value("attune_swaps_total", labels) == before + 1
    request = ask(max_tokens=2)
    request.conversation_id = "c-1"
    answer = await house.stub.Chat(request, timeout=60)
    if outcome == "refused":
        assert answer.responses[0].policy_id == serving
        house.roll_out(("base", 1.0))
        await house.policies.refresh()
        assert (await house.stub.Chat(ask(max_tokens=2), timeout=60)).responses[0].policy_id == "base"
    else:
        assert answer.responses[0].policy_id != policy_id
    assert not house.engine.dead
