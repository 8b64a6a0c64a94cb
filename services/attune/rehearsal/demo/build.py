"""Makes the demo model from templates: tokenizer, training, held-out items.

Also runs as `python -m attune.rehearsal.demo.build`.

The same seed gives the same dialogues, the same order and the same number of steps; the clock decides nothing.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from attune.rehearsal.demo.dialogues import (
    SCORED_SKILLS,
    TOOL_SKILLS,
    Dialogue,
    heldout_items,
    trained_items,
    training_dialogue,
    training_dialogues,
)
from attune.rehearsal.demo.items import ERRANDS_SKILL, HELDOUT, MODEL, REGRESSION, REPLAY, save_items
from attune.rehearsal.demo.tools import ARGUMENTS, tool_list

Progress = Callable[[str], None]

DEFAULT_SEED = 1
DEFAULT_SECONDS = 520.0
ITEMS_PER_SKILL = 210
REPLAY_PER_SKILL = 150
HELDOUT_ERRANDS = 160

# What one step takes on one core; it turns the asked seconds into a number of steps.
_SECONDS_PER_STEP = 0.08
_BATCH_TOKENS = 700
_SHORT_SHARE = 0.6
_CONTEXT_TOKENS = 1024
_VOCABULARY = 1600
_ARGUMENT_COPIES = 100
_LEARNING_RATE = 2.5e-3
_WARM_UP_STEPS = 60
_FALLING_SHARE = 0.4
_PAD, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_IGNORED = -100

# Without tools: ChatML. Tools are a list behind the system prompt, one line each, for a small model reads no schema;
# calls are written as Hermes models do, and results have a role of their own.
_CHAT_TEMPLATE = (
    "{% macro tool_list() %}Tools:{% for tool in tools %}"
    "{{ '\n- ' + tool['function']['name'] + '(' }}"
    "{{ ((tool['function']['parameters'] or {}).get('properties') or {}).keys() | join(', ') }}"
    "{{ '): ' + (tool['function']['description'] or '') }}"
    "{% endfor %}{% endmacro %}"
    "{% if tools and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n' + tool_list() + '<|im_end|>\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{% if tools and loop.first and message['role'] == 'system' %}{{ '\n\n' + tool_list() }}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\n' if message['content'] or not loop.first else '' }}"
    "{% set arguments = call['function']['arguments'] %}"
    "{{ '<tool_call>\n{\"name\": ' + call['function']['name'] | tojson + ', \"arguments\": ' }}"
    "{{ (arguments if arguments is string else arguments | tojson) + '}\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _system_text(dialogue: Dialogue) -> str:
    """What the template puts into the system's message."""
    return "\n\n".join([dialogue.system, tool_list(dialogue.tools)]) if dialogue.tools else dialogue.system


def _train_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """A byte-level BPE of its own."""
    texts = []
    for _ in range(8000):
        dialogue = training_dialogue(rng, rng.randint(1, 3))
        said = (f"{turn.role}\n{turn.user}\n{turn.assistant}" for turn in dialogue.turns)
        texts.append("\n".join(["system", _system_text(dialogue), "user", "assistant", *said]))
    # What calls repeat has a token of its own there too, where no space is before it: one token is soon copied.
    texts += [f'"{argument}"' for argument in ARGUMENTS] * _ARGUMENT_COPIES
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_PAD, _START, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        additional_special_tokens=[_START],
        chat_template=_CHAT_TEMPLATE,
        model_max_length=_CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class _Encoded:
    """A dialogue's ids and, at each place, the id to be predicted there or `_IGNORED` outside of answers."""

    input_ids: list[int]
    targets: list[int]


class _Encoder:
    """Lays dialogues out as the chat template does, and remembers the ids of each piece of text.

    The newline after an answer's end is learnt too: a ChatML answer ends `<|im_end|>` newline.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        if text not in self._ids:
            if len(self._ids) > 200_000:
                self._ids.clear()
            self._ids[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._ids[text]

    def dialogue(self, dialogue: Dialogue) -> _Encoded:
        ids = list(self._encode(f"{_START}system\n{_system_text(dialogue)}{_END}\n"))
        learnt = [False] * len(ids)
        for turn in dialogue.turns:
            asked = self._encode(f"{_START}{turn.role}\n{turn.user}{_END}\n{_START}assistant\n")
            answered = self._encode(f"{turn.assistant}{_END}\n")
            ids += asked + answered
            learnt += [False] * len(asked) + [True] * len(answered)
        targets = [token if use else _IGNORED for token, use in zip(ids, learnt, strict=True)]
        return _Encoded(ids[:-1], targets[1:])


def _batches(encoder: _Encoder, rng: random.Random, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Padded batches (dialogues, tokens) of ids and targets, of about equal size; dialogues of like length share one.

    Short dialogues come first: to copy a name or number from the prompt is learnt soon where there is little else in
    it, and was not learnt in 3 million tokens where there was much.
    """
    pending: list[list[_Encoded]] = []
    for step in range(steps):
        if not pending:
            several = step >= _SHORT_SHARE * steps
            together = (training_dialogues(rng, rng.choice((1, 1, 2, 3, 4)) if several else 1) for _ in range(400))
            pending = _cut([[encoder.dialogue(one) for one in each] for each in together])
            rng.shuffle(pending)
        batch = pending.pop()
        width = max(len(one.input_ids) for one in batch)
        yield (
            torch.tensor([one.input_ids + [0] * (width - len(one.input_ids)) for one in batch]),
            torch.tensor([one.targets + [_IGNORED] * (width - len(one.targets)) for one in batch]),
        )


