"""A vLLM server that runs elsewhere, as an engine: token ids both ways, logprobs and the version of every token.

The server has to be started with ``--enable-scale-out --logprobs-mode processed_logprobs`` and
``VLLM_SERVER_DEV_MODE=1`` (the endpoints that change weights; never bind such a server to a public address).

Invariants: what the server lacks is said at the start; a token is labelled with the weights that drew it; policy
directories are checked before the server is asked to load them, and have to be visible to it under the same path. One
rollout worker per server: several would pause it under one another's feet. An update that fails half-way leaves weights
nobody can name: the engine counts as dead from then on. A server that is only away fails single requests; they are
retried by their episodes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from rollstream.rollout_workers import vllm_server_api as api
from rollstream.rollout_workers.engine import (
    Generation,
    PolicyKind,
    PolicyRef,
    check_pinned,
    policy_changed,
    tokens_allowed,
)
from rollstream.rollout_workers.engine_settings import VllmServerSettings
from rollstream.rollout_workers.vllm_server_api import ServerRefusal, VllmServerApi
from rollstream.rollout_workers.weight_files import Shape, check_weights_fit, has_tied_head, read_config, read_shapes
from rollstream.schemas.errors import DataError, EngineError, PolicyFilesError, SettingsError
from rollstream.schemas.tasks import SamplingParams

logger = logging.getLogger(__name__)

LOGPROBS_MODE = "processed_logprobs"
UNTOUCHED_LABEL = "default"
LOOK_AGAIN_S = 0.5
CONTROL_TIMEOUT_S = 60.0
KEPT_CONNECTION_S = 2.0
"""vLLM closes connections after 5 idle seconds; what is sent on one just then would be lost."""
DATA_STATUSES = (400, 422)
MISSING_STATUSES = (401, 403, 404)
DEV_MODE = "the environment VLLM_SERVER_DEV_MODE=1"
NEEDS_A_LIST_OF_PACKAGES = (
    "To say how it is configured, vLLM lists the packages of its environment: install pip there, or put uv on its PATH"
)

T = TypeVar("T")


class VllmServerEngine:
    """See the module; made by ``connect``."""

    logprobs_mode = LOGPROBS_MODE
    serves_adapters = False
    held_policies: frozenset[PolicyRef] = frozenset()

    def __init__(self, server: VllmServerApi, settings: VllmServerSettings) -> None:
        self.policy = PolicyRef()
        self.max_model_len = 0
        self._server = server
        self._settings = settings
        self._url = str(settings.base_url)
        self._model = ""
        self._model_folder = ""
        self._shapes: Mapping[str, Shape] | None = None
        self._refuses_updates: str | None = None
        self._instance = uuid.uuid4().hex[:8]
        self._numbers = itertools.count()
        self._in_flight: dict[str, set[str]] = {}
        self._updating = asyncio.Lock()
        self._death: str | None = None

    @classmethod
    async def connect(cls, settings: VllmServerSettings) -> VllmServerEngine:
        """Wait until the server is healthy and check that it can do what an engine has to.

        Raises:
            SettingsError: it cannot; the message names the flags it lacks.
            EngineError: it did not become healthy in time.
        """
        headers: dict[str, str] = {}
        if settings.api_key is not None:
            headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
        connector = aiohttp.TCPConnector(limit=settings.max_connections, keepalive_timeout=KEPT_CONNECTION_S)
        session = aiohttp.ClientSession(headers=headers, connector=connector)
        engine = cls(VllmServerApi(session, str(settings.base_url).rstrip("/")), settings)
        try:
            await engine._wait_until_healthy()
            await engine._read_model()
            await engine._read_configuration()
            await engine._label_weights()
            await engine._probe()
        except BaseException:
            await engine.close()
            raise
        return engine

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        request_id: str,
        *,
        max_tokens: int,
        stop_token_ids: Sequence[int],
        policy: PolicyRef | None = None,
    ) -> Generation:
        """See `Engine`."""
        allowed = tokens_allowed(prompt_ids, max_tokens, self.max_model_len, request_id)
        self._raise_if_dead(request_id)
        if policy is not None and policy != self.policy:
            raise policy_changed(policy, self.policy, request_id)
        server_id = f"{request_id}-{self._instance}-{next(self._numbers)}"
        body = self._request_body(prompt_ids, sampling, server_id, allowed, stop_token_ids)
        self._in_flight.setdefault(request_id, set()).add(server_id)
        try:
            answer = await self._server.post(
                api.GENERATE, api.GenerateAnswer, body, timeout_s=self._settings.request_timeout_s
            )
        except ServerRefusal as refusal:
            failure = DataError if refusal.status in DATA_STATUSES else EngineError
            raise failure(f"the vLLM server refuses request {request_id!r}: {refusal}") from refusal
        finally:
            self._forget(request_id, server_id)
        self._raise_if_dead(request_id)
        return check_pinned(api.read_answer(answer, request_id), policy, request_id)

    async def abort(self, request_id: str) -> None:
        """See `Engine`."""
        if server_ids := self._in_flight.get(request_id):
            body = {"request_ids": [api.INTERNAL_ID_PREFIX + server_id for server_id in server_ids]}
            try:
                await self._server.post(api.ABORT, api.Anything, body, timeout_s=CONTROL_TIMEOUT_S)
            except ServerRefusal as refusal:
                raise EngineError(f"the vLLM server did not abort request {request_id!r}: {refusal}") from refusal

    async def update_weights(self, path: Path | None, policy: PolicyRef, *, kind: PolicyKind = "full") -> None:
        """See `Engine`. The server opens ``path`` itself."""
        self._check_kind(kind, policy)
        async with self._updating:
            self._raise_if_dead(f"update to {policy}")
            if path is not None:
                await asyncio.to_thread(self._check_files, path)
            load = asyncio.ensure_future(self._load(path or Path(self._model_folder), policy))
            try:
                await asyncio.shield(load)
            finally:
                # Cancelled or not, an update is finished: weights and their label must agree.
                if not load.done():
                    await asyncio.wait([load])

    async def hold_adapter(self, path: Path, policy: PolicyRef) -> None:
        """See `Engine`: a server takes none."""
        self._check_kind("lora", policy)

    def release_adapter(self, policy: PolicyRef) -> None:
        """See `Engine`: a server holds none."""

    async def close(self) -> None:
        """See `Engine`. The server stays up."""
        self._death = self._death or "it is closed"
        await self._server.close()

    async def _wait_until_healthy(self) -> None:
        last = "no answer"
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                while True:
                    try:
                        await self._server.get("/health", api.Anything, timeout_s=CONTROL_TIMEOUT_S)
                    except (EngineError, ServerRefusal) as error:
                        last = str(error)
                        await asyncio.sleep(LOOK_AGAIN_S)
                    else:
                        return
        except TimeoutError as error:
            raise EngineError(
                f"no healthy vLLM server at {self._url!r} within {self._settings.start_timeout_s:g} s: {last}"
            ) from error

    async def _read_model(self) -> None:
        models = await self._ask(
            self._server.get(api.MODELS, api.ServedModels, timeout_s=CONTROL_TIMEOUT_S), "an api_key that fits"
        )
        served = {model.id: model for model in models.data}
        self._model = self._settings.served_model or next(iter(served), "")
        if self._model not in served:
            raise SettingsError(
                f"the vLLM server at {self._url!r} serves {sorted(served)}, not {self._model!r}: correct served_model"
            )
        self.max_model_len = served[self._model].max_model_len

    async def _read_configuration(self) -> None:
        asking = self._server.get(api.CONFIGURATION, api.ServerInfo, timeout_s=CONTROL_TIMEOUT_S)
        try:
            info = await self._ask(asking, DEV_MODE)
        except EngineError as error:
            if isinstance(error.__cause__, ServerRefusal) and error.__cause__.status == 500:
                raise SettingsError(f"{error}. {NEEDS_A_LIST_OF_PACKAGES}") from error
            raise
        model = info.vllm_config.model_config
        self._model_folder = model.model
        if model.logprobs_mode != LOGPROBS_MODE:
            raise SettingsError(
                f"the vLLM server at {self._url!r} returns {model.logprobs_mode!r}: start it with "
                f"--logprobs-mode {LOGPROBS_MODE}"
            )
        try:
            config = await asyncio.to_thread(read_config, Path(model.model))
            shapes = await asyncio.to_thread(read_shapes, Path(model.model))
        except PolicyFilesError:
            logger.warning(
                "the model %r of the vLLM server is not visible here: policies are only checked for completeness",
                model.model,
            )
            return
        self._shapes = shapes
        if info.vllm_config.device_config.device == "cpu" and has_tied_head(config, shapes):
            self._refuses_updates = "a vLLM server on a CPU keeps the old output layer of a model with tied embeddings"

    async def _label_weights(self) -> None:
        answer = await self._ask(
            self._server.get(api.WEIGHT_LABEL, api.WeightLabel, timeout_s=CONTROL_TIMEOUT_S), DEV_MODE
        )
        if answer.weight_version == UNTOUCHED_LABEL:
            await self._ask(self._control(api.SET_WEIGHT_LABEL, {"new_version": str(self.policy)}), DEV_MODE)
            return
        try:
            self.policy = PolicyRef.parse(answer.weight_version)
        except ValueError as error:
            raise SettingsError(
                f"the weights of the vLLM server at {self._url!r} carry the foreign label {answer.weight_version!r}: "
                "restart it"
            ) from error

    async def _probe(self) -> None:
        body = self._request_body([0], SamplingParams(), f"probe-{self._instance}", 1, [])
        answer = await self._ask(
            self._server.post(api.GENERATE, api.GenerateAnswer, body, timeout_s=CONTROL_TIMEOUT_S),
            "the flag --enable-scale-out",
        )
        api.read_answer(answer, "probe")

    def _check_kind(self, kind: PolicyKind, policy: PolicyRef) -> None:
        if kind == "lora":
            raise PolicyFilesError(
                f"policy {policy} is a LoRA adapter, which a vLLM server is not given: run vLLM in the worker "
                "(engine.kind = 'vllm' with max_lora_rank), or merge the adapter and publish the whole model"
            )

    def _check_files(self, path: Path) -> None:
        if self._refuses_updates is not None:
            raise PolicyFilesError(f"{str(path)!r} is not loaded: {self._refuses_updates}")
        if self._shapes is None:
            read_config(path)
            read_shapes(path)
        else:
            check_weights_fit(path, self._shapes)

    async def _load(self, path: Path, policy: PolicyRef) -> None:
        try:
            await self._control(api.PAUSE, {})
            try:
                await self._control(api.RPC, {"method": "reload_weights", "kwargs": {"weights_path": str(path)}})
                await self._control(api.SET_WEIGHT_LABEL, {"new_version": str(policy)})
                reset = await self._server.post(
                    api.RESET_CACHE, api.CacheReset, {}, timeout_s=self._settings.update_timeout_s
                )
                if not reset.success:
                    raise EngineError("the vLLM server did not reset its prefix cache")
            finally:
                await self._control(api.RESUME, {})
        except (EngineError, ServerRefusal) as error:
            self._death = f"loading {str(path)!r} as policy {policy} failed half-way: {error}"
            raise EngineError(f"the engine is dead, {self._death}; restart the vLLM server and this worker") from error
        self.policy = policy

    async def _control(self, path: str, body: dict[str, Any]) -> None:
        await self._server.post(path, api.Anything, body, timeout_s=self._settings.update_timeout_s)

    async def _ask(self, call: Awaitable[T], remedy: str) -> T:
        try:
            return await call
        except ServerRefusal as refusal:
            if refusal.status in MISSING_STATUSES:
                raise SettingsError(f"the vLLM server at {self._url!r} lacks {remedy} ({refusal})") from refusal
            raise EngineError(f"the vLLM server at {self._url!r} fails: {refusal}") from refusal

    def _request_body(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        server_id: str,
        max_tokens: int,
        stop_token_ids: Sequence[int],
    ) -> dict[str, Any]:
        return {
            "model": self._model,
            "request_id": server_id,
            "token_ids": list(prompt_ids),
            "sampling_params": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
                "max_tokens": max_tokens,
                "stop_token_ids": list(stop_token_ids),
                "ignore_eos": True,
                "logprobs": 0,
                "detokenize": False,
            },
        }

    def _forget(self, request_id: str, server_id: str) -> None:
        server_ids = self._in_flight[request_id]
        server_ids.discard(server_id)
        if not server_ids:
            del self._in_flight[request_id]

    def _raise_if_dead(self, request_id: str) -> None:
        if self._death is not None:
            raise EngineError(f"request {request_id!r} failed: the engine is dead, {self._death}")
