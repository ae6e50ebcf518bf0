"""What a run will emit, decided before anything is sent: rows, their order, and digests to recognise the run by."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import islice

import msgspec

from rollstream.producers.columns import ColumnMapping, map_columns
from rollstream.producers.prompt_sources import PromptSource, open_source
from rollstream.producers.settings import ProducerSettings
from rollstream.producers.shuffling import Permutation, row_order
from rollstream.producers.task_building import REWARDS_WITH_ANSWER, Prompt, PromptBuilder, Rejection
from rollstream.schemas.errors import SettingsError


class RunPlan:
    """Prompts of one run in order of emission. The n-th good one is group n, whoever asks and however often."""

    def __init__(self, settings: ProducerSettings, source: PromptSource) -> None:
        self.settings = settings
        if settings.policy is not None and settings.is_train:
            raise SettingsError("a policy can be pinned for evaluation only: set is_train = false (--eval)")
        self._tools = settings.tool_specs
        self.source = source
        self.columns = _columns(settings, source)
        self._builder = PromptBuilder(settings, self.columns)
        end = len(source) if settings.limit is None else min(len(source), settings.skip + settings.limit)
        self.rows = range(settings.skip, end)
        if not self.rows:
            raise SettingsError(f"skip={settings.skip} leaves none of the {len(source)} rows of {source.name!r}")
        self.data_source = settings.data_source or source.name
        self._reading = threading.Lock()
        self._bad_positions: frozenset[int] | None = frozenset() if settings.on_bad_row == "stop" else None
        """Positions in ``rows`` of bad rows; None: not known yet."""

    @property
    def prompts_total(self) -> int:
        """Prompts of all epochs, bad rows included."""
        return len(self.rows) * self.settings.epochs

    def prompts(self) -> Iterator[Prompt | Rejection]:
        """Every row of every epoch; a rejected row takes no group index."""
        for epoch in range(self.settings.epochs):
            order = self._order(epoch)
            for position in range(len(self.rows)):
                yield self._read(order[position])

    def prompt(self, group_index: int) -> Prompt | None:
        """The prompt of a group, read again; None if the run has no such group. Blocking.

        Where bad rows are left out, the first call reads the whole source once to know which they are.
        """
        bad = self._find_bad_positions()
        epoch, number = divmod(group_index, max(1, len(self.rows) - len(bad)))
        if len(bad) == len(self.rows) or not 0 <= epoch < self.settings.epochs:
            return None
        order = self._order(epoch)
        positions = (order[place] for place in range(len(self.rows))) if bad else iter([order[number]])
        position = next(islice((p for p in positions if p not in bad), number if bad else 0, None))
        built = self._read(position)
        return built if isinstance(built, Prompt) else None

    def _order(self, epoch: int) -> Permutation | range:
        return row_order(self.rows, seed=self.settings.seed if self.settings.is_shuffled else None, epoch=epoch)

    def _read(self, position: int) -> Prompt | Rejection:
        """Two threads may ask: one that emits, one that looks up; sources serve one at a time."""
        with self._reading:
            row = self.source.row(self.rows[position])
        return self._builder.build(row)

    def _find_bad_positions(self) -> frozenset[int]:
        if self._bad_positions is None:
            found = (p for p in range(len(self.rows)) if isinstance(self._read(p), Rejection))
            self._bad_positions = frozenset(found)
        return self._bad_positions

    def check_all_rows(self) -> None:
        """Read every row of the plan once.

        Raises:
            SettingsError: one of them is bad.
        """
        for row in self.rows:
            built = self._builder.build(self.source.row(row))
            if isinstance(built, Rejection):
                raise SettingsError(f"{built}; correct the row, or leave bad rows out with --on-bad-row skip")

    def fingerprints(self) -> dict[str, str]:
        """A digest per choice that decides what group n is. Epochs are not among them: a run may grow longer."""
        settings = self.settings
        choices: dict[str, object] = {
            "data": self.source.fingerprint,
            "columns": msgspec.to_builtins(self.columns),
            "prompt_template": settings.prompt_template,
            "system_prompt": settings.system_prompt,
            "answer_extraction": [settings.answer_after, settings.answer_regex],
            "tools": msgspec.to_builtins(self._tools),
            "agent": settings.agent,
            "sampling": msgspec.to_builtins(settings.sampling),
            "limits": msgspec.to_builtins(settings.limits),
            "reward": [settings.reward, settings.reward_arguments],
            "group_size": settings.group_size,
            "shuffle": settings.seed if settings.is_shuffled else None,
            "rows": [self.rows.start, self.rows.stop],
            "is_train": settings.is_train,
        }
        per_row = [settings.reward_arguments_column, settings.workspace_column]
        if per_row != [None, None]:
            choices["columns_per_row"] = per_row
        if settings.policy is not None:
            choices["policy"] = msgspec.to_builtins(settings.policy)
        return {name: _digest(choice) for name, choice in choices.items()}


def open_plan(settings: ProducerSettings) -> RunPlan:
    """Open the source and check every choice against it. Blocking; the caller closes ``plan.source``.

    Raises:
        SettingsError: source, columns, answer extraction or (``on_bad_row="stop"``) a row is wrong.
    """
    source = open_source(settings.source, dataset_config=settings.dataset_config, split=settings.split)
    try:
        plan = RunPlan(settings, source)
        if settings.on_bad_row == "stop":
            plan.check_all_rows()
    except BaseException:
        source.close()
        raise
    return plan


def check_same_run(run_id: str, recorded: Mapping[str, str], planned: Mapping[str, str]) -> None:
    """Refuse to go on with a run under other choices.

    Raises:
        SettingsError: names every choice that differs.
    """
    differing = sorted(name for name in recorded.keys() | planned.keys() if recorded.get(name) != planned.get(name))
    if differing:
        raise SettingsError(
            f"run {run_id!r} was begun with other {', '.join(differing)}; "
            "take the same ones to continue it, or another --run for a new one"
        )


def _columns(settings: ProducerSettings, source: PromptSource) -> ColumnMapping:
    wants_answer = (settings.answer_column, settings.answer_after, settings.answer_regex) != (None, None, None)
    if settings.reward is None and wants_answer:
        raise SettingsError(
            "an answer is named, but no reward that would use it; add --reward numeric, exact or your own"
        )
    if settings.reward is None and settings.reward_arguments_column is not None:
        raise SettingsError("arguments of a reward are named, but no reward that would use them; add --reward")
    known = sorted(source.columns())
    for column in (settings.reward_arguments_column, settings.workspace_column):
        if column is not None and column.split(".")[0] not in known and column not in known:
            raise SettingsError(f"column {column!r} is not in the data, which has {known}")
    is_required = settings.reward in REWARDS_WITH_ANSWER or wants_answer
    return map_columns(
        source.columns(),
        prompt_column=settings.prompt_column,
        answer_column=settings.answer_column,
        prompt_template=settings.prompt_template,
        answer="unused" if settings.reward is None else "required" if is_required else "optional",
    )


def _digest(choice: object) -> str:
    return blake2b(json.dumps(choice, sort_keys=True).encode(), digest_size=8).hexdigest()
