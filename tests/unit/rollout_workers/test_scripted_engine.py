from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.rollout_workers.engine import Engine, Generation, PolicyRef
from rollstream.rollout_workers.scripted_engine import (
    LatencyProfile,
    ScriptedEngine,
    ScriptedFaults,
    ScriptPrompt,
    decode_bytes,
    encode_bytes,
    scripted_logprob,
)
from rollstream.schemas.errors import DataError, EngineError, PolicyFilesError
from rollstream.schemas.tasks import SamplingParams

STOP = 256
SLOW = LatencyProfile(token_s=0.002)


def say_twenty_letters(prompt: ScriptPrompt) -> str:
    return "".join(prompt.rng.choice("abcdefgh") for _ in range(20))


def shout_the_prompt(prompt: ScriptPrompt) -> str:
    return prompt.text.upper()


async def ask(engine: Engine, request_id: str = "r", *, prompt: str = "hello", max_tokens: int = 100) -> Generation:
    return await engine.generate(
        encode_bytes(prompt), SamplingParams(), request_id, max_tokens=max_tokens, stop_token_ids=[STOP]
    )


async def until_running(engine: ScriptedEngine, count: int) -> None:
    async with asyncio.timeout(5):
        while engine.running < count:  # noqa: ASYNC110 -- the engine has no event for it
            await asyncio.sleep(0)


async def test_a_turn_is_the_scripts_text_and_the_stop_token() -> None:
    generation = await ask(ScriptedEngine(shout_the_prompt))
    assert generation.ids == [*b"HELLO", STOP]
    assert generation.finish_reason == "stop"
    assert [(span.start, span.end, span.version) for span in generation.spans] == [(0, 6, 0)]


async def test_the_same_seed_and_request_say_the_same_and_others_do_not() -> None:
    first, again = ScriptedEngine(say_twenty_letters, seed=1), ScriptedEngine(say_twenty_letters, seed=1)
    other_seed = ScriptedEngine(say_twenty_letters, seed=2)
    said = await ask(first, "a")
    assert await ask(first, "b") != said
    assert await ask(again, "a") == said
    assert await ask(other_seed, "a") != said


async def test_a_turn_longer_than_max_tokens_is_cut_and_says_length() -> None:
    generation = await ask(ScriptedEngine(shout_the_prompt), max_tokens=3)
    assert (generation.ids, generation.finish_reason) == ([*b"HEL"], "length")


async def test_a_turn_that_ends_with_the_last_token_allowed_is_not_cut() -> None:
    generation = await ask(ScriptedEngine(shout_the_prompt), max_tokens=6)
    assert generation.finish_reason == "stop"


async def test_the_context_bounds_a_turn() -> None:
    generation = await ask(ScriptedEngine(shout_the_prompt, max_model_len=9))
    assert (generation.ids, generation.finish_reason) == ([*b"HELL"], "length")


@pytest.mark.parametrize(("prompt", "max_tokens"), [("", 5), ("x" * 10, 5), ("hello", 0)])
async def test_a_prompt_without_room_is_the_datas_fault(prompt: str, max_tokens: int) -> None:
    with pytest.raises(DataError, match="'r'"):
        await ask(ScriptedEngine(shout_the_prompt, max_model_len=10), prompt=prompt, max_tokens=max_tokens)


async def test_slots_bound_what_runs_and_the_rest_waits_in_order() -> None:
    engine = ScriptedEngine(shout_the_prompt, max_num_seqs=2, latency=SLOW)
    finished: list[int] = []

    async def one(number: int) -> None:
        await ask(engine, str(number))
        finished.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(one(number))
        await until_running(engine, 2)
        assert (engine.running, engine.waiting) == (2, 4)
    assert finished == [0, 1, 2, 3, 4, 5]
    assert (engine.running, engine.waiting) == (0, 0)


async def test_tokens_of_a_request_belong_to_the_policy_that_served_when_they_were_due(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda _: "x" * 99, latency=SLOW)
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(ask(engine, prompt="hi"))
        await until_running(engine, 1)
        await asyncio.sleep(0.05)
        await engine.update_weights(tmp_path, PolicyRef(7, 3))
    generation = asked.result()
    old, new = generation.spans
    assert (old.start, old.version, old.lineage) == (0, 0, 0)
    assert (new.start, new.end, new.version, new.lineage) == (old.end, 100, 3, 7)
    expected = [
        scripted_logprob(PolicyRef(7, 3) if index >= new.start else PolicyRef(), 2 + index, token)
        for index, token in enumerate(generation.ids)
    ]
    assert generation.logprobs == expected
    assert engine.policy == PolicyRef(7, 3)


async def test_nobody_advances_while_weights_are_loaded(tmp_path: Path) -> None:
    engine = ScriptedEngine(shout_the_prompt, latency=LatencyProfile(token_s=0.02, load_s=0.2))
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(ask(engine))
        await until_running(engine, 1)
        await engine.update_weights(tmp_path, PolicyRef(0, 1))
        assert not asked.done()
    assert loop.time() - started >= 0.2 + 6 * 0.02 - 0.001
    assert asked.result().spans[-1].version == 1


