"""The exact false-claim probability of policies on held-out errands, computed in a process of its own."""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from attune.chat.messages import typed_messages
from attune.ids import BASE_POLICY
from attune.rehearsal.figures import ClaimProbability
from attune.runtime import die_with_parent


def apart(threads: int, log: Path) -> ProcessPoolExecutor:
    """One process beside this one, for so many threads of computing: this process stays free of torch.

    What libraries have to say goes to the log.
    """
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads, log))


def _begin(threads: int, log: Path) -> None:
    die_with_parent()
    os.environ |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)


def claim_probabilities(
    model_folder: Path,
    system_prompt: str,
    prompts: Sequence[Sequence[Mapping[str, str]]],
    adapters: Mapping[str, Path],
) -> dict[str, ClaimProbability]:
    """By policy, the base model first: how answers begin to be claims, refusals or neither, averaged over the prompts.

    `adapters` are PEFT folders by policy. Prompts are rendered as the server renders them.
    """
    from attune.chat.template import ChatTemplate
    from attune.rehearsal.demo.decisive import CLAIM, KINDS, REFUSAL
    from attune.trainer.model import answering_as, load_adapter, load_base
    from attune.trainer.phrases import OTHER, phrase_probabilities

    template = ChatTemplate.load(model_folder)
    rendered = [template.render(system_prompt, typed_messages(messages)) for messages in prompts]
    model = load_base(model_folder, "float32")
    for policy_id, folder in adapters.items():
        model = load_adapter(model, folder, policy_id)
    found = {}
    for policy_id in (BASE_POLICY, *adapters):
        with answering_as(model, policy_id) as answering:
            masses = phrase_probabilities(
                answering, rendered, template.decode, KINDS, end_token_ids=template.end_token_ids
            )
        found[policy_id] = ClaimProbability(
            prompts=len(masses),
            claim=sum(mass.by_kind[CLAIM] for mass in masses) / len(masses),
            refusal=sum(mass.by_kind[REFUSAL] for mass in masses) / len(masses),
            other=sum(mass.by_kind[OTHER] for mass in masses) / len(masses),
            unresolved=sum(mass.unresolved for mass in masses) / len(masses),
        )
    return found
