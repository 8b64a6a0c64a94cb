from pathlib import Path
from typing import Any

import pytest

from attune.cli.preflight import check_start, dangers
from attune.errors import FailedPrecondition
from attune.settings import Settings
from tests.certificates import Authority


def settings(**sections: Any) -> Settings:
    return Settings.model_validate(sections)


def test_an_address_that_is_open_in_plain_text_is_said_with_its_setting(tmp_path: Path) -> None:
    server = Authority(tmp_path).issue("server")
    open_ones = {"inference": {"host": "0.0.0.0"}, "rollout": {"host": "10.0.0.5"}, "trainer": {"host": "::"}}
    said = dangers(settings(**open_ones))
    assert [danger.partition(" is open to others")[0] for danger in said] == [
        "inference.host: 0.0.0.0",
        "rollout.host: 10.0.0.5",
    ]
    assert dangers(settings(**open_ones, tls={"certificate": server.certificate, "key": server.key})) == []
    assert dangers(settings()) == []


def test_tls_files_that_cannot_be_used_are_found_before_anything_is_started(tmp_path: Path) -> None:
    old = Authority(tmp_path).issue("old", days=(-3, -2))
    with pytest.raises(FailedPrecondition, match=r"tls\.certificate: .* expired on"):
        check_start(settings(tls={"certificate": old.certificate, "key": old.key}))
