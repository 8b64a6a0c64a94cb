"""Who may call what: keys, roles, and the table of rules."""

import json
import time
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from attune.access import NOBODY, RULES, KeyLimits, Role, admit
from attune.errors import DataLoss, FailedPrecondition, InvalidInput, NotFound, PermissionDenied, Unauthenticated
from attune.personas.api_keys import KeyStore, local_api_key
from attune.v1 import chat_pb2, dataset_pb2, feedback_pb2, policy_pb2

FILES: list[FileDescriptor] = [
    module.DESCRIPTOR for module in (chat_pb2, dataset_pb2, feedback_pb2, policy_pb2, health_pb2, reflection_pb2)
]
METHODS = [
    f"{service.full_name}/{method.name}"
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
]
OPEN = {method for method in METHODS if RULES[method].open}


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "access")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_rule(method: str) -> None:
    assert RULES[method].open or RULES[method].roles


def test_only_health_reflection_and_what_a_token_allows_are_open() -> None:
    assert {method.split("/")[0].rsplit(".", 1)[1] for method in OPEN} == {
        "Health",
        "ServerReflection",
        "FeedbackService",
        "ReceiptService",
    }
    assert "attune.v1.FeedbackService/SubmitFeedbackBatch" not in OPEN


@pytest.mark.parametrize("method", sorted(set(METHODS) - OPEN))
def test_without_a_key_or_with_one_of_no_use_nobody_gets_in(store: KeyStore, method: str) -> None:
    with pytest.raises(Unauthenticated, match="API key is needed"):
        admit(store, method, None)
    for role in Role:
        credential = f"Bearer {store.create('acme', [role])}"
        if role in RULES[method].roles:
            assert admit(store, method, credential).tenant == "acme"
        else:
            with pytest.raises(PermissionDenied, match="needs a key with the role"):
                admit(store, method, credential)


def test_a_method_that_has_no_rule_is_closed(store: KeyStore) -> None:
    credential = f"Bearer {store.create('acme', tuple(Role))}"
    with pytest.raises(PermissionDenied):
        admit(store, "attune.v1.NewService/New", credential)


@pytest.mark.parametrize(
    "credential",
    ["", "Bearer", "Bearer ", "Bearer sk-1", "Basic abc", "Bearer ak-000000000000-" + "A" * 43, "Bearer ak-x\0y"],
)
def test_what_is_no_key_of_ours_is_refused_even_where_anybody_may_call(store: KeyStore, credential: str) -> None:
    with pytest.raises(Unauthenticated, match="not one of this installation"):
        admit(store, "grpc.health.v1.Health/Check", credential)


def test_a_key_says_whose_it_is_and_what_for(store: KeyStore) -> None:
    limits = KeyLimits(requests_per_minute=5)
    key = store.create("acme", [Role.CHAT, Role.CHAT], label="shop", limits=limits)
    caller = store.authenticate(f"bearer {key}")
    assert (caller.tenant, caller.roles, caller.limits) == ("acme", frozenset([Role.CHAT]), limits)
    assert key.startswith(f"ak-{caller.key_id}-")
    assert store.authenticate(None) is NOBODY


def test_a_key_with_another_secret_is_refused(store: KeyStore) -> None:
    key = store.create("acme", [Role.CHAT])
    other = key[:-1] + ("A" if key[-1] != "A" else "B")
    with pytest.raises(Unauthenticated):
        store.authenticate(f"Bearer {other}")


def test_no_secret_is_at_rest_and_nobody_else_may_read_the_file(store: KeyStore, tmp_path: Path) -> None:
    key = store.create("acme", [Role.CHAT])
    file = tmp_path / "access" / "keys.json"
    assert key.split("-", 2)[2] not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_another_process_learns_of_new_and_revoked_keys(store: KeyStore, tmp_path: Path) -> None:
    now = 0.0
    other = KeyStore(tmp_path / "access", clock=lambda: now)
    key = store.create("acme", [Role.CHAT])
    now = 2.0
    caller = other.authenticate(f"Bearer {key}")
    store.revoke(caller.key_id)
    now = 4.0
    with pytest.raises(Unauthenticated):
        other.authenticate(f"Bearer {key}")
    assert other.list()[0].revoked_unix_ms is not None


def test_a_damaged_file_stops_a_start_and_not_a_running_service(store: KeyStore, tmp_path: Path) -> None:
    key = store.create("acme", [Role.CHAT])
    now = time.monotonic()
    running = KeyStore(tmp_path / "access", clock=lambda: now)
    row = json.loads((tmp_path / "access" / "keys.json").read_text())["keys"][0]
    for text in (
        '{"keys": [{}]}',
        "[" * 100_000,
        *(json.dumps({"keys": [{**row, name: 5.5}]}) for name in row if name != "revoked_unix_ms"),
    ):
        (tmp_path / "access" / "keys.json").write_text(text)
        now += 5
        assert running.authenticate(f"Bearer {key}").tenant == "acme"
        with pytest.raises(DataLoss, match="not a file of API keys"):
            KeyStore(tmp_path / "access")


def test_two_writers_lose_no_key(tmp_path: Path) -> None:
    one, other = KeyStore(tmp_path / "access"), KeyStore(tmp_path / "access")
    for store in (one, other, one, other):
        store.create("acme", [Role.CHAT])
    assert len(KeyStore(tmp_path / "access").list()) == 4


def test_a_start_on_this_machine_alone_makes_one_development_key(store: KeyStore, tmp_path: Path) -> None:
    for _ in range(2):
        store.open_for("127.0.0.1")
    key = local_api_key(tmp_path)
    assert store.authenticate(f"Bearer {key}").roles == frozenset(Role)
    assert len(store.list()) == 1
    assert (tmp_path / "access" / "development.key").stat().st_mode & 0o077 == 0


def test_an_open_address_needs_a_real_key(store: KeyStore) -> None:
    store.open_for("127.0.0.1")
    with pytest.raises(FailedPrecondition, match=r"there is no API key, and 0\.0\.0\.0 is open to others"):
        store.open_for("0.0.0.0")
    store.create("acme", [Role.CHAT])
    store.open_for("0.0.0.0")


def test_bad_keys_are_not_made(store: KeyStore) -> None:
    with pytest.raises(InvalidInput, match="tenant must be"):
        store.create("../acme", [Role.CHAT])
    with pytest.raises(InvalidInput, match="at least one role"):
        store.create("acme", [])
    with pytest.raises(InvalidInput, match="printable"):
        store.create("acme", [Role.CHAT], label="a\nb")
    with pytest.raises(NotFound, match="there is no key nothing"):
        store.revoke("nothing")
    assert store.list() == []


def test_the_file_is_plain_json_with_what_is_needed(store: KeyStore, tmp_path: Path) -> None:
    store.create("acme", [Role.CHAT], label="shop")
    (row,) = json.loads((tmp_path / "access" / "keys.json").read_text())["keys"]
    assert (row["tenant"], row["roles"], row["label"], row["revoked_unix_ms"]) == ("acme", ["chat"], "shop", None)
