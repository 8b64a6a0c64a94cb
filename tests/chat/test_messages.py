import pytest

from attune.chat.messages import check_messages, count_turns, plain_messages, typed_messages
from attune.errors import InvalidInput

CONVERSATION = [
    {"role": "system", "content": "Today is Monday."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "are you there?"},
]


def test_plain_and_typed_messages_are_each_others_inverse() -> None:
    typed = typed_messages(CONVERSATION)
    check_messages(typed)
    assert plain_messages(typed) == CONVERSATION
    assert count_turns(typed) == 2


def test_an_unknown_role_at_rest_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"messages\[0\] has an unknown role"):
        typed_messages([{"role": "oracle", "content": "a"}])


def test_a_refusal_names_the_message() -> None:
    with pytest.raises(InvalidInput) as refused:
        check_messages(typed_messages([*CONVERSATION, CONVERSATION[0], CONVERSATION[1]]))
    assert refused.value.field == "messages[4].role"
