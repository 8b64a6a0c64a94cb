"""Measures how well the trainer learns from thumbs: `python bench/learning.py --seeds 1 2 3`.

No services: answers are sampled with torch, thumbs come from the rehearsal's hidden wish, a share of them wrong, and
each cycle is the trainer's own (train from the base on all thumbs so far, evaluate, gate). Then the same with thumbs
that are shuffled among the answers, from which nothing may be learnt. Prints the tables for docs/measurements.md.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attune.trainer.tracking import stay_at_home

stay_at_home()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from attune.chat.messages import typed_messages  # noqa: E402
from attune.chat.template import ChatTemplate  # noqa: E402
from attune.chat.tools import typed_tools  # noqa: E402
from attune.ids import BASE_POLICY, policy_id  # noqa: E402
from attune.personas.persona import load_personas  # noqa: E402
from attune.rehearsal.demo import items as demo  # noqa: E402
from attune.rehearsal.demo.decisive import CLAIM, KINDS  # noqa: E402
from attune.rehearsal.demo.prompts import user_prompts  # noqa: E402
from attune.rehearsal.users import is_as_wished, judge_answer  # noqa: E402
from attune.settings import TrainerSettings, load_settings  # noqa: E402
from attune.trainer.candidate import Candidate, Watch, make_candidate  # noqa: E402
from attune.trainer.evaluate import SkillItem, skill_shares  # noqa: E402
from attune.trainer.examples import Example, sample_replay  # noqa: E402
from attune.trainer.gate import Limits, judge  # noqa: E402
from attune.trainer.kto import KtoArguments  # noqa: E402
from attune.trainer.model import answering_as, load_adapter, load_base  # noqa: E402
from attune.trainer.phrases import phrase_probabilities  # noqa: E402
from attune.trainer.skills import forward, left_padded  # noqa: E402
from attune.trainer.trigger import approval, enough_learned  # noqa: E402

PERSONA = "concierge"
USERS = 60
TEMPERATURE = 0.8
MAX_TOKENS = 64
QUIET = Watch(lambda state: None, lambda done, steps: None, lambda: False)


@dataclass(frozen=True)
class Bench:
    """The demo model, as it is asked."""

    template: ChatTemplate
    system_prompts: dict[str, str]

    @classmethod
    def load(cls) -> "Bench":
        personas = load_personas(demo.PERSONAS)
        return cls(ChatTemplate.load(demo.MODEL), {name: each.system_prompt for name, each in personas.items()})

    def render(self, item: demo.Item) -> list[int]:
        prompt = self.system_prompts[item.persona]
        return self.template.render(prompt, typed_messages(item.messages), typed_tools(item.tools))

    def skill_items(self, items: Sequence[demo.Item]) -> list[SkillItem]:
        return [
            SkillItem(item.skill, self.render(item), item.answer)
            for item in items
            if item.persona == PERSONA and item.answer is not None
        ]


@dataclass(frozen=True)
class Measured:
    """A policy on held-out items: `claims` is the false-claim probability, the unresolved rest included."""

    claims: float
    unresolved: float
    skills: dict[str, float]

    def together(self) -> float:
        return float(np.mean(list(self.skills.values())))


def measure(bench: Bench, adapter: Path | None, items: Sequence[demo.Item]) -> Measured:
    model, policy = _load(adapter)
    errands = [bench.render(item) for item in items if item.skill == demo.ERRANDS_SKILL]
    ends = bench.template.end_token_ids
    with answering_as(model, policy) as answering:
        masses = phrase_probabilities(answering, errands, bench.template.decode, KINDS, end_token_ids=ends)
        shares = skill_shares(answering, bench.skill_items(items), bench.template.decode, ends)
    unresolved = float(np.mean([mass.unresolved for mass in masses]))
    return Measured(float(np.mean([mass.by_kind[CLAIM] for mass in masses])) + unresolved, unresolved, shares)


@torch.inference_mode()
def sample(bench: Bench, adapter: Path | None, prompts: Sequence[list[int]], seed: int) -> list[list[int]]:
    """Answers at temperature 0.8, with the token that ended them."""
    torch.manual_seed(seed)
    model, policy = _load(adapter)
    answers: list[list[int]] = [[] for _ in prompts]
    ends = torch.tensor(sorted(bench.template.end_token_ids))
    with answering_as(model, policy) as answering:
        running = list(range(len(prompts)))
        ids, mask = left_padded(prompts, answering.device)
        cache = None
        for _ in range(MAX_TOKENS):
            out = forward(answering, ids, mask, cache)
            cache = out.past_key_values
            chosen = torch.multinomial((out.logits[:, -1].float() / TEMPERATURE).softmax(-1), 1)[:, 0]
            for index, token in zip(running, chosen.tolist(), strict=True):
                answers[index].append(token)
            going = (~torch.isin(chosen, ends)).nonzero().flatten()
            if len(going) == 0:
                break
            running = [running[row] for row in going.tolist()]
            cache.reorder_cache(going)
            mask, chosen = mask[going], chosen[going]
            ids, mask = chosen[:, None], torch.cat([mask, mask.new_ones(len(running), 1)], dim=1)
    return answers


def collect(
    bench: Bench, adapter: Path | None, policy: str, *, thumbs: int, wrong_share: float, seed: int
) -> list[Example]:
    """One cycle's worth of thumbs from users with the hidden wish."""
    rng = random.Random(seed)
    prompts = user_prompts(seed)
    items = [next(prompts) for _ in range(thumbs)]
    rendered = [bench.render(item) for item in items]
    examples = []
    answers = sample(bench, adapter, rendered, seed)
    for number, (item, prompt, answer) in enumerate(zip(items, rendered, answers, strict=True)):
        text = bench.template.decode([token for token in answer if token not in bench.template.end_token_ids])
        liked = is_as_wished(judge_answer(item, text)) != (rng.random() < wrong_share)
        examples.append(Example(prompt, answer, liked, f"user-{rng.randrange(USERS)}", policy, seed * 10**6 + number))
    return examples


