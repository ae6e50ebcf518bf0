"""The same promises as in process, from a real vLLM server; and what is said of servers that lack a flag."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from pydantic import HttpUrl

from rollstream.rollout_workers.engine import Engine, Generation, PolicyRef
from rollstream.rollout_workers.engine_settings import VllmServerSettings, VllmSettings, build_engine
from rollstream.rollout_workers.vllm_configuration import environment
from rollstream.schemas.errors import DataError, EngineError, PolicyFilesError, SettingsError
from rollstream.schemas.tasks import SamplingParams

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # torch and transformers warn about themselves while they are imported
]

PROMPT = list(range(10, 60))
TOLERANCE = 1e-4
FLAGS = [
    *("--served-model-name", "policy", "--host", "127.0.0.1", "--dtype", "float32", "--max-num-seqs", "64"),
    *("--gpu-memory-utilization", "0.1", "--enforce-eager", "--block-size", "32", "--disable-log-stats"),
    *("--distributed-executor-backend", "uni", "--enable-scale-out", "--logprobs-mode", "processed_logprobs"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def local(port: int, **options: Any) -> VllmServerSettings:
    return VllmServerSettings(base_url=HttpUrl(f"http://127.0.0.1:{port}"), **options)


@pytest.fixture(scope="module")
def server_port(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_model_dir)]
    variables = os.environ | environment(VllmSettings(), "cpu") | {"VLLM_SERVER_DEV_MODE": "1"}
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, *FLAGS, "--port", str(port)], env=variables, stdout=output, stderr=output, start_new_session=True
        )
    yield port
    server.send_signal(signal.SIGINT)
    try:
        server.wait(20)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(server_port: int) -> AsyncIterator[Engine]:
    engine = await build_engine(local(server_port))
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


async def test_logprobs_are_those_of_transformers_at_any_temperature(
    engine: Engine, tiny_model_dir: Path, logprob_difference: Callable[..., float]
) -> None:
    policies = {engine.policy: tiny_model_dir}
    for temperature in (1.0, 2.0):
        generation = await ask(engine, "hot", sampling=SamplingParams(temperature=temperature))
        assert (len(generation.ids), generation.finish_reason) == (40, "length")
        assert logprob_difference(policies, PROMPT, generation, temperature) <= TOLERANCE


async def test_only_the_given_stop_tokens_end_a_turn_and_they_are_part_of_it(engine: Engine) -> None:
    free = await ask(engine, "free", sampling=SamplingParams(temperature=0.0))
    stop = free.ids[10]
    stopped = await ask(engine, "stopped", sampling=SamplingParams(temperature=0.0), stop=[stop])
    assert (stopped.ids, stopped.finish_reason) == (free.ids[: free.ids.index(stop) + 1], "stop")


async def test_tokens_around_updates_carry_the_version_that_drew_them(
    engine: Engine, policy_dirs: list[Path], logprob_difference: Callable[..., float]
) -> None:
    policies = {engine.policy: policy_dirs[0]}
    prompts = [[20 + number, *PROMPT] for number in range(4)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(ask(engine, f"long-{n}", prompt=prompt, max_tokens=900))
            for n, prompt in enumerate(prompts)
        ]
        for version, directory in enumerate(policy_dirs[1:3], start=1):
            await ask(engine, f"between-{version}", max_tokens=20)
            policies[PolicyRef(5, version)] = directory
            await engine.update_weights(directory, PolicyRef(5, version))
    for prompt, task in zip(prompts, tasks, strict=True):
        generation = task.result()
        assert [(span.lineage, span.version) for span in generation.spans] == [(0, 0), (5, 1), (5, 2)]
        assert logprob_difference(policies, prompt, generation) <= TOLERANCE
    await engine.update_weights(policy_dirs[0], PolicyRef(6, 0))


async def test_a_worker_that_comes_later_reads_the_version_from_the_server(
    engine: Engine, server_port: int, policy_dirs: list[Path]
) -> None:
    await engine.update_weights(policy_dirs[0], PolicyRef(7, 4))
    later = await build_engine(local(server_port, served_model="policy"))
    assert later.policy == PolicyRef(7, 4)
    await later.close()


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


async def test_a_cancelled_request_leaves_the_engine_alive(engine: Engine) -> None:
    cancelled = asyncio.ensure_future(ask(engine, "cancelled", max_tokens=900))
    await ask(engine, "sign-of-life", max_tokens=20)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled()
    assert len((await ask(engine, "cancelled", max_tokens=5)).ids) == 5


async def test_what_cannot_be_run_is_the_datas_fault(engine: Engine) -> None:
    with pytest.raises(DataError, match="max_model_len"):
        await ask(engine, "long", prompt=[5] * engine.max_model_len)
    with pytest.raises(DataError, match="'foreign'"):
        await ask(engine, "foreign", prompt=[5, 10**6])


async def test_a_model_the_server_does_not_serve_is_named(server_port: int) -> None:
    with pytest.raises(SettingsError, match=r"'policy'.*'other'"):
        await build_engine(local(server_port, served_model="other"))


async def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(EngineError, match="no healthy vLLM server"):
        await build_engine(local(free_port(), start_timeout_s=0.2))


class FlaglessServer:
    """What a vLLM server answers, flag by flag."""

    def __init__(
        self,
        *,
        dev_mode: bool = True,
        scale_out: bool = True,
        logprobs_mode: str = "processed_logprobs",
        has_pip: bool = True,
    ) -> None:
        self._dev_mode = dev_mode
        self._has_pip = has_pip
        self._scale_out = scale_out
        self._config = {
            "model_config": {"model": "/not/visible", "logprobs_mode": logprobs_mode},
            "device_config": {"device": "cuda"},
        }

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[int]:
        app = web.Application()
        app.router.add_get("/health", self._healthy)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/inference/v1/generate", self._generate)
        if self._dev_mode:
            app.router.add_get("/server_info", self._info)
            app.router.add_get("/weight_info", self._label)
            app.router.add_post("/update_weight_version", self._healthy)
        runner = web.AppRunner(app)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield port
        await runner.cleanup()

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "policy", "max_model_len": 64}]})

    async def _info(self, _: web.Request) -> web.Response:
        if not self._has_pip:
            return web.json_response({"error": "'NoneType' object has no attribute 'splitlines'"}, status=500)
        return web.json_response({"vllm_config": self._config})

    async def _label(self, _: web.Request) -> web.Response:
        return web.json_response({"weight_version": "default"})

    async def _generate(self, _: web.Request) -> web.Response:
        if not self._scale_out:
            return web.json_response({"error": "disabled"}, status=403)
        return web.json_response({"choices": [{"token_ids": [1], "finish_reason": "length"}]})


@pytest.mark.parametrize(
    ("server", "error", "words"),
    [
        (FlaglessServer(dev_mode=False), SettingsError, "VLLM_SERVER_DEV_MODE=1"),
        (FlaglessServer(logprobs_mode="raw_logprobs"), SettingsError, "--logprobs-mode processed_logprobs"),
        (FlaglessServer(scale_out=False), SettingsError, "--enable-scale-out"),
        (FlaglessServer(has_pip=False), SettingsError, "install pip there"),
        (FlaglessServer(), EngineError, "0 logprobs and versions"),
    ],
)
async def test_a_server_that_lacks_something_is_refused_at_the_start(
    server: FlaglessServer, error: type[Exception], words: str
) -> None:
    async with server.listening() as port:
        with pytest.raises(error, match=words):
            await build_engine(local(port))
