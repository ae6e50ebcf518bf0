"""A small real tokenizer, and model folders that combine it with chat templates of several families."""

# transformers and tokenizers are only partly annotated
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

TEMPLATES = Path(__file__).parent / "chat_templates"
CONTROLS = [
    *("<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>", "<|start_header|>", "<|end_header|>", "<|eot|>", "<|eom|>"),
    *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|outputs|>"),
    *("[TOOLS]", "[/TOOLS]", "[INST]", "[/INST]", "[CALLS]", "[RESULT]", "[/RESULT]"),
]
MARKERS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
ENDS = {
    "qwen3_like": ("<|im_end|>", "<|endoftext|>"),
    "hermes_like": ("<|im_end|>",),
    "llama3_like": ("<|eot|>", "<|eom|>"),
    "glm_like": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "mistral_like": ("<|endoftext|>",),
    "deepseek_like": ("<|endoftext|>",),
}
"""What the model's generation_config names; the first is the tokenizer's own end."""

ModelFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with merges over white space, so that a boundary encoded apart would show."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue] -- a property
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue] -- a property
    texts = [path.read_text() for path in TEMPLATES.glob("*.jinja")] + [
        "How many boxes are there?\n\n\n There are 3.\n"
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=CONTROLS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts * 5, trainer)
    tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in MARKERS])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def model_folder(tokenizer_json: Path, tmp_path: Path) -> ModelFolder:
    """Make a folder with the tokenizer and a template: one of ``chat_templates`` by name, or a text."""

    def make(
        name: str, template: str | None = None, *, ends: tuple[str, ...] = (), extra_tokens: tuple[str, ...] = ()
    ) -> Path:
        from tokenizers import AddedToken, Tokenizer
        from transformers import PreTrainedTokenizerFast

        ends = ends or ENDS[name]
        backend = Tokenizer.from_file(str(tokenizer_json))
        backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in extra_tokens])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<s>",
            eos_token=ends[0],
            clean_up_tokenization_spaces=False,
        )
        tokenizer.chat_template = template or (TEMPLATES / f"{name}.jinja").read_text()
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        tokenizer.save_pretrained(str(folder))
        ids = [tokenizer.convert_tokens_to_ids(end) for end in ends]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        rows = (len(tokenizer) + 63) // 64 * 64
        (folder / "config.json").write_text(
            json.dumps({"model_type": "qwen3", "vocab_size": rows, "eos_token_id": ids[0]})
        )
        return folder

    return make
