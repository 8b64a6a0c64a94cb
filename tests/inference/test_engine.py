"""The engine by itself: tokens, logprobs, aborts, adapters."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attune.chat.template import ChatTemplate
from attune.errors import FailedPrecondition
from attune.inference.engine import Adapter, Engine, Generation
from attune.v1 import event_pb2
from tests.inference.house import PROBE_OUTPUT, PROBE_PROMPT, endless, reference_logprobs, write_adapter
from tests.inference.waiting import eventually


async def begin(
    engine: Engine,
    adapter: Adapter | None = None,
    *,
    streaming: bool = True,
    top_logprobs: int = 0,
    **sampling: float,
) -> Generation:
    resolved = event_pb2.Sampling(**{"temperature": 1.0, "top_p": 1.0, "max_tokens": 64} | sampling)  # type: ignore[arg-type]
    return await engine.generate(
        list(PROBE_PROMPT),
        resolved,
        tenant="default",
        adapter=adapter,
        streaming=streaming,
        top_logprobs=top_logprobs,
    )


async def finish(generation: Generation) -> list[str]:
    pieces = []
    while generation.finish_reason is None:
        pieces.append(await generation.next_text())
    return pieces


async def loaded(engine: Engine, source: Path, private: Path) -> Adapter:
    adapter = engine.adapter("p-000001", private)
    shutil.copytree(source, adapter.folder)
    await engine.load(adapter)
    return adapter


async def test_streamed_and_whole_answers_are_the_same(engine: Engine) -> None:
    streamed = await begin(engine, seed=7)
    pieces = await finish(streamed)
    whole = await begin(engine, seed=7, streaming=False)
    await finish(whole)
    assert "".join(pieces) == streamed.text == whole.text
    assert streamed.token_ids == whole.token_ids
    assert np.allclose(streamed.logprobs, whole.logprobs, atol=1e-3)
    assert streamed.finish_reason == whole.finish_reason


@pytest.mark.parametrize("top_logprobs", [1, 3])
async def test_the_likeliest_tokens_are_the_same_for_who_reads_slowly(engine: Engine, top_logprobs: int) -> None:
    whole = await begin(engine, seed=7, streaming=False, top_logprobs=top_logprobs)
    await finish(whole)
    slow = await begin(engine, seed=7, top_logprobs=top_logprobs)
    await eventually(lambda: engine.unfinished == 0)  # meanwhile all of its outputs become one
    await finish(slow)
    assert slow.token_ids == whole.token_ids
    assert [[token for token, _ in top] for top in slow.top_logprobs] == [
        [token for token, _ in top] for top in whole.top_logprobs
    ]
    assert len(slow.top_logprobs) == len(slow.token_ids)
    assert all(len(top) == top_logprobs for top in slow.top_logprobs)


async def test_logprobs_are_the_sampled_tokens_own_beside_one_who_asks_for_more(engine: Engine) -> None:
    alone = await begin(engine, seed=7)
    await finish(alone)
    asks_for_more = await begin(engine, seed=8, top_logprobs=5)
    beside = await begin(engine, seed=7)
    await asyncio.gather(finish(asks_for_more), finish(beside))
    slow = await begin(engine, seed=7)
    await eventually(lambda: engine.unfinished == 0)
    await finish(slow)
    for generation in (beside, slow):
        assert generation.token_ids == alone.token_ids
        assert np.allclose(generation.logprobs, alone.logprobs, atol=1e-3)
        assert not generation.top_logprobs


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_abort_keeps_what_was_sampled(engine: Engine, streaming: bool) -> None:
    generation = await begin(endless(engine), streaming=streaming, max_tokens=900)
    if streaming:
        while len(generation.token_ids) < 5:
            await generation.next_text()
    else:
        # Another one of the same length shows how far it has come.
        shown = await begin(endless(engine), max_tokens=30)
        await finish(shown)
    await generation.abort()
    await generation.abort()
    assert generation.finish_reason == "abort"
    assert 0 < len(generation.token_ids) == len(generation.logprobs) < 900
    assert generation.text
    assert engine.unfinished == 0


async def test_scores_are_those_of_transformers(engine: Engine, adapter: Callable[[int], Path], tmp_path: Path) -> None:
    base = await engine.score(PROBE_PROMPT, PROBE_OUTPUT, adapter=None)
    assert np.abs(np.subtract(base, reference_logprobs(adapter(1), off=True))).mean() < 0.05
    policy = await loaded(engine, adapter(1), tmp_path)
    try:
        scores = await engine.score(PROBE_PROMPT, PROBE_OUTPUT, adapter=policy)
    finally:
        await engine.unload(policy)
    assert np.abs(np.subtract(scores, reference_logprobs(adapter(1)))).mean() < 0.05
    assert scores != base


async def test_half_a_character_is_never_sent(
    engine: Engine, template: ChatTemplate, demo_model: Path, tmp_path: Path
) -> None:
    # An adapter of noise draws bytes that the demo model never says; some of them form characters.
    noise = write_adapter(tmp_path / "noise", demo_model, seed=1, scale=2.0)
    adapter = await loaded(engine, noise, tmp_path / "private")
    try:
        generations = await asyncio.gather(
            *(begin(engine, adapter, seed=seed, temperature=2.0, max_tokens=900) for seed in range(16))
        )
        answers = await asyncio.gather(*map(finish, generations))
    finally:
        await engine.unload(adapter)
    whole = 0
    for generation, pieces in zip(generations, answers, strict=True):
        for piece in pieces:
            piece.encode()
        whole += sum(ord(character) > 127 and character != "\ufffd" for character in generation.text)
    assert whole > 0


async def test_an_adapter_comes_and_goes_under_running_streams(
    engine: Engine, adapter: Callable[[int], Path], tmp_path: Path
) -> None:
    running = [await begin(endless(engine), max_tokens=400, temperature=0) for _ in range(4)]
    streams = [asyncio.create_task(finish(generation)) for generation in running]
    policy = await loaded(engine, adapter(1), tmp_path)
    by_policy = await begin(engine, policy)
    await finish(by_policy)
    await engine.unload(policy)
    await asyncio.gather(*streams)
    assert all(generation.finish_reason in ("stop", "length") for generation in running)
    assert len({tuple(generation.token_ids) for generation in running}) == 1
    assert not engine.dead


async def test_files_that_are_no_adapter_are_refused_and_the_engine_goes_on(engine: Engine, tmp_path: Path) -> None:
    adapter = engine.adapter("p-000009", tmp_path)
    adapter.folder.mkdir()
    (adapter.folder / "adapter_config.json").write_text("{}")
    with pytest.raises(FailedPrecondition, match="p-000009"):
        await engine.load(adapter)
    await finish(await begin(engine))
    assert not engine.dead
