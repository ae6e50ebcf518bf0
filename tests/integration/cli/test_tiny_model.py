"""The tiny model is rendered, trained and loaded exactly as the pipeline does it."""
# transformers is partly typed:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from rollstream.cli.tiny_model import CALCULATOR, SYSTEM_PROMPT
from rollstream.schemas.tasks import ChatMessage

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]


def test_training_data_are_the_ids_the_chat_format_renders(tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    from rollstream.cli.tiny_model.demonstrations import flawed_demonstration
    from rollstream.cli.tiny_model.tokenizer import EpisodeEncoder
    from rollstream.rollout_workers.template_chat_format import TemplateChatFormat

    encoder = EpisodeEncoder(AutoTokenizer.from_pretrained(tiny_model_dir))
    chat = TemplateChatFormat.load(tiny_model_dir)
    rng = random.Random(3)
    for _ in range(50):
        shown = flawed_demonstration(rng)
        trained, mask = encoder.encode(shown)
        messages = [ChatMessage(role="system", content=SYSTEM_PROMPT), ChatMessage(role="user", content=shown.question)]
        ids = chat.render_prompt(messages, [CALCULATOR])
        for index, _turn in enumerate(shown.turns):
            start = len(ids)
            assert mask[start] == 1
            end = trained.index(chat.stop_token_ids[0], start) + 1
            ids += trained[start:end]
            assert chat.decode_turn(trained[start:end]) == shown.turns[index]
            if index < len(shown.observations):
                ids += chat.render_tool_results(ids[-1:], [shown.observations[index]])
        assert ids == trained


def test_every_id_the_model_can_sample_is_a_token_of_the_tokenizer(tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    config: dict[str, Any] = json.loads((tiny_model_dir / "config.json").read_text())
    assert config["vocab_size"] == len(AutoTokenizer.from_pretrained(tiny_model_dir))
    assert config["tie_word_embeddings"] is False


def test_other_users_can_read_the_weights(tiny_model_dir: Path) -> None:
    assert (tiny_model_dir / "model.safetensors").stat().st_mode & 0o044 == 0o044