def _cut(together: list[list[_Encoded]]) -> list[list[_Encoded]]:
    """Batches of at most `_BATCH_TOKENS`, padding included; what belongs together stays so."""
    batches: list[list[_Encoded]] = [[]]
    for some in sorted(together, key=_longest):
        if (len(batches[-1]) + len(some)) * _longest(some) > _BATCH_TOKENS and batches[-1]:
            batches.append([])
        batches[-1] += some
    return batches


def _longest(dialogues: list[_Encoded]) -> int:
    return max(len(one.input_ids) for one in dialogues)


def _new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    end, pad = tokenizer.convert_tokens_to_ids([_END, _PAD])
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=_VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=_CONTEXT_TOKENS,
            initializer_range=0.03,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
            # Twice as fast here as torch's fused attention, which is made for longer dialogues and wider heads.
            attn_implementation="eager",
        )
    )


def _learning_rate_factor(step: int, steps: int) -> float:
    """A short warm-up, then constant, and down to zero in a straight line over the last part."""
    return min(1.0, (step + 1) / _WARM_UP_STEPS, (steps - step) / (_FALLING_SHARE * steps))


def _train(
    model: Qwen2ForCausalLM, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int, progress: Progress
) -> None:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=_LEARNING_RATE,
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, steps))
    model.train()
    started, tokens, mean_loss = time.monotonic(), 0, 0.0
    for step, (input_ids, targets) in enumerate(batches, start=1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
            answers = targets != _IGNORED
            logits = model.lm_head(hidden[answers])
        loss = torch.nn.functional.cross_entropy(logits.float(), targets[answers])
        mean_loss = 0.98 * mean_loss + 0.02 * loss.item() if step > 1 else loss.item()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tokens += input_ids.numel()
        if step % 100 == 0 or step == steps:
            seconds = time.monotonic() - started
            progress(f"step {step}/{steps}  loss {mean_loss:.3f}  {tokens / seconds:,.0f} tokens/s  {seconds:.0f} s")


def _save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, target: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    # The template belongs into tokenizer_config.json, where every reader of the format finds it.
    (target / "chat_template.jinja").unlink(missing_ok=True)
    config_file = target / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["chat_template"] = _CHAT_TEMPLATE
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(_END), pad_token_id=tokenizer.convert_tokens_to_ids(_PAD)
    ).save_pretrained(target)


def build_demo_model(target: Path, seed: int, seconds: float, progress: Progress, threads: int = 1) -> None:
    """Trains the demo model into the folder `target`, in bf16.

    `seconds` is what it takes on an ordinary core; it fixes the number of steps beforehand, so that the result does
    not depend on the machine's load. More threads are faster and round otherwise: the weights are others.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(seed)
        tokenizer = _train_tokenizer(random.Random(f"tokenizer/{seed}"))
        model = _new_model(tokenizer)
        steps = max(1, round(seconds / _SECONDS_PER_STEP))
        progress(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps, seed {seed}")
        batches = _batches(_Encoder(tokenizer), random.Random(f"dialogues/{seed}"), steps)
        _train(model, batches, steps, progress)
        target.mkdir(parents=True, exist_ok=True)
        _save(model, tokenizer, target)
        progress(f"saved in {target}")
    finally:
        torch.set_num_threads(threads_before)


def write_items(regression: Path, heldout: Path, replay: Path) -> None:
    """Writes the gate's and the report's items, different ones, from the held-out side, and a trainer's replay from the
    trained side. The same every time.
    """
    skills = (*SCORED_SKILLS, *TOOL_SKILLS)
    save_items(replay, [item for skill in SCORED_SKILLS for item in trained_items(0, skill, REPLAY_PER_SKILL)])
    for_gate, for_report = [], []
    for skill in skills:
        items = heldout_items(0, skill, 2 * ITEMS_PER_SKILL)
        for_gate += items[::2]
        for_report += items[1::2]
    for_report += heldout_items(0, ERRANDS_SKILL, HELDOUT_ERRANDS)
    save_items(regression, for_gate)
    save_items(heldout, for_report)


def _show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the demo model.")
    parser.add_argument("--target", type=Path, default=MODEL)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="budget on one core; fixes the steps")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    build_demo_model(arguments.target, arguments.seed, arguments.seconds, _show, arguments.threads)
    if arguments.target == MODEL:
        write_items(REGRESSION, HELDOUT, REPLAY)


if __name__ == "__main__":
    main()
