import pytest

from attune.client.authorized import Authorized
from attune.errors import InvalidInput


@pytest.mark.parametrize("key", ["ak-1\n", "ak-\u043a\u043b\u044e\u0447", "ak-\x00"])
def test_what_no_key_can_be_is_said_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidInput, match="holds characters that no key has") as refused:
        Authorized(object(), key)
    assert key not in refused.value.message
