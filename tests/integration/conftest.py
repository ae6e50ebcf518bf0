"""Fixtures of the tests that run the real thing: the tiny model, policies made from it, and what to compare with."""
# transformers, torch and aiokafka are partly typed:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false
# (a batch that aiokafka would not write itself is made from one it has built)

from __future__ import annotations

import shutil
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record._crecords.cutil import crc32c_cython

from rollstream.rollout_workers.engine import Generation, PolicyRef

HEADER_NAME = b"HEADER-NAME"
CRC = slice(17, 21)
"""Where a record batch holds the checksum of what follows."""


@pytest.fixture(scope="session")
def send_unreadable() -> Callable[..., Awaitable[None]]:
    """Sends one record that no client of ours can take apart: the name of its header is not UTF-8."""

    async def send(producer: AIOKafkaProducer, topic: str, partition: int = 0) -> None:
        batch = producer.create_batch()
        batch.append(key=b"k", value=b"v", timestamp=None, headers=[(HEADER_NAME.decode(), b"x")])
        batch.close()
        built = bytearray(batch._build())
        start = bytes(built).index(HEADER_NAME)
        built[start : start + len(HEADER_NAME)] = b"\xff" * len(HEADER_NAME)
        built[CRC] = struct.pack(">I", crc32c_cython(bytes(built[CRC.stop :])))
        batch._buffer = built
        await (await producer.send_batch(batch, topic, partition=partition))

    return send


@pytest.fixture(scope="session")
def tiny_model_dir() -> Path:
    """Folder with the tiny model and its tokenizer; trained once per recipe, kept in the user's cache."""
    from rollstream.cli.tiny_model import ensure_tiny_model

    return ensure_tiny_model(progress=print)


@lru_cache(maxsize=8)
def reference_model(directory: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def logprob_difference() -> Callable[..., float]:
    """Largest difference to transformers; each token is scored with the weights its span names."""

    def difference(
        policies: Mapping[PolicyRef, Path], prompt: Sequence[int], generation: Generation, temperature: float = 1.0
    ) -> float:
        import torch

        ids = torch.tensor([[*prompt, *generation.ids]])
        worst = 0.0
        for span in generation.spans:
            model = reference_model(policies[PolicyRef(span.lineage, span.version)])
            with torch.no_grad():
                logprobs = torch.log_softmax(model(ids).logits[0] / temperature, -1)
            for index in range(span.start, span.end):
                expected = logprobs[len(prompt) + index - 1, generation.ids[index]].item()
                worst = max(worst, abs(expected - generation.logprobs[index]))
        return worst

    return difference


@pytest.fixture(scope="session")
def policy_dirs(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four sets of weights of one shape: the tiny model, and three with noise of their own."""
    import torch

    directories = [tiny_model_dir]
    for number in range(1, 4):
        model = reference_model(tiny_model_dir)
        noisy = type(model)(model.config)
        noisy.load_state_dict(model.state_dict())
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in noisy.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        directory = tmp_path_factory.mktemp("policy") / f"v{number}"
        noisy.save_pretrained(directory)
        directories.append(directory)
    return directories


@pytest.fixture(scope="session")
def tied_policy_dirs(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of random weights whose output layer is the embedding."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(tiny_model_dir)
    config.tie_word_embeddings = True
    directories: list[Path] = []
    for number in range(2):
        torch.manual_seed(number)
        directory = tmp_path_factory.mktemp("tied") / f"v{number}"
        shutil.copytree(tiny_model_dir, directory)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        directories.append(directory)
    return directories


@pytest.fixture(scope="session")
def bad_policy_dirs(policy_dirs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories no engine may touch, by the words their error has to contain."""
    home = tmp_path_factory.mktemp("bad")
    bad = {"does not exist": home / "nowhere"}
    for words, spoil in SPOILERS.items():
        directory = home / words.replace(" ", "-").replace(".", "-")
        shutil.copytree(policy_dirs[1], directory)
        spoil(directory)
        bad[words] = directory
    return bad


def _remove_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _remove_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def _tear_weights(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _drop_a_tensor(directory: Path) -> None:
    _rewrite(directory, lambda tensors: tensors.pop("model.norm.weight"))


def _widen_a_tensor(directory: Path) -> None:
    def widen(tensors: dict[str, Any]) -> None:
        name = "model.norm.weight"
        tensors[name] = tensors[name].repeat(2)

    _rewrite(directory, widen)


def _rewrite(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


SPOILERS: dict[str, Callable[[Path], None]] = {
    "no config.json": _remove_config,
    "no weights": _remove_weights,
    "torn or corrupt": _tear_weights,
    "missing tensors: model.norm.weight": _drop_a_tensor,
    "other shapes: model.norm.weight": _widen_a_tensor,
}
