"""The real engine, one per module, against transformers in float32."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from rollstream.rollout_workers.engine import Engine, Generation, PolicyRef
from rollstream.rollout_workers.engine_settings import VllmSettings, build_engine
from rollstream.schemas.errors import DataError, EngineError, PolicyFilesError, SettingsError
from rollstream.schemas.tasks import SamplingParams

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # vLLM and torch warn about themselves while they are imported
]

PROMPT = list(range(10, 60))
TOLERANCE = 1e-4
STOP = 2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny_model_dir: Path) -> AsyncIterator[Engine]:
    engine = await build_engine(VllmSettings(), str(tiny_model_dir))
    yield engine
    await engine.close()
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await ask(engine, "late")


async def ask(
    engine: Engine,
    request_id: str,
    *,
    prompt: list[int] | None = None,
    max_tokens: int = 40,
    sampling: SamplingParams | None = None,
    stop: list[int] | None = None,
) -> Generation:
    return await engine.generate(
        prompt or PROMPT, sampling or SamplingParams(), request_id, max_tokens=max_tokens, stop_token_ids=stop or []
    )


async def test_logprobs_are_those_of_transformers(
    engine: Engine, tiny_model_dir: Path, logprob_difference: Callable[..., float]
) -> None:
    prompts = [[20 + number, *PROMPT] for number in range(8)]
    generations = await asyncio.gather(*(ask(engine, str(n), prompt=prompt) for n, prompt in enumerate(prompts)))
    for prompt, generation in zip(prompts, generations, strict=True):
        assert (len(generation.ids), generation.finish_reason) == (40, "length")
        assert logprob_difference({engine.policy: tiny_model_dir}, prompt, generation) <= TOLERANCE


async def test_logprobs_are_of_the_distribution_that_was_drawn_from(
    engine: Engine, tiny_model_dir: Path, logprob_difference: Callable[..., float]
) -> None:
    generation = await ask(engine, "hot", sampling=SamplingParams(temperature=2.0))
    assert logprob_difference({engine.policy: tiny_model_dir}, PROMPT, generation, 2.0) <= TOLERANCE
    assert logprob_difference({engine.policy: tiny_model_dir}, PROMPT, generation, 1.0) > 0.1


async def test_only_the_given_stop_tokens_end_a_turn_and_they_are_part_of_it(engine: Engine) -> None:
    free = await ask(engine, "free", max_tokens=60, sampling=SamplingParams(temperature=0.0))
    stop = free.ids[10]
    stopped = await ask(engine, "stopped", sampling=SamplingParams(temperature=0.0), stop=[stop])
    first = free.ids.index(stop)
    assert (stopped.ids, stopped.finish_reason) == (free.ids[: first + 1], "stop")


async def test_tokens_around_updates_carry_the_version_that_drew_them(
    engine: Engine, policy_dirs: list[Path], logprob_difference: Callable[..., float]
) -> None:
    policies = {engine.policy: policy_dirs[0]}
    prompts = [[20 + number, *PROMPT] for number in range(8)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(ask(engine, f"long-{n}", prompt=prompt, max_tokens=900))
            for n, prompt in enumerate(prompts)
        ]
        for version, directory in enumerate(policy_dirs[1:], start=1):
            await ask(engine, f"between-{version}", max_tokens=20)
            policies[PolicyRef(5, version)] = directory
            await engine.update_weights(directory, PolicyRef(5, version))
    assert engine.policy == PolicyRef(5, 3)
    for prompt, task in zip(prompts, tasks, strict=True):
        generation = task.result()
        assert [(span.lineage, span.version) for span in generation.spans] == [(0, 0), (5, 1), (5, 2), (5, 3)]
        assert logprob_difference(policies, prompt, generation) <= TOLERANCE
    await engine.update_weights(policy_dirs[0], PolicyRef(6, 0))


async def test_an_update_that_is_cancelled_is_finished_first(engine: Engine, policy_dirs: list[Path]) -> None:
    update = asyncio.ensure_future(engine.update_weights(policy_dirs[1], PolicyRef(7, 1)))
    running = asyncio.ensure_future(ask(engine, "running", max_tokens=600))
    await ask(engine, "short", max_tokens=1)
    update.cancel()
    await asyncio.wait([update])
    generation = await running
    last = generation.spans[-1]
    assert PolicyRef(last.lineage, last.version) == engine.policy
    await engine.update_weights(policy_dirs[0], PolicyRef(8, 0))


async def test_bad_policies_are_refused_and_the_old_one_serves_on(
    engine: Engine, bad_policy_dirs: dict[str, Path], tiny_model_dir: Path, logprob_difference: Callable[..., float]
) -> None:
    before = engine.policy
    for words, directory in bad_policy_dirs.items():
        with pytest.raises(PolicyFilesError, match=words):
            await engine.update_weights(directory, PolicyRef(99, 1))
    assert engine.policy == before
    generation = await ask(engine, "after")
    assert logprob_difference({before: tiny_model_dir}, PROMPT, generation) <= TOLERANCE


async def test_an_aborted_request_returns_what_it_has(engine: Engine) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ask(engine, "long", max_tokens=900))
        await ask(engine, "sign-of-life", max_tokens=20)
        await engine.abort("long")
    generation = task.result()
    assert generation.finish_reason == "abort"
    assert 0 < len(generation.ids) == len(generation.logprobs) == generation.spans[-1].end < 900
    await engine.abort("long")


async def test_a_cancelled_request_leaves_room_and_the_engine_alive(engine: Engine) -> None:
    cancelled = asyncio.ensure_future(ask(engine, "cancelled", max_tokens=900))
    await ask(engine, "sign-of-life", max_tokens=20)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled()
    assert len((await ask(engine, "cancelled", max_tokens=5)).ids) == 5


async def test_the_same_request_id_twice_is_two_generations(engine: Engine) -> None:
    first, second = await asyncio.gather(ask(engine, "twin", max_tokens=20), ask(engine, "twin", max_tokens=30))
    assert (len(first.ids), len(second.ids)) == (20, 30)


async def test_what_cannot_be_run_is_the_datas_fault(engine: Engine) -> None:
    with pytest.raises(DataError, match="max_model_len"):
        await ask(engine, "long", prompt=[5] * engine.max_model_len)
    with pytest.raises(DataError, match="'foreign'"):
        await ask(engine, "foreign", prompt=[5, 10**6])
    at_the_edge = await ask(engine, "edge", prompt=[5] * (engine.max_model_len - 3))
    assert (len(at_the_edge.ids), at_the_edge.finish_reason) == (3, "length")


async def test_a_missing_or_wrong_model_folder_is_named(tmp_path: Path) -> None:
    for folder, words in (("", "no model is set"), (str(tmp_path / "gone"), "gone"), (str(tmp_path), "no config.json")):
        with pytest.raises(SettingsError, match=words):
            await build_engine(VllmSettings(), folder)


@pytest.mark.slow
async def test_a_dead_engine_process_fails_what_runs_and_what_comes(tiny_model_dir: Path) -> None:
    engine = await build_engine(VllmSettings(max_num_seqs=8), str(tiny_model_dir))
    try:
        running = asyncio.ensure_future(ask(engine, "running", max_tokens=900))
        await ask(engine, "sign-of-life", max_tokens=5)
        os.kill(engine_process(os.getpid()), signal.SIGKILL)
        with pytest.raises(EngineError, match="'running'"):
            await asyncio.wait_for(running, 30)
        with pytest.raises(EngineError, match="'later'"):
            await asyncio.wait_for(ask(engine, "later"), 30)
        with pytest.raises(EngineError):
            await engine.update_weights(tiny_model_dir, PolicyRef(1, 1))
    finally:
        await engine.close()


@pytest.mark.slow
async def test_closing_fails_what_runs_and_is_no_failure_of_vllm(
    tiny_model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = await build_engine(VllmSettings(max_num_seqs=8), str(tiny_model_dir))
    running = asyncio.ensure_future(ask(engine, "running", max_tokens=900))
    await ask(engine, "sign-of-life", max_tokens=5)
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await asyncio.wait_for(running, 30)
    assert "EngineDeadError" not in "".join(capfd.readouterr())


@pytest.mark.slow
async def test_a_tied_output_layer_follows_an_update(
    tied_policy_dirs: list[Path], logprob_difference: Callable[..., float]
) -> None:
    old, new = tied_policy_dirs
    engine = await build_engine(VllmSettings(max_num_seqs=8), str(old))
    try:
        generation = await ask(engine, "before")
        assert logprob_difference({PolicyRef(): old}, PROMPT, generation) <= TOLERANCE
        await engine.update_weights(new, PolicyRef(0, 1))
        generation = await ask(engine, "after")
        assert logprob_difference({PolicyRef(0, 1): new}, PROMPT, generation) <= TOLERANCE
    finally:
        await engine.close()


START_AND_WAIT = """
import asyncio, sys
from rollstream.rollout_workers.engine_settings import VllmSettings, build_engine

async def main():
    await build_engine(VllmSettings(max_num_seqs=8), sys.argv[1])
    print("ready", flush=True)
    await asyncio.sleep(300)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_killed_worker_leaves_no_engine_process(tiny_model_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(START_AND_WAIT)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(tiny_model_dir), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert worker.stdout is not None
    assert await asyncio.wait_for(worker.stdout.readline(), 120) == b"ready\n"
    orphan = os.pidfd_open(engine_process(worker.pid))
    worker.kill()
    await worker.wait()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(orphan, ended.set)
    await asyncio.wait_for(ended.wait(), 10)
    asyncio.get_running_loop().remove_reader(orphan)
    os.close(orphan)


def engine_process(owner_pid: int) -> int:
    """The newest child of a process that is vLLM's engine."""
    children = Path(f"/proc/{owner_pid}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return max(pid for pid in pids if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes())
