from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rollstream.rollout_workers.byte_chat_format import ByteChatFormat
from rollstream.rollout_workers.engine import checked_generation, read_spans
from rollstream.rollout_workers.engine_settings import EngineSettings, ScriptedSettings, VllmSettings, build_engine
from rollstream.rollout_workers.scripted_engine import ScriptPrompt, decode_bytes
from rollstream.rollout_workers.scripts import conversation, load_script, long_tailed
from rollstream.rollout_workers.vllm_configuration import engine_arguments, environment
from rollstream.schemas.errors import EngineError, SettingsError
from rollstream.schemas.tasks import ChatMessage, SamplingParams
from rollstream.schemas.trajectories import VersionSpan

SETTINGS: TypeAdapter[EngineSettings] = TypeAdapter(EngineSettings)
FORMAT = ByteChatFormat()


def test_the_kind_chooses_the_settings() -> None:
    assert isinstance(SETTINGS.validate_python({"kind": "vllm", "max_num_seqs": 8}), VllmSettings)
    scripted = SETTINGS.validate_python({"kind": "scripted", "latency": {"token_s": 0.01}, "faults": {"die_after": 3}})
    assert isinstance(scripted, ScriptedSettings)
    assert (scripted.latency.token_s, scripted.faults.die_after) == (0.01, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "telepathy"},
        {"kind": "vllm", "max_seqs": 3},
        {"kind": "vllm", "max_num_seqs": 0},
        {"kind": "vllm-server"},
        {"kind": "scripted", "latency": {"tokens_s": 0.01}},
        {"kind": "scripted", "faults": {"dies": 1}},
    ],
)
def test_unknown_and_impossible_settings_fail(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SETTINGS.validate_python(wrong)


def test_a_cpu_gets_what_was_measured_to_work() -> None:
    arguments = engine_arguments(VllmSettings(), "folder", "cpu")
    assert arguments["dtype"] == "float32"
    assert arguments["enforce_eager"] is True
    assert arguments["gpu_memory_utilization"] == 0.1
    assert arguments["block_size"] == 32
    assert environment(VllmSettings(cpu_threads=3), "cpu")["OMP_NUM_THREADS"] == "3"


def test_a_gpu_compiles_and_keeps_the_models_dtype() -> None:
    arguments = engine_arguments(VllmSettings(tensor_parallel_size=2), "folder", "gpu")
    assert (arguments["dtype"], arguments["enforce_eager"], arguments["tensor_parallel_size"]) == ("auto", False, 2)
    assert "distributed_executor_backend" not in arguments
    assert "TORCHDYNAMO_DISABLE" not in environment(VllmSettings(), "gpu")


def test_every_engine_returns_processed_logprobs_and_own_arguments_win() -> None:
    settings = VllmSettings(engine_args={"block_size": 64})
    arguments = engine_arguments(settings, "folder", "cpu")
    assert (arguments["logprobs_mode"], arguments["block_size"]) == ("processed_logprobs", 64)


def test_choosing_an_engine_imports_none() -> None:
    code = (
        "import sys, rollstream.rollout_workers.engine_settings, rollstream.rollout_workers.vllm_engine;"
        "sys.exit(any(name in sys.modules for name in ('vllm', 'torch', 'transformers', 'aiohttp')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


async def test_the_arithmetic_script_calls_and_answers() -> None:
    engine = await build_engine(ScriptedSettings())
    ids = FORMAT.render_prompt([ChatMessage(role="user", content="What is 12 + 34?")], [])
    turn = await engine.generate(ids, SamplingParams(), "1", max_tokens=200, stop_token_ids=FORMAT.stop_token_ids)
    call = FORMAT.parse_turn(FORMAT.decode_turn(turn.ids)).calls[0]
    assert (call.name, call.arguments_json) == ("calculator", '{"expression":"12 + 34"}')
    ids += turn.ids + FORMAT.render_tool_results(turn.ids, ["46"])
    turn = await engine.generate(ids, SamplingParams(), "2", max_tokens=200, stop_token_ids=FORMAT.stop_token_ids)
    assert FORMAT.decode_turn(turn.ids) == "The answer is 46."


def test_a_conversation_is_read_back_from_ids() -> None:
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="ünïcode 12 + 3")]
    ids = FORMAT.render_prompt(messages, [])
    assert conversation(ids) == [("system", "Be brief."), ("user", "ünïcode 12 + 3")]


def test_the_long_tailed_script_has_a_long_tail_and_both_endings() -> None:
    texts = [long_tailed(ScriptPrompt([], random.Random(seed), decode_bytes)) for seed in range(200)]
    lengths = sorted(len(text) for text in texts)
    assert lengths[-1] > 5 * lengths[100]
    assert 20 < sum("<tool_call>" in text for text in texts) < 180


@pytest.mark.parametrize("name", ["nobody", "no_such_module:f", "json:nothing", "json:__name__"])
def test_a_script_that_is_none_is_a_wrong_setting(name: str) -> None:
    with pytest.raises(SettingsError, match=name.split(":")[0]):
        load_script(name)


def test_a_script_of_ones_own_is_loaded_by_its_path() -> None:
    assert load_script("rollstream.rollout_workers.scripts:long_tailed") is long_tailed


def test_labels_become_versions_and_empty_spans_vanish() -> None:
    assert read_spans([("0:0", 0, 3), ("0:1", 3, 3), ("2:5", 3, 4)]) == [
        VersionSpan(0, 3, 0, 0),
        VersionSpan(3, 4, 5, 2),
    ]
    with pytest.raises(EngineError, match="default"):
        read_spans([("default", 0, 3)])


@pytest.mark.parametrize(
    ("logprobs", "reason", "spans"),
    [
        ([-1.0], "stop", [VersionSpan(0, 2, 0)]),
        ([-1.0, -1.0], "error", [VersionSpan(0, 2, 0)]),
        ([-1.0, -1.0], "stop", []),
        ([-1.0, -1.0], "stop", [VersionSpan(0, 1, 0)]),
        ([-1.0, -1.0], "stop", [VersionSpan(1, 2, 0)]),
    ],
)
def test_a_generation_whose_parts_disagree_is_an_engines_failure(
    logprobs: list[float], reason: str, spans: list[VersionSpan]
) -> None:
    with pytest.raises(EngineError, match="'r'"):
        checked_generation([5, 6], logprobs, reason, spans, "r")