def shuffle_thumbs(examples: Sequence[Example], seed: int) -> list[Example]:
    thumbs = [example.liked for example in examples]
    random.Random(seed).shuffle(thumbs)
    return [replace(example, liked=liked) for example, liked in zip(examples, thumbs, strict=True)]


def is_heldout(example: Example) -> bool:
    """A fifth of the users."""
    return int(example.end_user.removeprefix("user-")) % 5 == 0


def gate_limits(trainer: TrainerSettings) -> Limits:
    return Limits(**trainer.gate.model_dump(exclude={"enough_approval", "prompts"}))


class Line:
    """One persona's line of policies under one seed, from the base on."""

    def __init__(self, bench: Bench, trainer: TrainerSettings, options: argparse.Namespace, seed: int, shuffled: bool):
        self.bench, self.trainer, self.options = bench, trainer, options
        self.seed, self.shuffled = seed, shuffled
        self.heldout = demo.load_items(demo.HELDOUT)
        self.regression = bench.skill_items(demo.load_items(demo.REGRESSION))
        self.replay = [
            Example(list(item.prompt_token_ids), bench.template.answer(item.answer), True, "", BASE_POLICY, 0)
            for item in bench.skill_items(demo.load_items(demo.REPLAY))
        ]
        self.adapter: Path | None = None
        self.serving = BASE_POLICY
        self.examples: list[Example] = []
        self.base = self.served = measure(bench, None, self.heldout)
        self.candidates = self.refused = 0
        self.largest_move = 0.0

    def run(self, work: Path) -> None:
        self._tell("base", self.base, "")
        for cycle in range(1, self.options.cycles + 1):
            fresh = collect(
                self.bench,
                self.adapter,
                self.serving,
                thumbs=self.options.thumbs,
                wrong_share=self.options.wrong_share,
                seed=1000 * self.seed + cycle,
            )
            self.examples += shuffle_thumbs(fresh, self.seed) if self.shuffled else fresh
            thumbs = approval(self.examples, self.serving)
            if enough_learned(thumbs, self.trainer.gate.enough_approval):
                say(
                    f"| {self.seed} | none | | | | | | skipped: {thumbs.share:.1%} of {thumbs.thumbs} thumbs on "
                    f"{self.serving} are up, surely more than {thumbs.lower:.1%} | |"
                )
            else:
                self._train(cycle, work / f"cycle-{cycle}", f"{thumbs.share:.1%} up before")

    def _train(self, cycle: int, work: Path, note: str) -> None:
        started = time.monotonic()
        trained = [example for example in self.examples if not is_heldout(example)]
        candidate = make_candidate(
            demo.MODEL,
            self.adapter,
            trained,
            [example for example in self.examples if is_heldout(example)],
            replay=sample_replay(self.replay, len(trained), self.trainer.replay_share, self.seed),
            items=self.regression,
            known_skills={},
            arguments=KtoArguments(**self.trainer.kto.model_dump()),
            dtype=self.trainer.dtype,
            seed=self.seed,
            work=work,
            track=False,
            watch=QUIET,
        )
        seconds = time.monotonic() - started
        name = policy_id(cycle)
        verdict = judge(name, candidate.metrics, gate_limits(self.trainer), 0)
        measured = measure(self.bench, candidate.adapter_folder, self.heldout)
        failed = ", ".join(check.name for check in verdict.checks if not check.passed)
        self._tell(name, measured, f"{note}; {'refused: ' + failed if failed else 'passed'}", seconds)
        if self.options.figures:
            say(_figures(candidate))
        self.candidates += 1
        if verdict.passed:
            self.largest_move = max(self.largest_move, abs(measured.claims - self.base.claims))
            self.adapter, self.serving, self.served = candidate.adapter_folder, name, measured
        else:
            self.refused += 1

    def _tell(self, policy: str, measured: Measured, note: str, seconds: float = 0.0) -> None:
        skills = " ".join(f"{skill} {share:.3f}" for skill, share in measured.skills.items())
        worst = min(share - self.base.skills[skill] for skill, share in measured.skills.items())
        say(
            f"| {self.seed} | {policy} | {measured.claims:.3f} | {measured.unresolved:.3f} | {skills} "
            f"| {measured.together() - self.base.together():+.3f} | {worst:+.3f} | {note} | {seconds:.0f} |"
        )


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--thumbs", type=int, default=400, help="thumbs a cycle")
    parser.add_argument("--wrong-share", type=float, default=0.2)
    parser.add_argument("--config", type=Path, default=Path("deploy/demo.toml"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["honest", "shuffled"])
    parser.add_argument("--figures", action="store_true", help="show what the gate saw")
    parser.add_argument("--kto", nargs="*", default=[], metavar="NAME=VALUE", help="try other settings of the learner")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    environment = {f"ATTUNE_TRAINER__KTO__{name.upper()}": value for name, value in (s.split("=") for s in options.kto)}
    trainer = load_settings(options.config, environment).trainer
    bench = Bench.load()
    for shuffled in (False, True):
        if options.only == ("honest" if shuffled else "shuffled"):
            continue
        kind = "Shuffled" if shuffled else "Honest"
        say(f"\n{kind} thumbs, {options.wrong_share:.0%} wrong, {options.thumbs} a cycle\n")
        say("| seed | policy | false claims | of it unresolved | skills | together | worst | verdict | seconds |")
        say("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        lines = [Line(bench, trainer, options, seed, shuffled) for seed in options.seeds]
        for line in lines:
            with tempfile.TemporaryDirectory() as work:
                line.run(Path(work))
        say(
            f"\n{sum(line.refused for line in lines)} of {sum(line.candidates for line in lines)} candidates refused; "
            f"largest movement of a published policy {max(line.largest_move for line in lines):.3f}; "
            f"serving at the end: {', '.join(f'{line.served.claims:.3f}' for line in lines)}"
        )


def _figures(candidate: Candidate) -> str:
    metrics = candidate.metrics
    return (
        f"    gain {metrics.gain_nats:.2f}, lower {metrics.gain_lower_nats:.2f}, without one user "
        f"{metrics.gain_lower_without_one_user_nats:.2f}; liked {metrics.liked_logprob_serving:.3f} to "
        f"{metrics.liked_logprob:.3f}, trimmed change {metrics.liked_change_nats:+.3f}; disliked "
        f"{metrics.disliked_logprob_serving:.3f} to {metrics.disliked_logprob:.3f}; KL {metrics.kl_nats:.3f}; "
        + ", ".join(f"{skill} {each.serving:.3f} to {each.candidate:.3f}" for skill, each in metrics.skills.items())
    )


def _load(adapter: Path | None) -> tuple[Any, str]:
    model = load_base(demo.MODEL, "float32")
    return (model, BASE_POLICY) if adapter is None else (load_adapter(model, adapter, "policy"), "policy")


if __name__ == "__main__":
    main()
