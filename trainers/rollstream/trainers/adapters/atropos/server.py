"""Answers Atropos' trainers from the stream, in the place of Atropos' own server.

Duty: `/register`, `/batch`, `/status`, `/info`, `/wandb_info` and `/latest_example` as trainers know them; environments
are refused, as RollStream is the environment.

Invariants: a batch has exactly the registered number of sequences, of groups in the order of the stream, none older
than ``max_staleness``; ``current_step`` never falls; a batch counts as trained on when the trainer asks for the next
one, and that is in the state file before the answer leaves.

Crash of the server: the trainer's next question, to the server started again, finishes the batch that it has; no
registration is needed. If the server dies between the answer with a batch and the word in the file that it has left,
the batch comes again. Crash of the trainer: it registers, and gets the batch that it had not finished; one that
registers with a ``starting_step`` equal to ``current_step`` has finished it. Two trainers must not ask one server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from rollstream.schemas.errors import InvalidMessageError, SettingsError
from rollstream.trainers.adapters.atropos.registration import read_registration, saved_registration
from rollstream.trainers.adapters.atropos.scored_groups import GroupRules
from rollstream.trainers.adapters.atropos.served_batches import ServedBatches
from rollstream.trainers.adapters.atropos.shelf import GroupShelf
from rollstream.trainers.adapters.checkpoints import SETTLE_S, CheckpointWatch
from rollstream.trainers.adapters.group_source import GroupSource
from rollstream.trainers.adapters.progress_file import ProgressFile
from rollstream.trainers.settings import TrainerSettings
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How trainers are served.

    Attributes:
        state_file: where the server's place in the stream is kept.
        port: 0: a free one.
        rules: which groups are served; ``max_token_len`` is the trainer's if it is None.
        max_queued_batches: batches held ready; more is staler.
        pauses: answer "none yet" once after each batch, see `served_batches`. Without it a batch counts as trained on
            at the very next question: for trainers that ask only after their step.
        checkpoints: directory in which the trainer saves ``step_<n>``, to be published; None: it is not watched.
        settle_s: a checkpoint is whole when nothing in it has changed for this long.
        answer_s: a trainer that has not taken its batch within this time has left; the next one is not kept waiting.
    """

    state_file: Path
    host: str = "127.0.0.1"
    port: int = 8000
    rules: GroupRules = field(default_factory=GroupRules)
    max_queued_batches: int = 1
    pauses: bool = True
    checkpoints: Path | None = None
    settle_s: float = SETTLE_S
    answer_s: float = 120.0


async def run_server(
    kafka: KafkaSettings,
    trainer: TrainerSettings,
    options: ServeOptions,
    stop: asyncio.Event,
    *,
    on_listening: Callable[[int], None] | None = None,
) -> None:
    """Serve until ``stop`` is set; ``on_listening`` hears the port.

    Raises:
        SettingsError: the port is taken, or the state file is unusable.
        DataLossError: records that were still needed are gone.
    """
    progress = ProgressFile(options.state_file)
    ledger = ServedBatches(await asyncio.to_thread(progress.load), pauses=options.pauses)
    watch = CheckpointWatch(options.settle_s)
    source = GroupSource(kafka, trainer, restored=ledger.stream_state, checkpoints=options.checkpoints, watch=watch)
    async with source:
        shelf = GroupShelf(
            source,
            ledger,
            options.rules,
            max_queued_batches=options.max_queued_batches,
            registration=saved_registration(ledger.registration),
        )
        server = _Server(source, shelf, ledger, progress, trainer.max_staleness, options.answer_s)
        runner = web.AppRunner(server.app(), access_log=None)
        await runner.setup()
        try:
            await _listen(runner, options, on_listening)
            await shelf.fill(stop)
        finally:
            await runner.cleanup()


async def _listen(runner: web.AppRunner, options: ServeOptions, on_listening: Callable[[int], None] | None) -> None:
    try:
        await web.TCPSite(runner, options.host, options.port).start()
    except OSError as error:
        raise SettingsError(f"cannot listen on {options.host}:{options.port}: {error}; choose another port") from error
    if on_listening is not None:
        on_listening(int(runner.addresses[0][1]))


