"""Which examples are held out: whose feedback is never trained on is decided by a keyed hash, for ever."""

import functools
import hmac
from collections.abc import Iterable

TRAIN = "train"
HELDOUT = "heldout"


def split_of(key: bytes, tenant: str, end_users: Iterable[str], conversation_id: str, heldout_share: float) -> str:
    """ "heldout" when any of the people concerned is held out; where nobody is known the conversation decides.

    The people are who gave the feedback and who the response was given to: neither is trained on when held out.
    """
    known = [end_user for end_user in end_users if end_user]
    names = [f"{tenant}/{end_user}" for end_user in known] or [f"{tenant}/conversation/{conversation_id}"]
    return HELDOUT if any(_share(key, name) < heldout_share for name in names) else TRAIN


@functools.lru_cache(maxsize=1 << 17)
def _share(key: bytes, name: str) -> float:
    """A number in [0, 1) from HMAC-SHA256: the first 53 bits, which a float holds exactly."""
    return (int.from_bytes(hmac.digest(key, name.encode(), "sha256")[:8], "big") >> 11) / (1 << 53)
