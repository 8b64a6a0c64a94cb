"""Skills by greedy exact match: many short answers at once, on a small model in seconds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class SkillScore:
    """How many of a skill's items were answered exactly."""

    correct: int
    items: int

    @property
    def share(self) -> float:
        return self.correct / self.items if self.items else 0.0


@torch.inference_mode()
def greedy_answers(
    model: Any, prompts: Sequence[Sequence[int]], *, end_token_ids: Collection[int], max_tokens: int, batch: int = 256
) -> list[list[int]]:
    """The greedy answer's token ids to each prompt, in the prompts' order, without the end token.

    `model` is a transformers causal LM, with or without PEFT adapters. Prompts of like length share a batch, and
    whoever is done leaves it.
    """
    was_training = model.training
    model.eval()
    answers: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    ends = torch.tensor(sorted(end_token_ids), device=model.device)
    for at in range(0, len(by_length), batch):
        running = by_length[at : at + batch]
        ids, mask = left_padded([prompts[index] for index in running], model.device)
        cache = None
        for _ in range(max_tokens):
            out = forward(model, ids, mask, cache)
            cache = out.past_key_values
            chosen = out.logits[:, -1].argmax(-1)
            going = (~torch.isin(chosen, ends)).nonzero().flatten()
            if len(going) == 0:
                break
            if len(going) < len(running):
                running = [running[row] for row in going.tolist()]
                cache.reorder_cache(going)
                mask, chosen = mask[going], chosen[going]
            for index, token in zip(running, chosen.tolist(), strict=True):
                answers[index].append(token)
            ids, mask = chosen[:, None], torch.cat([mask, mask.new_ones(len(running), 1)], dim=1)
    model.train(was_training)
    return answers


def score_skills(skills: Sequence[str], answers: Sequence[str], expected: Sequence[str]) -> dict[str, SkillScore]:
    """Scores by skill, in the order in which skills first appear; outer white space does not count."""
    tally: dict[str, list[bool]] = {}
    for skill, answer, right in zip(skills, answers, expected, strict=True):
        tally.setdefault(skill, []).append(answer.strip() == right.strip())
    return {skill: SkillScore(sum(hits), len(hits)) for skill, hits in tally.items()}


def left_padded(prompts: Sequence[Sequence[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (prompts, tokens), padded in front, so that every prompt's last token is in the last column."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def forward(model: Any, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> Any:
    """One step with a cache: `ids` are the new tokens, `mask` covers the cached ones too; logits of the last only."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