async def test_a_missing_directory_leaves_the_old_policy_serving(tmp_path: Path) -> None:
    engine = ScriptedEngine(shout_the_prompt)
    with pytest.raises(PolicyFilesError, match="nowhere"):
        await engine.update_weights(tmp_path / "nowhere", PolicyRef(0, 1))
    assert engine.policy == PolicyRef()
    assert (await ask(engine)).finish_reason == "stop"


async def test_an_aborted_request_returns_what_it_has() -> None:
    engine = ScriptedEngine(lambda _: "x" * 1000, latency=SLOW)
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(ask(engine, max_tokens=2000))
        await until_running(engine, 1)
        await asyncio.sleep(0.02)
        await engine.abort("r")
    generation = asked.result()
    assert generation.finish_reason == "abort"
    assert 0 < len(generation.ids) < 1000
    assert len(generation.logprobs) == len(generation.ids) == generation.spans[-1].end


async def test_a_request_aborted_while_it_waits_sampled_nothing() -> None:
    engine = ScriptedEngine(shout_the_prompt, max_num_seqs=1, latency=SLOW)
    async with asyncio.TaskGroup() as group:
        group.create_task(ask(engine, "first"))
        second = group.create_task(ask(engine, "second"))
        await until_running(engine, 1)
        await engine.abort("second")
    assert second.result() == Generation([], [], "abort", [])


async def test_a_cancelled_request_gives_its_slot_back() -> None:
    engine = ScriptedEngine(lambda _: "x" * 5000, max_num_seqs=1, max_model_len=9999, latency=SLOW)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await ask(engine, max_tokens=9000)
    assert (engine.running, engine.waiting) == (0, 0)


async def test_a_dead_engine_fails_what_runs_what_waits_and_what_comes() -> None:
    engine = ScriptedEngine(shout_the_prompt, max_num_seqs=1, latency=SLOW)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asyncio.wait_for(expect_death(engine, str(n)), 5)) for n in range(3)]
        await until_running(engine, 1)
        engine.die("pulled the plug")
    assert len(tasks) == 3
    await expect_death(engine, "later")


async def expect_death(engine: ScriptedEngine, request_id: str) -> None:
    with pytest.raises(EngineError, match="pulled the plug"):
        await ask(engine, request_id)


async def test_a_closed_engine_says_so_and_closes_twice() -> None:
    engine = ScriptedEngine(shout_the_prompt)
    await engine.close()
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await ask(engine)


async def test_it_dies_after_as_many_generations_as_told() -> None:
    engine = ScriptedEngine(shout_the_prompt, faults=ScriptedFaults(die_after=2))
    await ask(engine)
    await ask(engine)
    for _ in range(2):
        with pytest.raises(EngineError, match="after 2 generations"):
            await ask(engine)


async def test_every_nth_generation_fails_alone() -> None:
    engine = ScriptedEngine(shout_the_prompt, faults=ScriptedFaults(fail_every=3))
    outcomes: list[bool] = []
    for _ in range(6):
        try:
            await ask(engine)
            outcomes.append(True)
        except EngineError:
            outcomes.append(False)
    assert outcomes == [True, True, False, True, True, False]


async def test_time_is_prefill_plus_tokens_times_the_scale() -> None:
    latency = LatencyProfile(prefill_s_per_token=0.1, token_s=0.5, time_scale=0.02)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await ask(ScriptedEngine(shout_the_prompt, latency=latency))
    assert 0.07 <= loop.time() - started < 0.5


async def test_the_long_tail_is_long_and_rare() -> None:
    latency = LatencyProfile(token_s=0.0005, tail_probability=0.1, tail_factor=40)
    engine = ScriptedEngine(shout_the_prompt, max_num_seqs=200, latency=latency)
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def one(number: int) -> None:
        started = loop.time()
        await ask(engine, str(number))
        times.append(loop.time() - started)

    async with asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(one(number))
    slow = sum(time_s > 0.1 for time_s in times)
    assert 1 <= slow <= 30


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    clean = text.encode(errors="ignore").decode()
    assert decode_bytes(encode_bytes(clean)) == clean


def test_control_ids_decode_to_line_breaks() -> None:
    assert decode_bytes([*b"ab", 300, *b"c"]) == "ab\nc"


@given(st.integers(0, 500), st.integers(0, 10**6), st.integers(0, 2**40), st.integers(0, 2**20))
def test_logprobs_are_negative_and_exact_in_float32(token: int, position: int, lineage: int, version: int) -> None:
    import numpy as np

    logprob = scripted_logprob(PolicyRef(lineage, version), position, token)
    assert -4.0 <= logprob < 0.0
    assert float(np.float32(logprob)) == logprob


def test_policies_are_ordered_by_lineage_then_version_and_survive_text() -> None:
    assert PolicyRef(0, 9) < PolicyRef(1, 0) < PolicyRef(1, 2)
    assert PolicyRef.parse(str(PolicyRef(12, 34))) == PolicyRef(12, 34)
    with pytest.raises(ValueError, match="default"):
        PolicyRef.parse("default")
