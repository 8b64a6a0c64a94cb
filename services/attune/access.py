"""Who may call what: roles, callers, and the one table of rules."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from attune.errors import PermissionDenied, Unauthenticated


class Role(StrEnum):
    """What a key is for."""

    CHAT = "chat"
    FEEDBACK = "feedback"
    REVIEW = "review"
    OPERATE = "operate"


@dataclass(frozen=True)
class KeyLimits:
    """What one key may use on one replica; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent_requests: int | None = None


UNLIMITED = KeyLimits()


@dataclass(frozen=True)
class Caller:
    """Who calls. Without a key (a browser with a feedback token) the key id, the tenant and the roles are empty."""

    tenant: str = ""
    key_id: str = ""
    roles: frozenset[Role] = frozenset()
    limits: KeyLimits = UNLIMITED

    def require(self, *roles: Role) -> None:
        """Raises PermissionDenied unless the key has one of the roles."""
        if self.roles.isdisjoint(roles):
            raise PermissionDenied(f"this needs a key with the role {' or '.join(roles) or 'of nobody'}")


NOBODY = Caller()


class Authenticator(Protocol):
    """Knows keys."""

    def authenticate(self, credential: str | None) -> Caller:
        """Who presents this `Authorization` value; NOBODY for none. Raises Unauthenticated for one that is not ours."""


@dataclass(frozen=True)
class Rule:
    """Who may call a method: with one of the roles, or, if `open`, anybody."""

    roles: tuple[Role, ...] = ()
    open: bool = False


ANYBODY = Rule(open=True)
_CHAT = Rule((Role.CHAT,))
_FEEDBACK = Rule((Role.FEEDBACK, Role.REVIEW))
_OPERATE = Rule((Role.OPERATE,))

RULES: Mapping[str, Rule] = {
    "attune.v1.ChatService/Chat": _CHAT,
    "attune.v1.ChatService/StreamChat": _CHAT,
    # The feedback token says by itself who may: the handler asks for a key where there is none.
    "attune.v1.FeedbackService/SubmitFeedback": ANYBODY,
    "attune.v1.FeedbackService/SubmitFeedbackBatch": _FEEDBACK,
    "attune.v1.ImportService/ImportResponses": Rule((Role.FEEDBACK,)),
    "attune.v1.ReceiptService/GetReceipts": ANYBODY,  # as SubmitFeedback
    "attune.v1.ExportService/ExportRecords": _OPERATE,
    "attune.v1.ErasureService/EraseUser": _OPERATE,
    "attune.v1.ErasureService/GetErasure": _OPERATE,
    "attune.v1.ErasureService/ListErasures": _OPERATE,
    "attune.v1.DatasetService/BuildDatasets": _OPERATE,
    "attune.v1.DatasetService/ListDatasets": _OPERATE,
    "attune.v1.DatasetService/GetDataset": _OPERATE,
    "attune.v1.DatasetService/CompareDatasets": _OPERATE,
    "attune.v1.DatasetService/VerifyDatasets": _OPERATE,
    "attune.v1.DatasetService/ExplainExample": _OPERATE,
    "attune.v1.LineageService/GetLineage": _OPERATE,
    "attune.v1.LogService/TailLog": _OPERATE,
    "attune.v1.LakeService/GetLakeStats": _OPERATE,
    "attune.v1.LakeService/OptimizeLake": _OPERATE,
    "attune.v1.PolicyService/ListPolicies": _OPERATE,
    "attune.v1.PolicyService/GetRollout": _OPERATE,
    "attune.v1.PolicyService/ApprovePolicy": _OPERATE,
    "attune.v1.PolicyService/RollBack": _OPERATE,
    "POST /v1/chat/completions": _CHAT,
    "GET /v1/models": Rule((Role.CHAT, Role.OPERATE)),
    "GET /v1/models/{model}": Rule((Role.CHAT, Role.OPERATE)),
    "POST /v1/feedback": ANYBODY,
    "GET /healthz": ANYBODY,
    "GET /readyz": ANYBODY,
    "GET /openapi.json": ANYBODY,
    "grpc.health.v1.Health/Check": ANYBODY,
    "grpc.health.v1.Health/Watch": ANYBODY,
    "grpc.health.v1.Health/List": ANYBODY,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": ANYBODY,
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": ANYBODY,
}
"""Who may call what: gRPC methods by full name, HTTP routes by method and path. The rest nobody may call."""


def admit(authenticator: Authenticator, method: str, credential: str | None) -> Caller:
    """Who calls, once it is clear that they may. Raises Unauthenticated or PermissionDenied.

    Where anybody may call, a credential that is not ours is refused all the same: it is a mistake.
    """
    rule = RULES.get(method, Rule())
    caller = authenticator.authenticate(credential)
    if rule.open:
        return caller
    if caller is NOBODY:
        raise Unauthenticated("an API key is needed: authorization: Bearer ak-...")
    caller.require(*rule.roles)
    return caller


CALLER: ContextVar[Caller] = ContextVar("caller", default=NOBODY)
"""Who makes the running call; set where it comes in."""
