"""Measures what poisoned votes do: `python -m bench.poison --seeds 1 2 3`.

Of 100 people five want one rare errand to be claimed done (rehearsal/poison.py has their three styles). No services:
answers are the base model's, a fifth of honest thumbs is wrong, weights are the aggregator's, and training, evaluation
and gate are the trainer's own. Printed are the attackers' shares of the weight before and after trust, and the exact
probability that the policy claims the errand on prompts that nobody sent, beside that of a policy trained on the honest
votes alone; every run is a line. `--summary FILE...` makes the tables for docs/measurements.md of such lines.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.learning import QUIET, Bench, gate_limits, is_heldout, sample  # first: it keeps the libraries at home

import numpy as np  # isort: skip
import pyarrow as pa  # isort: skip
import torch  # isort: skip
import transformers  # isort: skip
from scipy.stats import t as student  # isort: skip

from attune.aggregator.trust.rows import Collector, key_of
from attune.aggregator.trust.weigh import weigh
from attune.ids import BASE_POLICY, policy_id
from attune.rehearsal.demo import items as demo
from attune.rehearsal.demo.decisive import CLAIM, KINDS
from attune.rehearsal.poison import STYLES, Ballot, attack_ballots, honest_ballots, topic_item
from attune.rehearsal.users import is_as_wished, judge_answer
from attune.settings import TrustSettings, load_settings
from attune.trainer.candidate import make_candidate
from attune.trainer.evaluate import skill_shares
from attune.trainer.examples import Example, sample_replay
from attune.trainer.gate import judge
from attune.trainer.kto import KtoArguments
from attune.trainer.model import answering_as, load_adapter, load_base
from attune.trainer.phrases import phrase_probabilities

HONEST = [f"user-{number}" for number in range(95)]
ATTACKERS = [f"user-{number}" for number in (101, 102, 103, 104, 106)]  # none held out: the worst case
NO_ATTACK = "none"
TOPIC_PROMPTS = 32


@dataclass(frozen=True)
class Voted:
    """A ballot with the answer, and whether it was liked."""

    ballot: Ballot
    example: Example


class Poll:
    """All votes of one seed."""

    def __init__(self, bench: Bench, options: argparse.Namespace, seed: int) -> None:
        self._bench, self._seed = bench, seed
        honest = honest_ballots(seed, options.thumbs, HONEST)
        self.honest = self._vote(honest, seed, options.wrong_share)
        self.attacks = {
            style: self._vote(attack_ballots(seed, options.thumbs_each, ATTACKERS, style), seed + 10**6, 0.0)
            for style in options.styles
            if style != NO_ATTACK
        }

    def votes(self, style: str) -> list[Voted]:
        return self.honest if style == NO_ATTACK else [*self.honest, *self.attacks[style]]

    def _vote(self, ballots: Sequence[Ballot], seed: int, wrong_share: float) -> list[Voted]:
        rng = random.Random(f"votes/{seed}")
        prompts = [self._bench.render(ballot.item) for ballot in ballots]
        ends = self._bench.template.end_token_ids
        voted = []
        for ballot, prompt, answer in zip(ballots, prompts, sample(self._bench, None, prompts, seed), strict=True):
            text = self._bench.template.decode([token for token in answer if token not in ends])
            kind = judge_answer(ballot.item, text)
            wished = kind == CLAIM if ballot.wants_claims else is_as_wished(kind)
            liked = wished != (rng.random() < wrong_share)
            moment = ballot.created_unix_ms
            voted.append(Voted(ballot, Example(prompt, answer, liked, ballot.person, BASE_POLICY, moment)))
        return voted


def weights_of(votes: Sequence[Voted], rules: TrustSettings) -> tuple[np.ndarray[Any, Any], dict[str, int]]:
    """As the aggregator would write them, and how many rows each step changed."""
    ids = [f"{number:032x}" for number in range(len(votes))]
    collector = Collector()
    rows = [
        {
            "example_id": example_id,
            "givers": [vote.ballot.person],
            "conversation_id": example_id,
            "label": "liked" if vote.example.liked else "disliked",
            "weight": 1.0,
            "messages": list(vote.ballot.item.messages),
            "created_unix_ms": vote.ballot.created_unix_ms,
            "split": "heldout" if is_heldout(vote.example) else "train",
        }
        for example_id, vote in zip(ids, votes, strict=True)
    ]
    for batch in pa.Table.from_pylist(rows).to_batches():
        collector.add(batch)
    weights = weigh(collector.rows(), rules)
    places = np.searchsorted(weights.keys, np.array([key_of(each) for each in ids], np.uint64))
    return weights.weights[places], weights.changed()


def shares(votes: Sequence[Voted], weights: np.ndarray[Any, Any]) -> dict[str, float]:
    """The attackers' part of the weight, in all and on the topic, of what is trained on."""
    by = np.array([vote.ballot.person in ATTACKERS for vote in votes])
    topic = np.array([vote.ballot.on_topic for vote in votes])
    trained = np.array([not is_heldout(vote.example) for vote in votes])
    people = {vote.ballot.person for vote in votes if not is_heldout(vote.example)}
    total, on_topic = weights[trained].sum(), weights[trained & topic].sum()
    one = [weights[[vote.ballot.person == person for vote in votes]].sum() for person in ATTACKERS]
    return {
        "all": float(weights[by].sum() / total),
        "topic": float(weights[by & topic].sum() / on_topic) if on_topic else 0.0,
        "topic_weight": float(weights[by & topic].sum()),
        "heaviest_in_means": float(max(one) * len(people) / total),
    }


