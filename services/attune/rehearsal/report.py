"""A rehearsal's report: lines of text, one HTML page that refers to nothing outside itself, and JSON."""

import html
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from attune.ids import BASE_POLICY
from attune.rehearsal import plots
from attune.rehearsal.expectations import Expectation, all_met
from attune.rehearsal.figures import Figures, PolicyFigures, Proportion, SwapFigures, to_json


def write(folder: Path, figures: Figures, expectations: Sequence[Expectation]) -> Path:
    """Writes report.html, report.txt and report.json; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(as_html(figures, expectations), encoding="utf-8")
    (folder / "report.txt").write_text(as_text(figures, expectations) + "\n", encoding="utf-8")
    fields = {"figures": to_json(figures), "expectations": to_json(tuple(expectations))}
    (folder / "report.json").write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return page


# ---- words that text and page share ----


def _percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.1f} %"  # noqa: PLR0124 - nan is not itself


def _spread(proportion: Proportion | None) -> str:
    if proportion is None or not proportion.trials:
        return "–"
    low, high = proportion.interval
    return f"{_percent(proportion.share)} ({100 * low:.1f} to {100 * high:.1f}, n = {proportion.trials})"


def _exact(policy: PolicyFigures) -> str:
    if policy.exact is None:
        return "–"
    return f"{_percent(policy.exact.counted)} (unresolved {100 * policy.exact.unresolved:.1f})"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.1f} s"


def _outcome(expectations: Sequence[Expectation]) -> str:
    missed = sum(not expectation.met for expectation in expectations)
    if not missed:
        return f"All {len(expectations)} expectations were met."
    return f"{missed} of {len(expectations)} expectations {'was' if missed == 1 else 'were'} missed."


def _swap_words(swap: SwapFigures) -> tuple[str, ...]:
    return (
        swap.policy_id,
        _seconds(swap.vote_to_serving_seconds),
        _seconds(swap.serving_at - swap.began_at),
        str(swap.streams_running),
        str(swap.streams_broken),
    )


def _summary(figures: Figures) -> str:
    thumbs = "shuffled thumbs" if figures.shuffled else f"{figures.wrong_thumbs_share:.0%} of their thumbs wrong"
    told = (
        f"{figures.users} synthetic users talked and voted {figures.votes} times, {thumbs}. "
        f"Candidates trained from the votes: {len(figures.verdicts)}; swapped in while people talked: "
        f"{len(figures.swaps)}. {figures.streams_broken} of {figures.streams} streams broke."
    )
    if figures.stopped:
        told += f" The rehearsal did not run to its end: {figures.stopped}"
    return told


_POLICY_HEADS = (
    "policy", "false claims, exact", "false claims, sampled", "false claims to users", "thumbs up", "as users wished",
)  # fmt: skip
_SWAP_HEADS = ("policy", "last needed vote to serving", "rollout entry to serving", "streams running", "broken")


def _policy_words(policy: PolicyFigures) -> tuple[str, ...]:
    return (
        policy.policy_id + ("" if policy.served else " (not served)"),
        _exact(policy),
        _spread(policy.claims_heldout),
        _spread(policy.claims_to_users),
        _spread(policy.thumbs_up),
        _spread(policy.as_wished),
    )


def _dataset_words(figures: Figures) -> list[tuple[str, ...]]:
    return [
        (
            dataset.dataset_id,
            ", ".join(f"{count} {name}" for name, count in dataset.examples.items()) or "–",
            ", ".join(f"{count} {reason}" for reason, count in dataset.left_out.items()) or "–",
            ", ".join(dataset.policies) or "–",
        )
        for dataset in figures.datasets
    ]


# ---- text ----


def as_text(figures: Figures, expectations: Sequence[Expectation]) -> str:
    """The report for a terminal or a log, at most 100 columns where the words allow it."""
    lines = [_outcome(expectations), "", *_wrapped(_summary(figures), 96), ""]
    lines += ["Expectations"]
    for expectation in expectations:
        lines.append(f"  {'met   ' if expectation.met else 'MISSED'}  {expectation.name}: {expectation.sentence}")
    lines += ["", "Policies"]
    for policy in figures.policies:
        words = _policy_words(policy)
        lines.append(f"  {words[0]}")
        lines += [f"    {head:<37} {word}" for head, word in zip(_POLICY_HEADS[1:], words[1:], strict=True)]
    lines += ["", "Other skills, greedy exact match, before and after"]
    for skill in figures.skills:
        change = 100 * (skill.after.share - skill.before.share)
        lines.append(
            f"  {skill.skill:<18} {_percent(skill.before.share):>8} {_percent(skill.after.share):>8} "
            f"{change:+6.1f} points  on {skill.after.trials}"
        )
    lines += ["", "Swaps"]
    for swap in figures.swaps:
        told = [f"{head} {word}" for head, word in zip(_SWAP_HEADS[1:], _swap_words(swap)[1:], strict=True)]
        lines.append(f"  {swap.policy_id}: {', '.join(told)}")
    lines += ["", "The gate"]
    for verdict in figures.verdicts:
        lines.append(f"  {verdict.policy_id} {'passed' if verdict.passed else 'was refused'}")
        lines += [f"    {'' if check.passed else 'FAILED '}{check.name}: {check.reason}" for check in verdict.checks]
    if figures.cycles_skipped:
        lines.append(f"  {figures.cycles_skipped} cycles were skipped: little was left to learn")
    lines += ["", "Datasets"]
    lines += [f"  {words[0]}: {words[1]}; left out: {words[2]}; for {words[3]}" for words in _dataset_words(figures)]
    lines += ["", "Before and after"]
    for pair in figures.answers:
        lines += [
            f"  {pair.question}",
            f"    before ({pair.before_kind}): {pair.before}",
            f"    after  ({pair.after_kind}): {pair.after}",
        ]
    lines += ["", "Time"]
    lines += [f"  {stage:<40} {_seconds(seconds):>8}" for stage, seconds in figures.stage_seconds.items()]
    lines += ["", "Machine and versions", f"  {'seed':<18} {figures.seed}"]
    lines += [f"  {name:<18} {value}" for name, value in figures.surroundings.items()]
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


# ---- page ----

_STYLE = """
:root { color-scheme: light; --ink: #1f2933; --muted: #64748b; --rule: #e2e8f0; --good: #0f766e; --bad: #b91c1c; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue",
  Arial, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.12rem; margin: 2.4rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; }
