"""`attune policy`: which policies there are, why each may serve or not, the way back, and the way out."""

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attune.cli.options import ConfigOption, DataOption, ServerOption, read_settings
from attune.cli.screen import local_time, open_table, plain, show_parts
from attune.cli.service import asked
from attune.ids import DEFAULT_TENANT

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.table import Table

    from attune.client.authorized import Authorized
    from attune.settings import Settings
    from attune.v1 import policy_pb2

policy_app = typer.Typer(help="Policies: list, show, approve, roll back, export.", no_args_is_help=True)

PersonaOption = Annotated[
    str, typer.Option("--persona", metavar="NAME", help="Whose policies; those of default_persona without it.")
]

_DEADLINE_SECONDS = 30.0
_ENTRIES_SHOWN = 10


@policy_app.command("list")
def list_policies(
    persona: PersonaOption = "", server: ServerOption = "", config: ConfigOption = None, data: DataOption = None
) -> None:
    """List a persona's policies, newest first, with their verdicts and shares of the traffic."""
    from attune.v1 import policy_pb2

    with _service(config, data, server) as stub:
        policies = stub.ListPolicies(policy_pb2.ListPoliciesRequest(persona=persona), timeout=_DEADLINE_SECONDS)
        rollout = stub.GetRollout(policy_pb2.GetRolloutRequest(persona=persona), timeout=_DEADLINE_SECONDS)
    show_parts(policies_table(policies.policies, rollout.current))