class _Server:
    def __init__(
        self,
        source: GroupSource,
        shelf: GroupShelf,
        ledger: ServedBatches,
        progress: ProgressFile,
        max_staleness: int | None,
        answer_s: float,
    ) -> None:
        self._source = source
        self._ledger = ledger
        self._progress = progress
        self._max_staleness = max_staleness
        self._answer_s = answer_s
        self._shelf = shelf
        self._asking = asyncio.Lock()
        """One request at a time changes the ledger and its file."""

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self._root),
                web.get("/info", self._info),
                web.get("/wandb_info", self._wandb_info),
                web.get("/status", self._status),
                web.get("/latest_example", self._latest_example),
                web.get("/batch", self._batch),
                web.post("/register", self._register),
                web.get("/reset_data", self._refuse),
                web.get("/status-env", self._refuse),
                web.post("/register-env", self._refuse),
                web.post("/disconnect-env", self._refuse),
                web.post("/scored_data", self._refuse),
                web.post("/scored_data_list", self._refuse),
            ]
        )
        return app

    async def _save(self, *, has_left: bool = True) -> None:
        await asyncio.to_thread(self._progress.save, self._ledger.saved(has_left=has_left))

    async def _root(self, request: web.Request) -> web.Response:
        return web.json_response({"message": "AtroposLib API, served by RollStream"})

    async def _info(self, request: web.Request) -> web.Response:
        known = self._shelf.registration
        return web.json_response(
            {"batch_size": known.batch_size if known else -1, "max_token_len": known.max_token_len if known else -1}
        )

    async def _wandb_info(self, request: web.Request) -> web.Response:
        known = self._shelf.registration
        return web.json_response(
            {"group": known.wandb_group if known else None, "project": known.wandb_project if known else None}
        )

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response({"current_step": self._ledger.step, "queue_size": self._ledger.waiting_groups})

    async def _latest_example(self, request: web.Request) -> web.Response:
        return web.json_response(self._shelf.latest)

    async def _register(self, request: web.Request) -> web.Response:
        try:
            registration = read_registration(await request.read())
        except InvalidMessageError as error:
            return web.json_response({"detail": str(error)}, status=HTTPStatus.UNPROCESSABLE_ENTITY)
        async with self._asking:
            self._shelf.registration = registration
            self._ledger.register(msgspec.to_builtins(registration), registration.starting_step)
            await self._save()
        self._shelf.make_room()
        return web.json_response({"uuid": uuid.uuid4().int})

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        known = self._shelf.registration
        if known is None:
            message = "Trainer not registered. Call /register first."
            return web.json_response({"status": "error", "message": message, "batch": []})
        async with self._asking:
            had_batch = self._ledger.has_batch_out
            if not self._ledger.asked():
                return web.json_response({"batch": None})
            batch = self._ledger.next_batch(
                known.batch_size, version=self._source.version, max_staleness=self._max_staleness
            )
            has_left = False
            try:
                if had_batch or batch is not None:
                    await self._save(has_left=False)
                self._shelf.make_room()
                if batch is None:
                    return web.json_response({"batch": None})
                response = web.Response(
                    body=await asyncio.to_thread(_encoded, {"batch": batch}), content_type="application/json"
                )
                has_left = await self._send(request, response)
            finally:
                if batch is not None and not has_left:
                    self._ledger.take_back()
            if has_left:
                await self._save()
            return response

    async def _send(self, request: web.Request, response: web.Response) -> bool:
        """Whether all of it was taken."""
        response.enable_compression()
        try:
            async with asyncio.timeout(self._answer_s):
                await response.prepare(request)
                await response.write_eof()
        except (ConnectionError, TimeoutError):
            logger.warning("the trainer left before it had its batch; it will be in the next one")
            if request.transport is not None:
                request.transport.abort()
            return False
        return True

    async def _refuse(self, request: web.Request) -> web.Response:
        message = f"{request.path}: this server is fed by RollStream; environments and resets have no place here"
        return web.json_response({"detail": message}, status=HTTPStatus.CONFLICT)


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body, allow_nan=False).encode()
