import http
from collections.abc import Iterator

import grpc
import pytest

from attune.errors import INTERNAL, STATUS, AttuneError, InvalidInput, NotFound, Status, status_of


def kinds(of: type[AttuneError] = AttuneError) -> Iterator[type[AttuneError]]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_every_error_of_the_tree_is_in_the_table() -> None:
    named = {kind for kind in kinds() if kind.__module__ == "attune.errors"}
    assert named == STATUS.keys()


@pytest.mark.parametrize("status", [*STATUS.values(), INTERNAL])
def test_statuses_are_failures_that_the_protocols_know(status: Status) -> None:
    assert status.grpc in grpc.StatusCode.__members__.keys() - {"OK"}
    assert http.HTTPStatus(status.http) >= 400


def test_no_two_errors_share_a_grpc_status_so_that_a_client_can_tell_them_apart() -> None:
    codes = [status.grpc for status in STATUS.values()]
    assert len(set(codes)) == len(codes)


def test_a_kind_of_an_error_has_its_status() -> None:
    class NoSuchTenant(NotFound):
        pass

    assert status_of(NoSuchTenant("no")) == STATUS[NotFound]


def test_what_is_not_ours_is_internal() -> None:
    assert status_of(KeyError("x")) == INTERNAL
    assert status_of(AttuneError("x")) == INTERNAL


def test_an_error_says_its_sentence_and_its_field() -> None:
    error = InvalidInput("too long", field="messages", retry_after_seconds=2)
    assert (str(error), error.message, error.field, error.retry_after_seconds) == (
        "too long",
        "too long",
        "messages",
        2,
    )