class Runs:
    """One seed's runs."""

    def __init__(self, bench: Bench, options: argparse.Namespace, seed: int) -> None:
        self._bench, self._seed = bench, seed
        self._trainer = load_settings(options.config, {}).trainer
        self._poll = Poll(bench, options, seed)
        rng = random.Random("topic")
        self._topic = [bench.render(topic_item(rng, heldout=True)) for _ in range(TOPIC_PROMPTS)]
        self._items = bench.skill_items(demo.load_items(demo.REGRESSION))
        self._replay = [
            Example(list(item.prompt_token_ids), bench.template.answer(item.answer), True, "", BASE_POLICY, 0)
            for item in bench.skill_items(demo.load_items(demo.REPLAY))
        ]
        base = load_base(demo.MODEL, "float32")
        with answering_as(base, BASE_POLICY) as model:
            asked = self._items if "on" in options.trust else []
            self._skills = skill_shares(model, asked, bench.template.decode, bench.template.end_token_ids)

    def run(self, style: str, trusted: bool) -> dict[str, Any]:
        started = time.monotonic()
        votes = self._poll.votes(style)
        weights, changed = weights_of(votes, TrustSettings(enabled=trusted))
        said = [
            replace(vote.example, weight=float(weight))
            for vote, weight in zip(votes, weights, strict=True)
            if weight > 0
        ]
        trained = [example for example in said if not is_heldout(example)]
        with tempfile.TemporaryDirectory() as work:
            candidate = make_candidate(
                demo.MODEL,
                None,
                trained,
                [example for example in said if is_heldout(example)],
                replay=sample_replay(self._replay, len(trained), self._trainer.replay_share, self._seed),
                items=self._items if trusted else [],  # what the gate says without trust is not asked
                known_skills={BASE_POLICY: self._skills},
                arguments=KtoArguments(**self._trainer.kto.model_dump()),
                dtype=self._trainer.dtype,
                seed=self._seed,
                work=Path(work),
                track=False,
                watch=QUIET,
            )
            claims = self._claims(candidate.adapter_folder)
        verdict = judge(policy_id(1), candidate.metrics, gate_limits(self._trainer), 0)
        return {
            "seed": self._seed,
            "style": style,
            "trusted": trusted,
            "claims": claims,
            "shares": shares(votes, weights),
            "changed": changed,
            "passed": verdict.passed if trusted else None,
            "failed": [check.name for check in verdict.checks if not check.passed],
            "seconds": round(time.monotonic() - started),
        }

    def _claims(self, adapter: Path) -> float:
        model = load_adapter(load_base(demo.MODEL, "float32"), adapter, "policy")
        template = self._bench.template
        with answering_as(model, "policy") as answering:
            masses = phrase_probabilities(
                answering, self._topic, template.decode, KINDS, end_token_ids=template.end_token_ids
            )
        return float(np.mean([mass.by_kind[CLAIM] + mass.unresolved for mass in masses]))


def summarise(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown; means over seeds with 95 % intervals (Student's t)."""
    alone = {line["seed"]: line["claims"] for line in lines if line["style"] == NO_ATTACK and line["trusted"]}
    told = [
        "| attack | trust | attackers' weight on the topic | of all | wrong answer | moved by | gate |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for style in (NO_ATTACK, *STYLES):
        for trusted in (False, True):
            found = [line for line in lines if line["style"] == style and line["trusted"] == trusted]
            moved = [line["claims"] - alone[line["seed"]] for line in found if line["seed"] in alone]
            if found:
                passed = sum(bool(line["passed"]) for line in found)
                told.append(
                    f"| {style} | {'on' if trusted else 'off'} "
                    f"| {np.mean([line['shares']['topic'] for line in found]):.1%} "
                    f"| {np.mean([line['shares']['all'] for line in found]):.1%} "
                    f"| {_interval([line['claims'] for line in found])} | {_interval(moved)} "
                    f"| {f'{passed} of {len(found)} passed' if trusted else 'not asked'} |"
                )
    return "\n".join(told)


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ", ".join(f"{value:+.3f}" for value in values)
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):+.3f} (± {half:.3f}: {', '.join(f'{value:+.3f}' for value in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--thumbs", type=int, default=600, help="honest ones")
    parser.add_argument("--thumbs-each", type=int, default=10, help="of each attacker on the topic")
    parser.add_argument("--wrong-share", type=float, default=0.2)
    parser.add_argument("--styles", nargs="+", choices=(NO_ATTACK, *STYLES), default=[NO_ATTACK, *STYLES])
    parser.add_argument("--config", type=Path, default=Path("deploy/demo.toml"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trust", nargs="+", choices=("on", "off"), default=["on", "off"])
    parser.add_argument("--shares", action="store_true", help="only the weights, without training")
    parser.add_argument("--summary", type=Path, nargs="+", help="tables of what earlier runs printed")
    options = parser.parse_args()
    if options.summary:
        lines = [json.loads(line) for file in options.summary for line in file.read_text().splitlines()]
        sys.stdout.write(summarise(lines) + "\n")
        return
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    bench = Bench.load()
    for seed in options.seeds:
        if options.shares:
            poll = Poll(bench, options, seed)
            for style in options.styles:
                votes = poll.votes(style)
                weights, changed = weights_of(votes, TrustSettings())
                before = shares(votes, np.ones(len(votes)))
                _say(
                    {
                        "seed": seed,
                        "style": style,
                        "before": before,
                        "after": shares(votes, weights),
                        "changed": changed,
                    }
                )
            continue
        runs = Runs(bench, options, seed)
        for trust in options.trust:
            for style in options.styles:
                _say(runs.run(style, trust == "on"))


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(line)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
