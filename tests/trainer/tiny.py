"""A model that trains in a second, and feedback on it from which something can be learnt."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from attune.lake.dataset import Dataset, Definition, Recipe, write_dataset
from attune.trainer.examples import Example

TOKENS = 258
GOOD, BAD = 30, 31  # the first token of answers that users like, and of those that they do not
END = 1
_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def write_tiny_model(folder: Path) -> Path:
    """Random weights, a token for each byte, a chat template that is nothing but the messages."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=TOKENS,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            eos_token_id=END,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=0)
    model.to(torch.bfloat16).save_pretrained(folder)
    bytes_as_text = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<end>": END, **{text: 2 + number for number, text in enumerate(bytes_as_text)}}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def thumbs(
    count: int, *, seed: int = 1, users: int = 12, policy_id: str = "base", approving: float = 0.5
) -> list[Example]:
    """Answers that begin with GOOD and are liked, or with BAD and are not; a tenth of the thumbs is wrong."""
    rng = random.Random(seed)
    examples = []
    for number in range(count):
        good = rng.random() < approving
        prompt = [rng.randrange(2, 30) for _ in range(rng.randint(2, 6))]
        answer = [GOOD if good else BAD, *(rng.randrange(2, 30) for _ in range(rng.randint(0, 3))), END]
        liked = good != (rng.random() < 0.1)
        examples.append(Example(prompt, answer, liked, f"u{number % users}", policy_id, seed * 10_000 + number))
    return examples


def dataset_of(
    folder: Path,
    examples: Sequence[Example],
    base_model_hash: str,
    *,
    persona: str = "concierge",
    created_unix_ms: int = 1,
) -> Dataset:
    """The examples as the aggregator would write them, every fourth user held out."""
    rows = [
        {
            "example_id": hashlib.sha256(f"{example.created_unix_ms}/{number}".encode()).hexdigest()[:32],
            "response_id": f"r-{example.created_unix_ms:09d}",
            "persona": persona,
            "persona_version": "1",
            "policy_id": example.policy_id,
            "conversation_id": "c",
            "end_user": example.end_user,
            "turn": 1,
            "prompt_token_ids": example.prompt_token_ids,
            "output_token_ids": example.output_token_ids,
            "label": "liked" if example.liked else "disliked",
            "weight": 1.0,
            "split": "heldout" if int(example.end_user[1:]) % 4 == 0 else "train",
            "base_model_hash": base_model_hash,
            "chat_template_hash": "t",
            "created_unix_ms": example.created_unix_ms,
        }
        for number, example in enumerate(examples)
    ]
    return write_dataset(
        folder,
        pa.Table.from_pylist(rows).to_reader(),
        Definition("default", persona, Recipe("thumbs", "select"), {}, 0),
        left_out={},
        table_versions={},
        feedback_positions={},
        created_unix_ms=created_unix_ms,
    )
