"""Makes a candidate: trains an adapter from the base and takes all figures that the gate wants."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from attune.chat.template import ChatTemplate
from attune.ids import BASE_POLICY
from attune.registry.policies import Probe
from attune.trainer import kto
from attune.trainer.evaluate import SkillItem, heldout_figures, merge_skills, skill_shares
from attune.trainer.examples import Example, least_label_share, shuffled
from attune.trainer.gate import Metrics
from attune.trainer.logprobs import Pair, token_logprobs
from attune.trainer.model import TRAINED, answering_as, load_adapter, load_base, save_adapter

logger = logging.getLogger(__name__)

SERVING = "serving"

_PROBES = 8
_PROBES_TRIED = 64
_PROBE_TOKENS = 96


@dataclass(frozen=True)
class Watch:
    """How a cycle tells what it is doing, and asks whether it should stop."""

    on_state: Callable[[str], None]
    on_step: Callable[[int, int], None]
    stopping: Callable[[], bool]

    def enter(self, state: str) -> None:
        """Raises TrainingStopped when the process was told to stop."""
        if self.stopping():
            raise kto.TrainingStopped
        self.on_state(state)


@dataclass(frozen=True)
class Candidate:
    """A trained adapter with its figures and the sequences by which an engine can tell that it loaded it."""

    adapter_folder: Path
    metrics: Metrics
    probe: tuple[Probe, ...]


def make_candidate(
    base_folder: Path,
    serving_folder: Path | None,
    train: Sequence[Example],
    heldout: Sequence[Example],
    *,
    replay: Sequence[Example],
    items: Sequence[SkillItem],
    known_skills: Mapping[str, Mapping[str, float]],
    arguments: kto.KtoArguments,
    dtype: str,
    seed: int,
    work: Path,
    track: bool,
    watch: Watch,
) -> Candidate:
    """Trains from the base on `train` and measures against the serving policy (None: the base itself).

    `replay`, right answers that are to stay likely, is trained on as if it were liked (general data mixed in, as in
    InstructGPT, arXiv 2203.02155, section 3.5); no figure of the feedback counts it.
    `known_skills` are shares of right answers to the same items that need no measuring, of `base` and `serving`.
    The same inputs on the same machine give the same candidate. Raises TrainingStopped between two steps.
    """
    watch.enter("training")
    tokenizer = AutoTokenizer.from_pretrained(base_folder, local_files_only=True)
    template = ChatTemplate.load(base_folder)
    model: Any = kto.train(
        load_base(base_folder, dtype if torch.cuda.is_available() else "float32"),
        tokenizer,
        shuffled([*train, *replay], seed),
        arguments,
        mixed_precision=dtype == "bfloat16",
        seed=seed,
        work=work,
        track=track,
        on_step=watch.on_step,
        stopping=watch.stopping,
    )
    adapter_folder = work / "adapter"
    save_adapter(model, adapter_folder)

    watch.enter("evaluating")
    serving = BASE_POLICY
    if serving_folder is not None:
        serving = SERVING
        model = load_adapter(model, serving_folder, serving)

    def as_policy(policy: str) -> AbstractContextManager[Any]:
        return answering_as(model, policy)

    figures = heldout_figures(as_policy, serving, TRAINED, heldout, seed)
    shares = dict(known_skills)
    for policy in {BASE_POLICY, serving, TRAINED} - shares.keys():
        watch.enter("evaluating")
        with as_policy(policy) as answering:
            shares[policy] = skill_shares(answering, items, template.decode, template.end_token_ids)
    metrics = Metrics(
        train_examples=len(train),
        train_least_label_share=least_label_share(train),
        skills=merge_skills(items, shares[BASE_POLICY], shares[serving], shares[TRAINED]),
        **figures,
    )
    watch.enter("evaluating")
    return Candidate(adapter_folder, metrics, make_probe(base_folder, adapter_folder, heldout))


def make_probe(base_folder: Path, adapter_folder: Path, heldout: Sequence[Example]) -> tuple[Probe, ...]:
    """Short held-out answers with their log-probabilities, computed as an engine does: in bfloat16, unmerged.

    Of the shortest ones those on which policy and base differ most, or the probe could not tell them apart.
    """
    by_length = sorted(heldout, key=lambda example: len(example.prompt_token_ids) + len(example.output_token_ids))
    distinct: dict[tuple[int, ...], Pair] = {}
    for example in by_length:
        answer = example.output_token_ids[:_PROBE_TOKENS]
        distinct.setdefault((*example.prompt_token_ids, *answer), (example.prompt_token_ids, answer))
    pairs = list(distinct.values())[:_PROBES_TRIED]
    base = load_base(base_folder, "bfloat16")
    of_base = token_logprobs(base, pairs)
    of_policy = token_logprobs(load_adapter(base, adapter_folder, TRAINED).to(base.dtype), pairs)
    probes = [
        Probe(tuple(prompt), tuple(answer), tuple(policy.tolist()), tuple(plain.tolist()))
        for (prompt, answer), policy, plain in zip(pairs, of_policy, of_base, strict=True)
    ]
    return tuple(sorted(probes, key=_difference_nats, reverse=True)[:_PROBES])


def _difference_nats(probe: Probe) -> float:
    return float(np.mean(np.abs(np.subtract(probe.logprobs, probe.base_logprobs))))
