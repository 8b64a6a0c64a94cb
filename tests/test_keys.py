import stat
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from attune.errors import DataLoss
from attune.keys import Keys, PolicySigner, PolicyVerifier


def test_keys_are_made_once_and_differ(tmp_path: Path) -> None:
    made = Keys.load_or_create(tmp_path / "keys")
    assert _plain(Keys.load_or_create(tmp_path / "keys")) == _plain(made)
    (key,) = made.signing.all()
    secrets = [key.response_id, key.feedback_token, made.end_user, made.split]
    assert len(set(secrets)) == 4
    assert {len(secret) for secret in secrets} == {32}


def test_only_their_owner_may_read_them(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    Keys.load_or_create(folder)
    PolicySigner.load_or_create(folder)
    Keys.load_or_create(folder).signing.rotate(token_life_seconds=60)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert not list(folder.glob(".*")), "no draft is left"


def _plain(keys: Keys) -> tuple[object, ...]:
    return keys.signing.all(), keys.end_user, keys.split


def _load(folder: Path) -> tuple[object, ...]:
    return _plain(Keys.load_or_create(folder))


def test_processes_that_make_them_at_once_agree(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        made = list(pool.map(_load, [tmp_path / "keys"] * 8))
    assert all(each == made[0] for each in made)


def test_a_damaged_key_is_said_and_not_replaced(tmp_path: Path) -> None:
    Keys.load_or_create(tmp_path)
    (tmp_path / "split.key").write_bytes(b"short")
    with pytest.raises(DataLoss, match=r"split.key holds 5 bytes; a key has 32"):
        Keys.load_or_create(tmp_path)


def test_a_signature_holds_for_its_message_and_this_installation_only(tmp_path: Path) -> None:
    signature = PolicySigner.load_or_create(tmp_path / "here").sign(b"manifest")
    assert PolicyVerifier.load_or_create(tmp_path / "here").holds(b"manifest", signature)
    assert not PolicyVerifier.load_or_create(tmp_path / "here").holds(b"manifest!", signature)
    assert not PolicyVerifier.load_or_create(tmp_path / "here").holds(b"manifest", signature[:-1])
    assert not PolicyVerifier.load_or_create(tmp_path / "there").holds(b"manifest", signature)
