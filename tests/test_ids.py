import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attune.errors import InvalidInput, PermissionDenied
from attune.ids import (
    BASE_POLICY,
    DEFAULT_TENANT,
    check_name,
    hash_end_user,
    is_response_id,
    new_event_id,
    new_response_id,
    persona_label,
    policy_id,
    policy_number,
    read_feedback_token,
    sign_feedback_token,
)
from attune.v1 import feedback_pb2

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
HANDLE = feedback_pb2.FeedbackHandle(
    tenant="default",
    persona="concierge",
    conversation_id="c",
    response_id="r",
    prompt_digest=b"\x00\xff",
    end_user="e",
    expires_unix_seconds=1000,
    key_id="k1",
)


def test_event_ids_sort_by_when_they_were_made() -> None:
    ids = [new_event_id() for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_a_response_id_is_good_for_its_tenant_and_key_only() -> None:
    made = new_response_id("default", KEY)
    assert is_response_id(made, "default", KEY)
    assert not is_response_id(made, "another", KEY)
    assert not is_response_id(made, "default", OTHER_KEY)


def test_a_response_id_with_any_character_changed_is_nobodys() -> None:
    made = new_response_id("default", KEY)
    for place, character in enumerate(made):
        forged = made[:place] + ("0" if character != "0" else "1") + made[place + 1 :]
        assert not is_response_id(forged, "default", KEY)


@given(st.text(max_size=80))
def test_any_text_as_a_response_id_is_nobodys(text: str) -> None:
    assert not is_response_id(text, "default", KEY)


def test_a_pseudonym_is_the_same_for_the_same_person_and_says_nothing_across_tenants() -> None:
    ann = hash_end_user("default", "ann", KEY)
    assert ann == hash_end_user("default", "ann", KEY)
    assert len({ann, hash_end_user("other", "ann", KEY), hash_end_user("default", "ann", OTHER_KEY)}) == 3
    assert hash_end_user("default", "", KEY) == ""
    assert "ann" not in ann


def test_a_feedback_token_gives_back_its_handle_until_it_expires() -> None:
    token = sign_feedback_token(HANDLE, KEY)
    assert read_feedback_token(token, {"k1": KEY}.get, 1000) == HANDLE
    with pytest.raises(PermissionDenied, match="has expired"):
        read_feedback_token(token, {"k1": KEY}.get, 1001)


def test_a_feedback_token_of_an_older_key_is_good_as_long_as_the_key_is_kept() -> None:
    old = sign_feedback_token(HANDLE, KEY)
    keys = {"k1": KEY, "k2": OTHER_KEY}
    assert read_feedback_token(old, keys.get, 0) == HANDLE
    with pytest.raises(PermissionDenied, match="not one that this server signed"):
        read_feedback_token(old, {"k2": OTHER_KEY}.get, 0)


def test_a_feedback_token_with_any_character_changed_is_refused() -> None:
    token = sign_feedback_token(HANDLE, KEY)
    for place, character in enumerate(token):
        for other in "A_.":
            if other == character:
                continue
            forged = token[:place] + other + token[place + 1 :]
            with pytest.raises(PermissionDenied, match="not one that this server signed"):
                read_feedback_token(forged, {"k1": KEY}.get, 0)


def test_a_handle_signed_with_another_key_under_our_keys_name_is_refused() -> None:
    with pytest.raises(PermissionDenied):
        read_feedback_token(sign_feedback_token(HANDLE, OTHER_KEY), {"k1": KEY}.get, 0)


@given(
    st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda data: base64.urlsafe_b64encode(data).decode()))
)
def test_any_text_as_a_feedback_token_is_refused(text: str) -> None:
    for token in (text, f"{text}.{'A' * 43}"):
        with pytest.raises(PermissionDenied):
            read_feedback_token(token, {"k1": KEY, "": KEY}.get, 0)


@given(st.integers(min_value=0, max_value=999_999_999))
def test_policy_ids_and_numbers_are_each_others_inverse(number: int) -> None:
    assert policy_number(policy_id(number)) == number


def test_the_base_is_policy_0() -> None:
    assert (policy_id(0), policy_number(BASE_POLICY)) == ("base", 0)
    assert policy_id(7) == "p-000007"


@pytest.mark.parametrize(
    "text",
    ["", "p-", "p-7", "p-000000", "p-0000007", "P-000007", "p-000007\n", "p-٠٠٠٠٠٧", "../p-000007", "p-000007/..",
     "p-00000\0", "https://x/p-000007", "BASE", "p-9999999999"],
)  # fmt: skip
def test_anything_else_is_no_policy_id(text: str) -> None:
    with pytest.raises(InvalidInput, match="a policy id looks like p-000007"):
        policy_number(text)


@pytest.mark.parametrize("name", ["a", "concierge", "a-b-1", "0", "x" * 63])
def test_names(name: str) -> None:
    assert check_name(name, "persona") == name


@pytest.mark.parametrize("name", ["", "-a", "A", "a b", "a/b", "..", "a\n", "é", "x" * 64, "a\0"])
def test_anything_else_is_no_name(name: str) -> None:
    with pytest.raises(InvalidInput, match="persona must be 1 to 63"):
        check_name(name, "persona")


def test_two_tenants_personas_of_one_name_have_two_labels() -> None:
    assert persona_label(DEFAULT_TENANT, "concierge") == "concierge"
    assert persona_label("acme", "concierge") == "acme/concierge"
