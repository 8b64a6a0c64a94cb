"""Ids, and the signatures that make them checkable by any replica without a look-up."""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable

from google.protobuf.message import DecodeError
from uuid_utils import uuid7

from attune.errors import InvalidInput, PermissionDenied
from attune.v1 import feedback_pb2

BASE_POLICY = "base"
DEFAULT_TENANT = "default"

_MAC_BYTES = 8
_RESPONSE_ID = re.compile(r"r-([0-9a-f]{32})-([0-9a-f]{16})")
_POLICY_ID = re.compile(r"p-([0-9]{6,9})")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,2048}\.[A-Za-z0-9_-]{43}")


def new_event_id() -> str:
    """A UUIDv7 as 32 hexadecimal digits: ids sort by the time they were made."""
    return uuid7().hex


def new_conversation_id() -> str:
    """`c-<UUIDv7>`, for a conversation that its application gave no id."""
    return f"c-{uuid7().hex}"


def new_response_id(tenant: str, key: bytes) -> str:
    """`r-<UUIDv7>-<MAC over tenant and id>`."""
    unique = uuid7().hex
    return f"r-{unique}-{_mac(tenant, unique, key)}"


def imported_response_id(tenant: str, import_id: str, index: int, key: bytes) -> str:
    """The id of an answer that came from elsewhere: the same import always has the same."""
    unique = hmac.new(key, f"import\0{tenant}\0{import_id}\0{index}".encode(), hashlib.sha256).hexdigest()[:32]
    return f"r-{unique}-{_mac(tenant, unique, key)}"


def is_response_id(response_id: str, tenant: str, key: bytes) -> bool:
    """Whether the id was made for this tenant with this key."""
    match = _RESPONSE_ID.fullmatch(response_id)
    return match is not None and hmac.compare_digest(match[2], _mac(tenant, match[1], key))


def hash_end_user(tenant: str, end_user_id: str, key: bytes) -> str:
    """The pseudonym of an application's end user: 32 hexadecimal digits; empty stays empty."""
    if not end_user_id:
        return ""
    return hmac.new(key, f"{tenant}\0{end_user_id}".encode(), hashlib.sha256).hexdigest()[:32]


def sign_feedback_token(handle: feedback_pb2.FeedbackHandle, key: bytes) -> str:
    """`<handle>.<HMAC-SHA256>`, both base64url without padding; the key is the one that handle.key_id names."""
    payload = handle.SerializeToString(deterministic=True)
    return f"{_encode(payload)}.{_encode(hmac.digest(key, payload, 'sha256'))}"


def read_feedback_token(
    token: str, find: Callable[[str], bytes | None], now_unix_seconds: float
) -> feedback_pb2.FeedbackHandle:
    """The handle in a token, once its signature and expiry are checked; `find` gives the key that has an id.

    Raises PermissionDenied, with the same sentence whatever is wrong with the signature.
    """
    forged = PermissionDenied("the feedback token is not one that this server signed", field="feedback_token")
    if not _TOKEN.fullmatch(token):
        raise forged
    payload_text, signature_text = token.split(".")
    try:
        payload, signature = _decode(payload_text), _decode(signature_text)
        handle = feedback_pb2.FeedbackHandle.FromString(payload)
    except (ValueError, DecodeError):
        raise forged from None
    key = find(handle.key_id)
    canonical = _encode(signature) == signature_text and _encode(payload) == payload_text
    if key is None or not canonical or not hmac.compare_digest(signature, hmac.digest(key, payload, "sha256")):
        raise forged
    if handle.expires_unix_seconds < now_unix_seconds:
        raise PermissionDenied("the feedback token has expired", field="feedback_token")
    return handle


def policy_id(number: int) -> str:
    """`p-000007` for 7, `base` for 0."""
    return BASE_POLICY if number == 0 else f"p-{number:06d}"


def policy_number(policy: str) -> int:
    """7 for `p-000007`, 0 for `base`; raises InvalidInput for anything else, paths included."""
    if policy == BASE_POLICY:
        return 0
    match = _POLICY_ID.fullmatch(policy)
    if match is None or policy_id(int(match[1])) != policy or int(match[1]) == 0:
        raise InvalidInput("a policy id looks like p-000007 (or base)", field="policy_id")
    return int(match[1])


def check_name(text: str, field: str) -> str:
    """Returns the name of a persona or tenant, or raises InvalidInput."""
    if not _NAME.fullmatch(text):
        raise InvalidInput(
            f"{field} must be 1 to 63 lower-case letters, digits and dashes, and begin with no dash", field=field
        )
    return text


def persona_label(tenant: str, persona: str) -> str:
    """What metrics and lists know a persona by: another tenant's than the default one has the tenant before it."""
    return persona if tenant == DEFAULT_TENANT else f"{tenant}/{persona}"


def _mac(tenant: str, unique: str, key: bytes) -> str:
    return hmac.new(key, f"{tenant}\0{unique}".encode(), hashlib.sha256).hexdigest()[: 2 * _MAC_BYTES]


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