.muted { color: var(--muted); }
.outcome { display: inline-block; margin: .8rem 0 .4rem; padding: .25rem .8rem; border-radius: 1rem; font-weight: 600; }
.outcome.met { background: #ccfbf1; color: #115e59; }
.outcome.missed { background: #fee2e2; color: #991b1b; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: .8rem; margin: 1.2rem 0 0; }
.tile { border: 1px solid var(--rule); border-radius: .6rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.35rem; letter-spacing: -.01em; white-space: nowrap; }
.tile span { color: var(--muted); font-size: .85rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
figure { margin: .4rem 0 0; }
figcaption { color: var(--muted); font-size: .85rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif !important; }
.wide { overflow-x: auto; margin-top: .6rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { text-align: left; font-weight: 600; color: var(--muted); vertical-align: bottom; }
th, td { padding: .38rem .7rem .38rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td { overflow-wrap: anywhere; }
.met { color: var(--good); } .missed { color: var(--bad); }
td.met, td.missed { font-weight: 600; white-space: nowrap; }
.kind { display: block; color: var(--muted); font-size: .8rem; }
td.claim, td.wrong { color: var(--bad); }
footer { margin-top: 3rem; color: var(--muted); font-size: .85rem; }
@media (max-width: 720px) { .tiles { grid-template-columns: 1fr 1fr; } .pair { grid-template-columns: 1fr; } }
@media print {
  main { padding: 0; max-width: none; } body { font-size: 11px; }
  h2 { break-after: avoid; } tr, figure, .tile { break-inside: avoid; }
}
"""


def as_html(figures: Figures, expectations: Sequence[Expectation]) -> str:
    """The whole page: style and drawings inside, no script, nothing fetched."""
    when = time.strftime("%d %B %Y, %H:%M UTC", time.gmtime(figures.started_unix_seconds))
    met = all_met(tuple(expectations))
    sections = [
        f"<h1>attune rehearsal</h1><p class='muted'>{when} · seed {figures.seed}"
        f"{' · shuffled thumbs' if figures.shuffled else ''}</p>",
        f"<p class='outcome {'met' if met else 'missed'}'>{_text(_outcome(expectations))}</p>",
        f"<p>{_text(_summary(figures))}</p>",
        _tiles(figures),
        "<h2>What was expected</h2>",
        _expectations(expectations),
        "<h2>While people talked</h2>",
        _plot(
            plots.over_time(figures),
            "False claims among the latest 50 errands of users. Shaded: a policy is in training. "
            "Green lines: the first answer of a new policy.",
        ),
        "<div class='pair'><div><h2>False claims</h2>",
        _plot(
            plots.claims_by_policy(figures),
            "Bars: exact probability on held-out errands, what stayed unresolved lighter and counted. "
            "Points: sampled answers with their 95 % interval.",
        ),
        "</div><div><h2>Approval</h2>",
        _plot(plots.approval_by_policy(figures), "Thumbs up among all thumbs of users, with the 95 % interval."),
        "</div></div>",
        _table(_POLICY_HEADS, map(_policy_words, figures.policies)),
        "<h2>Other skills</h2>",
        _plot(
            plots.skills_before_and_after(figures),
            f"Greedy exact match on held-out items, {BASE_POLICY} and {figures.last_policy_id}, with 95 % intervals.",
        ),
        "<h2>Swaps</h2>",
        _table(_SWAP_HEADS, map(_swap_words, figures.swaps)),
        "<h2>The same questions, before and after</h2>",
        _answers(figures),
        "<h2>The gate</h2>",
        _verdicts(figures),
        "<h2>Datasets</h2>",
        _table(("dataset", "examples", "left out", "policies"), _dataset_words(figures)),
        "<h2>Time</h2>",
        _table(("stage", "took"), ((stage, _seconds(s)) for stage, s in figures.stage_seconds.items())),
        "<h2>Machine and versions</h2>",
        _table(("", ""), figures.surroundings.items()),
        "<footer>Made by <code>attune rehearse</code>. All figures are in <code>report.json</code> beside this page."
        "</footer>",
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>attune rehearsal, seed {figures.seed}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(sections)}\n</main></body></html>\n"
    )


def _text(text: str) -> str:
    return html.escape(text)


def _plot(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in heads) if any(heads) else ""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    if not body:
        return "<p class='muted'>None.</p>"
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(words: str) -> str:
    """What stands in brackets at the end comes below, smaller."""
    main, bracket, rest = words.partition(" (")
    below = f"<span class='kind'>{_text(rest.removesuffix(')'))}</span>" if bracket and words.endswith(")") else ""
    return f"<td>{_text(main) + below if below else _text(words)}</td>"


def _tiles(figures: Figures) -> str:
    base, last = figures.policy(BASE_POLICY), figures.policy(figures.last_policy_id)
    claims = [_percent(policy.exact.counted) if policy and policy.exact else "–" for policy in (base, last)]
    hits = [sum(skill.before.hits for skill in figures.skills), sum(skill.after.hits for skill in figures.skills)]
    trials = [sum(skill.before.trials for skill in figures.skills), sum(skill.after.trials for skill in figures.skills)]
    skills = [_percent(Proportion(*pair).share) for pair in zip(hits, trials, strict=True)]
    waits = [swap.vote_to_serving_seconds for swap in figures.swaps]
    longest = max((seconds for seconds in waits if seconds is not None), default=None)
    tiles = (
        (f"{claims[0]} → {claims[1]}", "false claims on held-out errands"),
        (f"{skills[0]} → {skills[1]}", "other skills, exact match"),
        ("–" if longest is None else f"{longest:.0f} s", "last needed vote to serving, longest"),
        (f"{figures.streams_broken} of {figures.streams}", "streams broken"),
    )
    boxes = "".join(f"<div class='tile'><b>{_text(b)}</b><span>{_text(s)}</span></div>" for b, s in tiles)
    return f"<div class='tiles'>{boxes}</div>"


def _expectations(expectations: Sequence[Expectation]) -> str:
    rows = "".join(
        f"<tr><td class='{'met' if e.met else 'missed'}'>{'met' if e.met else 'missed'}</td><td>{_text(e.name)}</td>"
        f"<td>{_text(e.figure)}</td><td>{_text(e.limit)}</td></tr>"
        for e in expectations
    )
    misses = "".join(f"<p class='missed'>{_text(e.sentence)}</p>" for e in expectations if not e.met)
    return (
        f"{misses}<div class='wide'><table><thead><tr><th></th><th>expected</th><th>seen</th><th>limit</th></tr>"
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _answers(figures: Figures) -> str:
    rows = "".join(
        f"<tr><td>{_text(pair.question)}</td>"
        + "".join(
            f"<td class='{_text(kind)}'>{_text(answer)}<span class='kind'>{_text(kind)}</span></td>"
            for kind, answer in ((pair.before_kind, pair.before), (pair.after_kind, pair.after))
        )
        + "</tr>"
        for pair in figures.answers
    )
    if not rows:
        return "<p class='muted'>None.</p>"
    return (
        f"<div class='wide'><table><thead><tr><th>question</th><th>{BASE_POLICY}</th>"
        f"<th>{_text(figures.last_policy_id)}</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _verdicts(figures: Figures) -> str:
    rows = ""
    for verdict in figures.verdicts:
        outcome = "met" if verdict.passed else "missed"
        rows += (
            f"<tr><td><b>{_text(verdict.policy_id)}</b></td><td class='{outcome}'>"
            f"{'passed' if verdict.passed else 'refused'}</td><td></td></tr>"
        )
        for check in verdict.checks:
            outcome = "met" if check.passed else "missed"
            rows += (
                f"<tr><td>{_text(check.name)}</td><td class='{outcome}'>{'passed' if check.passed else 'failed'}</td>"
                f"<td>{_text(check.reason)}</td></tr>"
            )
    skipped = figures.cycles_skipped
    note = f"<p class='muted'>{skipped} cycles were skipped: little was left to learn.</p>" if skipped else ""
    if not rows:
        return note or "<p class='muted'>No candidate was judged.</p>"
    return (
        f"<div class='wide'><table><thead><tr><th>candidate, check</th><th></th><th>why</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{note}"
    )
