import pytest

from tests.lanes import lane_of

SHARED = {"engine": "engine", "broker": "servers", "minio": "servers"}


def test_whatever_uses_what_a_run_has_one_of_is_in_its_lane(request: pytest.FixtureRequest) -> None:
    strays = [
        f"{item.nodeid} uses {name}: name its file in tests/lanes.py"
        for item in request.session.items
        for name, lane in SHARED.items()
        if name in getattr(item, "fixturenames", ()) and lane_of(item.nodeid) != lane
    ]
    assert strays == []
