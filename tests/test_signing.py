import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attune.errors import DataLoss, NotFound, PermissionDenied
from attune.signing import SigningKeys
from attune.v1 import feedback_pb2

DAY_SECONDS = 86_400.0


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def handle(**fields: object) -> feedback_pb2.FeedbackHandle:
    return feedback_pb2.FeedbackHandle(tenant="default", response_id="r", expires_unix_seconds=2**40, **fields)  # type: ignore[arg-type]


def test_after_a_rotation_the_new_key_signs_and_the_old_one_still_verifies(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    token, response_id = keys.sign_token(handle()), keys.new_response_id("default")
    keys.rotate(token_life_seconds=DAY_SECONDS)
    assert keys.read_token(token, time.time()).key_id == "k1"
    keys.check_response_id(response_id, "default")
    assert keys.read_token(keys.sign_token(handle()), time.time()).key_id == "k2"
    keys.check_response_id(keys.new_response_id("default"), "default")


def test_a_retired_key_verifies_nothing_more_and_its_id_does_not_come_back(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    token, response_id = keys.sign_token(handle()), keys.new_response_id("default")
    assert keys.rotate(token_life_seconds=DAY_SECONDS, retire=True).key_id == "k2"
    with pytest.raises(PermissionDenied, match="not one that this server signed"):
        keys.read_token(token, time.time())
    with pytest.raises(NotFound, match="no such response"):
        keys.check_response_id(response_id, "default")
    assert keys.rotate(token_life_seconds=DAY_SECONDS, retire=True).key_id == "k3"


def test_a_replaced_key_verifies_no_token_once_the_last_one_that_it_signed_is_dead(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    token, response_id = keys.sign_token(handle()), keys.new_response_id("default")
    keys.rotate(token_life_seconds=DAY_SECONDS)
    keys.rotate(token_life_seconds=7 * DAY_SECONDS)
    assert keys.read_token(token, time.time() + DAY_SECONDS - 60).response_id == "r"
    with pytest.raises(PermissionDenied):
        keys.read_token(token, time.time() + DAY_SECONDS + 60)
    keys.check_response_id(response_id, "default")


def test_imports_keep_their_ids_over_a_rotation(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    imported = keys.imported_response_id("default", "file-1", 0)
    keys.rotate(token_life_seconds=DAY_SECONDS)
    assert keys.imported_response_id("default", "file-1", 0) == imported
    keys.check_response_id(imported, "default")


def test_another_process_signs_with_the_new_key_within_a_second(tmp_path: Path) -> None:
    clock = Clock()
    running = SigningKeys(tmp_path, clock)
    SigningKeys(tmp_path).rotate(token_life_seconds=DAY_SECONDS)
    assert running.all()[-1].key_id == "k1"
    clock.seconds = 1.0
    assert running.all()[-1].key_id == "k2"


def test_what_a_replica_signed_with_a_newer_key_is_taken_at_once(tmp_path: Path) -> None:
    clock = Clock()
    running, other = SigningKeys(tmp_path, clock), SigningKeys(tmp_path)
    other.rotate(token_life_seconds=DAY_SECONDS)
    assert running.read_token(other.sign_token(handle()), 0).key_id == "k2"
    other.rotate(token_life_seconds=DAY_SECONDS)
    running.check_response_id(other.new_response_id("default"), "default")


def test_rotations_at_once_are_all_kept(tmp_path: Path) -> None:
    SigningKeys(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: SigningKeys(tmp_path).rotate(token_life_seconds=DAY_SECONDS), range(8)))
    assert sorted(key.key_id for key in made) == [f"k{number}" for number in range(2, 10)]
    assert len(SigningKeys(tmp_path).all()) == 9


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"keys": []}', '{"keys": [{"key_id": "k1"}]}', '{"keys": 3}', "\xff",
     json.dumps({"keys": [{"key_id": "k1", "created_unix_ms": 1, "secret": "c2hvcnQ="}]}),
     "[" * 100_000, json.dumps({"keys": [{"key_id": 1, "created_unix_ms": 1, "secret": "A" * 43 + "="}]}),
     json.dumps({"keys": [{"key_id": "k1", "created_unix_ms": "1", "secret": "A" * 43 + "="}]}),
     json.dumps({"keys": [{"key_id": "x", "created_unix_ms": 1, "secret": "A" * 43 + "="}]})],
)  # fmt: skip
def test_a_damaged_file_stops_a_start_and_leaves_a_running_service_what_it_had(tmp_path: Path, text: str) -> None:
    clock = Clock()
    running = SigningKeys(tmp_path, clock)
    token = running.sign_token(handle())
    (tmp_path / "signing.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataLoss, match=r"signing\.json: not a file of signing keys"):
        SigningKeys(tmp_path)
    clock.seconds = 5.0
    assert running.read_token(token, 0).response_id == "r"
    (tmp_path / "signing.json").unlink()
    clock.seconds = 10.0
    assert running.read_token(token, 0).response_id == "r"


def test_secrets_are_in_no_text_that_may_be_logged(tmp_path: Path) -> None:
    (key,) = SigningKeys(tmp_path).all()
    assert "secret" not in repr(key)