@policy_app.command("show")
def show(
    policy_id: Annotated[
        str,
        typer.Argument(metavar="[POLICY]", help="p-000007; without it the policy that serves, and the rollout log."),
    ] = "",
    persona: PersonaOption = "",
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Show a policy's verdict with every figure, limit and reason; without a name also how traffic is shared."""
    from attune import ids
    from attune.errors import NotFound
    from attune.v1 import policy_pb2

    ids.policy_number(policy_id or ids.BASE_POLICY)
    with _service(config, data, server) as stub:
        policies = stub.ListPolicies(policy_pb2.ListPoliciesRequest(persona=persona), timeout=_DEADLINE_SECONDS)
        rollout = stub.GetRollout(policy_pb2.GetRolloutRequest(persona=persona), timeout=_DEADLINE_SECONDS)
    if not policy_id:
        show_parts(rollout_table(rollout.current, rollout.history[:_ENTRIES_SHOWN]))
    wanted = policy_id or max(rollout.current.shares, key=lambda share: share.share).policy_id
    if wanted == ids.BASE_POLICY:
        if policy_id:
            show_parts("base is the model that training starts from; it has no verdict")
        return
    for policy in policies.policies:
        if policy.policy_id == wanted:
            show_parts(policy_table(policy, rollout.current), verdict_table(policy))
            return
    raise NotFound(f"no policy {wanted} among the newest of persona {rollout.current.persona}")


@policy_app.command("approve")
def approve(
    policy_id: Annotated[str, typer.Argument(metavar="POLICY", help="p-000007; one that passed the gate.")],
    *,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept in the rollout log.")] = "",
    persona: PersonaOption = "",
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Let a policy meet users, where its persona wants a person to say so (approval = "person")."""
    from attune.v1 import policy_pb2

    request = policy_pb2.ApprovePolicyRequest(persona=persona, policy_id=policy_id, reason=reason)
    with _service(config, data, server) as stub:
        current = stub.ApprovePolicy(request, timeout=_DEADLINE_SECONDS).current
    show_parts(f"{current.persona}: {policy_id} has all traffic now (entry {current.number} of the rollout log)")


@policy_app.command("rollback")
def roll_back(
    policy_id: Annotated[
        str, typer.Argument(metavar="[POLICY]", help="p-000007 or base; without it the policy that served before.")
    ] = "",
    *,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept in the rollout log.")] = "",
    persona: PersonaOption = "",
    server: ServerOption = "",
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Give all traffic of a persona back to an earlier policy. No stream is dropped."""
    from attune.v1 import policy_pb2

    request = policy_pb2.RollBackRequest(persona=persona, policy_id=policy_id, reason=reason)
    with _service(config, data, server) as stub:
        current = stub.RollBack(request, timeout=_DEADLINE_SECONDS).current
    shares = ", ".join(share.policy_id for share in current.shares)
    show_parts(f"{current.persona}: {shares} has all traffic now (entry {current.number} of the rollout log)")


@policy_app.command("export")
def export(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to write; must be empty or not there.")],
    *,
    policy_id: Annotated[
        str, typer.Option("--policy", metavar="POLICY", help="p-000007 or base.  [default: the one that serves]")
    ] = "",
    merged: Annotated[
        bool, typer.Option("--merged", help="Write one model with its tokenizer instead of the adapter alone.")
    ] = False,
    persona: PersonaOption = "",
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Whose persona it is.")] = DEFAULT_TENANT,
    config: ConfigOption = None,
    data: DataOption = None,
) -> None:
    """Write a policy for use elsewhere: a plain PEFT folder, or one model as transformers loads it.

    Reads the data folder; attune need not be running. Nothing is left in TARGET when it fails.
    """
    settings = read_settings(config, data)
    exported = export_policy(
        settings, target.absolute(), policy_id=policy_id, persona=persona, merged=merged, tenant=tenant
    )
    show_parts(f"{exported} is in {target}")


def export_policy(
    settings: "Settings", target: Path, *, policy_id: str, persona: str, merged: bool, tenant: str = DEFAULT_TENANT
) -> str:
    """Writes the policy, all of it or nothing, and returns its id; the whole of it is verified first.

    The gate's verdict is not asked for: a refused policy may be looked at elsewhere.
    """
    from attune import ids
    from attune.errors import FailedPrecondition, NotFound
    from attune.keys import PolicyVerifier
    from attune.personas import PersonaVersions
    from attune.registry.policies import Registry
    from attune.registry.rollouts import RolloutLog

    if not (settings.data / "keys").is_dir():
        raise NotFound(f"{settings.data} is no data folder of attune; name one with --data")
    chosen = PersonaVersions(settings.data / "personas").current(tenant, persona or settings.default_persona).persona
    if not policy_id:
        entry = RolloutLog(settings.data / "registry").current(chosen.tenant, chosen.name)
        policy_id = ids.BASE_POLICY if entry is None else entry.main_policy_id
    is_base = ids.policy_number(policy_id) == 0
    if is_base and not merged:
        raise FailedPrecondition("the base model has no adapter; --merged writes the base model itself")
    registry = Registry(settings.data / "registry", PolicyVerifier.load_or_create(settings.data / "keys"))
    manifest = None if is_base else registry.check(policy_id)
    if manifest is not None and (manifest.tenant, manifest.persona) != (chosen.tenant, chosen.name):
        raise NotFound(f"policy {policy_id} is not of persona {chosen.name}; name its persona with --persona")
    with _whole_or_nothing(target) as draft:
        if manifest is not None:
            registry.copy_out(manifest, draft / "adapter")
        if merged:
            _check_base(settings.model_folder, None if manifest is None else manifest.base_model_hash)
            _merge(settings.model_folder, None if manifest is None else draft / "adapter", draft / "whole")
        else:
            (draft / "adapter").rename(draft / "whole")
    return policy_id


def policies_table(policies: "Sequence[policy_pb2.Policy]", current: "policy_pb2.Rollout") -> "Table":
    """One row for each policy, and one for the base model."""
    from attune import ids

    table = open_table(
        "policy",
        "traffic",
        "verdict",
        "made",
        "datasets",
        "trained from",
        title=f"policies of {current.persona}",
        right=("traffic",),
    )
    for policy in policies:
        failed = [check.name for check in policy.verdict.checks if not check.passed]
        table.add_row(
            policy.policy_id,
            _traffic(policy.policy_id, current),
            _mark(policy) + (f": {plain(', '.join(failed))}" if failed else ""),
            local_time(policy.created_unix_ms),
            plain(", ".join(dataset_id[:16] for dataset_id in policy.dataset_ids)),
            policy.parent_policy_id or ids.BASE_POLICY,
        )
    table.add_row(ids.BASE_POLICY, _traffic(ids.BASE_POLICY, current), "", "", "", "")
    return table


def policy_table(policy: "policy_pb2.Policy", current: "policy_pb2.Rollout") -> "Table":
    """What a policy is made of."""
    from attune import ids

    table = open_table("", "", title=policy.policy_id)
    for name, value in (
        ("persona", policy.persona),
        ("traffic", _traffic(policy.policy_id, current) or "none"),
        ("made", local_time(policy.created_unix_ms)),
        ("trained from", policy.parent_policy_id or ids.BASE_POLICY),
        ("base model", policy.base_model_hash),
        ("datasets", "\n".join(policy.dataset_ids)),
        ("verdict", _mark(policy)),
    ):
        table.add_row(name, value if name == "verdict" else plain(value, keep="\n"))
    return table


def verdict_table(policy: "policy_pb2.Policy") -> "Table":
    """What the gate looked at, check by check."""
    table = open_table("check", "", "figure", "limit", "reason", right=("figure", "limit"))
    for check in policy.verdict.checks:
        table.add_row(
            plain(check.name),
            "[green]passed[/]" if check.passed else "[red]failed[/]",
            _number(check.figure),
            _number(check.limit),
            plain(check.reason),
        )
    return table


def rollout_table(current: "policy_pb2.Rollout", history: "Sequence[policy_pb2.Rollout]") -> "Table":
    """The newest entries of a rollout log; before the first one the base model serves."""
    table = open_table("entry", "policies", "by", "when", "reason", title=f"traffic of {current.persona}")
    for entry in history or (current,):
        shares = ", ".join(f"{share.policy_id} {share.share:.0%}" for share in entry.shares)
        when = local_time(entry.created_unix_ms)
        table.add_row(str(entry.number or ""), shares, plain(entry.author), when, plain(entry.reason))
    return table


def _service(config: Path | None, data: Path | None, server: str) -> "AbstractContextManager[Authorized]":
    from attune.v1 import policy_pb2_grpc

    return asked(read_settings(config, data), "rollout", server, policy_pb2_grpc.PolicyServiceStub)


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """A folder to write into; its `whole` becomes the target when nothing was raised, and nothing is left otherwise."""
    from attune.errors import AlreadyExists, FailedPrecondition

    target = target.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise AlreadyExists(f"{target} is there and not empty; export writes only into a new or empty folder")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        yield draft
        (draft / "whole").rename(target)
    except OSError as error:
        raise FailedPrecondition(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_base(model_folder: Path, base_model_hash: str | None) -> None:
    from attune.chat.model import model_hash
    from attune.errors import FailedPrecondition

    if base_model_hash is not None and model_hash(model_folder) != base_model_hash:
        raise FailedPrecondition(
            f"the policy was trained on base model {base_model_hash[:12]}, which is not the one in {model_folder}"
        )


def _merge(base_folder: Path, adapter_folder: Path | None, target: Path) -> None:
    from attune.trainer.model import export_policy as write_merged

    write_merged(base_folder, adapter_folder, target, merged=True)


def _mark(policy: "policy_pb2.Policy") -> str:
    if not policy.HasField("verdict"):
        return "[dim]none yet[/]"
    if policy.awaits_approval:
        return "[yellow]passed, waits for approval[/]"
    return "[green]passed[/]" if policy.verdict.passed else "[red]refused[/]"


def _number(value: float) -> str:
    """Nothing for what was not measured or has no limit."""
    return f"{value:.4g}" if math.isfinite(value) else ""


def _traffic(policy_id: str, current: "policy_pb2.Rollout") -> str:
    return next((f"{share.share:.0%}" for share in current.shares if share.policy_id == policy_id), "")
