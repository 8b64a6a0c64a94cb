import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from attune.errors import Aborted, AlreadyExists, Unavailable
from attune.inference.idempotency import Idempotency, _Held
from tests.inference.waiting import eventually

NAME = ("acme", "chat", "mine")
OTHER = ("acme", "chat", "other")


def opened(folder: Path, *, keep_hours: float = 1, most_answers: int = 100) -> Idempotency:
    return Idempotency(folder / "idempotency.sqlite", keep_hours=keep_hours, most_answers=most_answers)


async def answered(store: Idempotency, name: tuple[str, str, str], answer: bytes, *, durable: bool = True) -> None:
    assert store.begin(name, b"digest") is None
    await store.finish(name, answer, durable=durable)
    store.release(name)


async def test_the_first_answer_is_given_again_over_a_restart_too(tmp_path: Path) -> None:
    store = opened(tmp_path)
    await answered(store, NAME, b"answer")
    assert store.begin(NAME, b"digest") == b"answer"
    store.close()
    store = opened(tmp_path)
    assert store.begin(NAME, b"digest") == b"answer"
    assert store.begin(("other", "chat", "mine"), b"digest") is None
    store.close()


async def test_another_body_and_a_running_request_are_refused(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.begin(NAME, b"digest") is None
    with pytest.raises(Aborted) as running:
        store.begin(NAME, b"digest")
    assert running.value.retry_after_seconds == 1
    with pytest.raises(AlreadyExists):
        store.begin(NAME, b"another")
    await store.finish(NAME, b"answer", durable=True)
    store.release(NAME)
    with pytest.raises(AlreadyExists):
        store.begin(NAME, b"another")
    store.close()


async def test_a_failed_request_frees_its_id(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.begin(NAME, b"digest")
    store.release(NAME)
    assert store.begin(NAME, b"another") is None
    store.close()


async def test_what_nobody_waits_for_is_given_again_at_once_and_after_a_restart(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.begin(NAME, b"digest")
    written = store.finish_soon(NAME, b"answer")
    store.release(NAME)
    assert store.begin(NAME, b"digest") == b"answer"
    with pytest.raises(AlreadyExists):
        store.begin(NAME, b"another")
    await asyncio.wrap_future(written)
    await eventually(lambda: not store._held)
    assert store.begin(NAME, b"digest") == b"answer"
    store.begin(OTHER, b"digest")
    store.finish_soon(OTHER, b"as the server stops")
    store.close()
    store = opened(tmp_path)
    assert store.begin(OTHER, b"digest") == b"as the server stops"
    store.close()


async def test_an_id_whose_answer_could_not_be_written_is_free_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store._reader.execute("DROP TABLE answers")
    store._held[NAME] = _Held(b"digest")
    with pytest.raises(Unavailable, match="could not be kept"):
        await store.finish(NAME, b"answer", durable=True)
    await eventually(lambda: NAME not in store._held)
    store.close()


async def test_an_erasure_reaches_what_was_about_to_be_written(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in range(20):
        name = ("acme", "chat", str(number))
        store.begin(name, b"digest")
        store.finish_soon(name, b"Quokkaflower")
    assert await asyncio.to_thread(store.erase, lambda _name, answer: answer == b"Quokkaflower") == 20
    store.close()


async def test_what_may_not_be_stored_is_given_again_and_is_nowhere_on_disk(tmp_path: Path) -> None:
    store = opened(tmp_path)
    await answered(store, NAME, b"a private answer", durable=False)
    assert store.begin(NAME, b"digest") == b"a private answer"
    store.close()
    assert not any(b"private" in file.read_bytes() for file in tmp_path.iterdir())  # noqa: ASYNC240 - small files


async def test_old_answers_are_forgotten(tmp_path: Path) -> None:
    store = opened(tmp_path, keep_hours=-1)
    await answered(store, NAME, b"answer")
    await answered(store, ("acme", "chat", "other"), b"answer", durable=False)
    for name in (NAME, ("acme", "chat", "other")):
        assert store.begin(name, b"new") is None
    store.close()


async def test_the_number_of_answers_is_bounded(tmp_path: Path) -> None:
    store = opened(tmp_path, most_answers=3)
    for number in range(6):
        await answered(store, ("acme", "chat", str(number)), b"a", durable=False)
    assert sum(held.answer is not None for held in store._held.values()) == 3
    for number in range(6):
        await answered(store, ("acme", "kept", str(number)), b"a")
    store._tidy(store._reader)
    assert store._reader.execute("SELECT count(*) FROM answers").fetchone() == (3,)
    store.close()


async def test_answers_of_many_requests_at_once_are_all_kept(tmp_path: Path) -> None:
    store = opened(tmp_path, most_answers=1000)
    await asyncio.gather(*(answered(store, ("acme", "chat", str(number)), b"a") for number in range(300)))
    assert store._reader.execute("SELECT count(*) FROM answers").fetchone() == (300,)
    store.close()


@pytest.mark.parametrize("damage", [b"garbage" * 1000, None])
async def test_a_damaged_file_is_begun_anew(tmp_path: Path, damage: bytes | None) -> None:
    store = opened(tmp_path)
    for number in range(50):
        await answered(store, ("acme", "chat", str(number)), b"answer" * 500)
    store.close()
    file = tmp_path / "idempotency.sqlite"
    half = file.stat().st_size // 2
    file.write_bytes(damage or file.read_bytes()[:half] + bytes(half))
    store = opened(tmp_path)
    await answered(store, NAME, b"another")
    store.close()
    store = opened(tmp_path)
    assert store.begin(NAME, b"digest") == b"another"
    store.close()


async def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "idempotency.sqlite").mkdir()
    with pytest.raises(Unavailable, match=r"idempotency\.sqlite cannot be opened"):
        opened(tmp_path)


async def test_a_file_that_is_damaged_while_it_is_used_refuses_for_a_reason(tmp_path: Path) -> None:
    store = opened(tmp_path)
    await answered(store, NAME, b"answer")
    store._reader.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (tmp_path / "idempotency.sqlite").write_bytes(b"garbage" * 10_000)
    with pytest.raises(Unavailable, match="cannot be read now"):
        store.begin(NAME, b"digest")
    store.close()


async def test_erased_answers_are_in_no_page_of_the_file(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in range(50):
        word = b"Quokkaflower" if number == 7 else b"others"
        await answered(store, ("acme", "chat", f"request-{number}"), word * 100)
    await answered(store, ("acme", "chat", "held"), b"Quokkaflower", durable=False)
    file = tmp_path / "idempotency.sqlite"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("DELETE FROM answers WHERE client_id = 'request-7'")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    await answered(store, NAME, b"Quokkaflower")

    def theirs(_name: tuple[str, str, str], answer: bytes) -> bool:
        return b"Quokkaflower" in answer

    store.forget(theirs)
    assert store.erase(theirs) == 1
    assert b"Quokkaflower" not in file.read_bytes()
    assert b"Quokkaflower" not in file.with_name(f"{file.name}-wal").read_bytes()
    assert store.begin(("acme", "chat", "held"), b"digest") is None
    assert store.begin(("acme", "chat", "request-8"), b"digest") == b"others" * 100
    store.close()
