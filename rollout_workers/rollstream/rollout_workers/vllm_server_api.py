"""The HTTP interface of a vLLM server, as far as an engine needs it."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import aiohttp
import msgspec

from rollstream.rollout_workers.engine import Generation, checked_generation, read_spans
from rollstream.schemas.errors import EngineError

GENERATE = "/inference/v1/generate"
ABORT = "/inference/v1/abort_requests"
MODELS = "/v1/models"
CONFIGURATION = "/server_info?config_format=json"
WEIGHT_LABEL = "/weight_info"
SET_WEIGHT_LABEL = "/update_weight_version"
PAUSE = "/pause?mode=keep&clear_cache=false"
RPC = "/collective_rpc"
RESET_CACHE = "/reset_prefix_cache?reset_running_requests=true"
RESUME = "/resume"
INTERNAL_ID_PREFIX = "generate-tokens-"

T = TypeVar("T", bound=msgspec.Struct)


class Anything(msgspec.Struct):
    """An answer nobody reads."""


class ServedModel(msgspec.Struct):
    """One entry of ``/v1/models``."""

    id: str
    max_model_len: int


class ServedModels(msgspec.Struct):
    """Answer of ``/v1/models``."""

    data: list[ServedModel]


class ModelConfig(msgspec.Struct):
    """``model``: the folder, as the server sees it."""

    model: str
    logprobs_mode: str


class DeviceConfig(msgspec.Struct):
    """``cpu`` or ``cuda``."""

    device: str


class VllmConfig(msgspec.Struct):
    """The part of the server's configuration that matters here."""

    model_config: ModelConfig
    device_config: DeviceConfig


class ServerInfo(msgspec.Struct):
    """Answer of ``/server_info``."""

    vllm_config: VllmConfig


class WeightLabel(msgspec.Struct):
    """Answer of ``/weight_info``."""

    weight_version: str


class CacheReset(msgspec.Struct):
    """Answer of ``/reset_prefix_cache``."""

    success: bool = False


class TokenLogprob(msgspec.Struct):
    """One sampled token's."""

    logprob: float


class Logprobs(msgspec.Struct):
    """One per sampled token."""

    content: list[TokenLogprob] | None = None


class LabelledSpan(msgspec.Struct):
    """Half-open, relative to the sampled ids."""

    version: str
    start: int
    end: int


class Choice(msgspec.Struct):
    """One sampled sequence."""

    token_ids: list[int]
    finish_reason: str | None
    logprobs: Logprobs | None = None
    weight_versions: list[LabelledSpan] | None = None


class GenerateAnswer(msgspec.Struct):
    """Answer of ``/inference/v1/generate``."""

    choices: list[Choice]


class ServerRefusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}: {body[:500]}")
        self.status = status


class VllmServerApi:
    """Calls one server. ``base_url`` without a slash at its end."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._base_url = base_url

    async def get(self, path: str, answer: type[T], *, timeout_s: float) -> T:
        """See ``_call``."""
        return await self._call("GET", path, answer, None, timeout_s)

    async def post(self, path: str, answer: type[T], body: dict[str, Any], *, timeout_s: float) -> T:
        """See ``_call``."""
        return await self._call("POST", path, answer, body, timeout_s)

    async def close(self) -> None:
        """Drop the connections; requests in flight are aborted by the server."""
        await self._session.close()

    async def _call(
        self, method: Literal["GET", "POST"], path: str, answer: type[T], body: dict[str, Any] | None, timeout_s: float
    ) -> T:
        """One request.

        Raises:
            ServerRefusal: the status is not 200.
            EngineError: no answer in time, or one that cannot be read.
        """
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, self._base_url + path, json=body, timeout=timeout) as response:
                content = await response.read()
                if response.status != 200:
                    raise ServerRefusal(response.status, content.decode(errors="replace"))
                return msgspec.json.decode(content or b"{}", type=answer)
        except (aiohttp.ClientError, TimeoutError, RuntimeError) as error:
            raise EngineError(f"the vLLM server at {self._base_url!r} does not answer {path}: {error!r}") from error
        except msgspec.DecodeError as error:
            raise EngineError(f"the answer of the vLLM server to {path} cannot be read: {error}") from error


def read_answer(answer: GenerateAnswer, request_id: str) -> Generation:
    """What was sampled.

    Raises:
        EngineError: logprobs or versions are missing.
    """
    if len(answer.choices) != 1:
        raise EngineError(f"the vLLM server answered request {request_id!r} with {len(answer.choices)} sequences")
    choice = answer.choices[0]
    entries = (choice.logprobs.content if choice.logprobs else None) or []
    spans = read_spans([(span.version, span.start, span.end) for span in choice.weight_versions or []])
    logprobs = [entry.logprob for entry in entries]
    return checked_generation(choice.token_ids, logprobs, choice.finish_reason, spans, request_id)
