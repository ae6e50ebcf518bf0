"""A trainer that publishes every second, and pinned episodes, on the real engine: every token is scored again."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import UNSET

from rollstream.rollout_workers.engine import Engine, Generation, PolicyRef
from rollstream.rollout_workers.engine_settings import VllmSettings, build_engine
from rollstream.rollout_workers.policy_follower import PolicyFollower
from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.tasks import PolicyPin, SamplingParams
from rollstream.transport.policy_files import seal_policy

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # vLLM and torch warn about themselves while they are imported
]

PROMPT = list(range(10, 60))
TOLERANCE = 1e-3
REQUESTS = 8
VERSIONS = 12
TORN = 5
LINEAGE = 5


class Control:
    """What the trainer has announced last."""

    def __init__(self) -> None:
        self.newest: PolicyVersion | None = None
        self.changed = asyncio.Event()

    def latest(self, message_type: type[PolicyVersion], /) -> tuple[PolicyVersion, int] | None:
        return None if self.newest is None else (self.newest, 0)

    async def wait_for_change(self, timeout_s: float) -> bool:
        await self.changed.wait()
        self.changed.clear()
        return True

    def announce(self, version: PolicyVersion) -> None:
        self.newest = version
        self.changed.set()


def published(directories: list[Path], folder: Path) -> list[PolicyVersion]:
    """Versions 1 … VERSIONS, each with one of the sets of weights; one of them is torn after its publication."""
    versions: list[PolicyVersion] = []
    for version in range(1, VERSIONS + 1):
        directory = folder / f"v{version}"
        shutil.copytree(directories[version % len(directories)], directory)
        sha256 = seal_policy(directory)
        if version == TORN:
            weights = directory / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1000])
        versions.append(PolicyVersion(lineage=LINEAGE, version=version, uri=str(directory), manifest_sha256=sha256))
    return versions


def drawn_by(generation: Generation) -> set[PolicyRef]:
    return {PolicyRef(span.lineage, span.version) for span in generation.spans}


async def talk(engine: Engine, follower: PolicyFollower, number: int, ends: asyncio.Event) -> list[Generation]:
    """One generation after the other until the trainer has ended."""
    generations: list[Generation] = []
    while not ends.is_set():
        async with follower.serving(UNSET):
            generations.append(
                await engine.generate(
                    [20 + number, *PROMPT], SamplingParams(), f"{number}", max_tokens=150, stop_token_ids=[]
                )
            )
    return generations


async def test_every_token_is_of_the_version_its_span_names_while_one_comes_every_second_and_some_are_pinned(
    tiny_model_dir: Path,
    policy_dirs: list[Path],
    tmp_path: Path,
    logprob_difference: Callable[..., float],
    record_property: Callable[[str, object], None],
) -> None:
    versions = await asyncio.to_thread(published, policy_dirs, tmp_path)
    files = {PolicyRef(LINEAGE, v.version): policy_dirs[v.version % len(policy_dirs)] for v in versions}
    files[PolicyRef()] = tiny_model_dir
    engine = await build_engine(VllmSettings(), str(tiny_model_dir))
    control, ends = Control(), asyncio.Event()
    follower = PolicyFollower(engine, control, tmp_path / "cache")
    pauses_s: list[float] = []
    pinned: list[Generation] = []
    pin = PolicyPin(lineage=LINEAGE, version=2, uri=versions[1].uri, manifest_sha256=versions[1].manifest_sha256)
    try:
        async with asyncio.TaskGroup() as group:
            following = group.create_task(follower.run())
            talks = [group.create_task(talk(engine, follower, number, ends)) for number in range(REQUESTS)]
            for version in versions:
                control.announce(version)
                await asyncio.sleep(1.0)  # the trainer's pace
                pauses_s.append(follower.last_pause_s)
                if version.version in (4, 8):
                    async with asyncio.timeout(60), follower.serving(pin):
                        pinned.append(
                            await engine.generate(
                                PROMPT, SamplingParams(), "pinned", max_tokens=40, stop_token_ids=[],
                                policy=PolicyRef(LINEAGE, 2),
                            )
                        )  # fmt: skip
            async with asyncio.timeout(60):
                while engine.policy != PolicyRef(LINEAGE, VERSIONS):  # noqa: ASYNC110  -- an engine announces nothing
                    await asyncio.sleep(0.01)
            ends.set()
            generations = [await each for each in talks]
            following.cancel()
    finally:
        await engine.close()
    assert [drawn_by(generation) for generation in pinned] == [{PolicyRef(LINEAGE, 2)}] * 2
    for generation in pinned:
        assert logprob_difference(files, PROMPT, generation) <= TOLERANCE
    everything = [each for of_one in generations for each in of_one]
    worst = max(
        logprob_difference(files, [20 + number, *PROMPT], generation)
        for number, of_one in enumerate(generations)
        for generation in of_one
    )
    assert worst <= TOLERANCE
    assert any(len(drawn_by(generation)) > 1 for generation in everything), "no update met a running request"
    assert PolicyRef(LINEAGE, TORN) not in set[PolicyRef]().union(*map(drawn_by, everything))
    assert follower.refused <= 1
    record_property("policies_loaded", follower.loaded)
    record_property("pause_s", sorted(pauses_s))
    record_property("largest_difference", worst)
    print(f"{follower.loaded} loads, pauses {min(pauses_s):.3f} to {max(pauses_s):.3f} s, worst difference {worst:.1e}")
