"""The tokenizer of the tiny model: BPE on the task's own words, so that an episode is short.

Digits stay single and line breaks and operators stand alone: text can be encoded piece by piece with the same result,
and numbers can be copied digit by digit. Every id of the model is a token: nothing unknown can be sampled.
"""
# Tokenizers and transformers are untyped:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rollstream.cli.tiny_model.arithmetic import CALCULATOR, SYSTEM_PROMPT
from rollstream.cli.tiny_model.demonstrations import Demonstration, clean_demonstration, flawed_demonstration, make_task

VOCAB_SIZE = 512
STOP_TOKEN, PAD_TOKEN, OPEN_TOKEN = "<|im_end|>", "<|endoftext|>", "<|im_start|>"
SPECIAL_TOKENS = (PAD_TOKEN, OPEN_TOKEN, STOP_TOKEN)
MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")
CORPUS_SIZE = 2000
ALONE = r"\n| ?[-+*] ?"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": CALCULATOR.name,
        "description": CALCULATOR.description,
        "parameters": CALCULATOR.parameters,
    },
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train it; a second, the same every time."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(ALONE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(MARKERS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    bpe.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in MARKERS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=STOP_TOKEN,
        pad_token=PAD_TOKEN,
        additional_special_tokens=[OPEN_TOKEN],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE_PATH.read_text()
    if len(tokenizer) != VOCAB_SIZE:
        raise RuntimeError(f"the tokenizer has {len(tokenizer)} tokens, not {VOCAB_SIZE}: its corpus is too small")
    return tokenizer


def _corpus() -> Iterator[str]:
    rng = random.Random(0)
    frame = f"# Tools\n<tools>\n{json.dumps(TOOL)}\n</tools>\nTo call one, write \n"
    frame += '{"name": <name>, "arguments": <arguments>}\n'
    for _ in range(CORPUS_SIZE):
        yield from (SYSTEM_PROMPT, frame, "system\n", "user\n", "assistant\n")
        for shown in (clean_demonstration(make_task(rng)), flawed_demonstration(rng)):
            for text in (shown.question, *shown.turns, *shown.observations):
                yield from re.split("|".join(MARKERS), text)


class EpisodeEncoder:
    """Demonstrations as ids, exactly as the pipeline renders them, without running the template for each."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        question = "\x00"
        rendered = tokenizer.apply_chat_template(
            _messages(Demonstration(question, (), ())), tools=[TOOL], add_generation_prompt=True, tokenize=False
        )
        self._before, self._after = str(rendered).split(question)
        self._assert_equal_to_template()

    def encode(self, shown: Demonstration) -> tuple[list[int], list[int]]:
        """Ids, and a mask of equal length: 1 where the model is to learn (its own turns, stop tokens included)."""
        ids = self._ids(self._before + shown.question + self._after)
        mask = [0] * len(ids)
        for index, turn in enumerate(shown.turns):
            sampled = self._ids(turn + STOP_TOKEN)
            ids += sampled
            mask += [1] * len(sampled)
            if index < len(shown.observations):
                answer = self._ids(_observation_text(shown.observations[index]))
                ids += answer
                mask += [0] * len(answer)
        return ids, mask

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _assert_equal_to_template(self) -> None:
        shown = clean_demonstration(make_task(random.Random(0)))
        rendered = self._tokenizer.apply_chat_template(_messages(shown), tools=[TOOL], return_dict=False)
        if rendered != self.encode(shown)[0] + self._ids("\n"):
            raise RuntimeError("the chat template renders an episode differently from the training data")


def _observation_text(content: str) -> str:
    return f"\n<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"


def _messages(shown: Demonstration) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": shown.question}]
    for index, turn in enumerate(shown.turns):
        messages.append({"role": "assistant", "content": turn})
        if index < len(shown.observations):
            messages.append({"role": "tool", "content": shown.observations[index]})
    return messages
