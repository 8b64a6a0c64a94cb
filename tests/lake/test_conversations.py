"""The view of conversations."""

from pathlib import Path

from attune.lake.snapshot import open_snapshot
from tests.aggregator.plant import Plant
from tests.lake.events import NOW_UNIX_MS, response_event, thumb_event


def test_each_conversation_with_a_persona_is_one_row(tmp_path: Path) -> None:
    plant = Plant(tmp_path)
    first, second = response_event(1), response_event(2, conversation_id="c-1", turn=2, end_user="user-1")
    plant.append(
        first,
        first,
        second,
        response_event(3),
        response_event(4, persona="tutor", conversation_id="c-1"),
        thumb_event(1, 1),
        thumb_event(2, 2, conversation_id="c-1"),
    )
    plant.append(first)  # once more, when only the table knows of it
    plant.ingest_all()
    plant.lake.reload()
    with open_snapshot(plant.lake) as snapshot:
        found = snapshot.rows("SELECT * FROM conversations ORDER BY persona, conversation_id")
    plant.close()
    assert [row[:6] for row in found] == [
        ("default", "concierge", "c-1", "user-1", 2, 2),
        ("default", "concierge", "c-3", "user-3", 1, 1),
        ("default", "tutor", "c-1", "user-4", 1, 1),
    ]
    assert found[0][6:] == (NOW_UNIX_MS + 1, NOW_UNIX_MS + 2, 2)
    assert found[1][8] == 0
