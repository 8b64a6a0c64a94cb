"""What was made of what, asked over the wire."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from attune.access import Role
from attune.aggregator.lineage import ABOUT, MADE_OF, WENT_INTO
from attune.v1 import dataset_pb2
from tests.aggregator.desk import Desk
from tests.aggregator.plant import Plant
from tests.keyed import metadata
from tests.lake.events import response_event, thumb_event

Node = dataset_pb2.LineageNode
WAYS = ("made_of", "went_into")


@pytest_asyncio.fixture
async def desk(plant: Plant) -> AsyncIterator[Desk]:
    async with Desk.open(plant) as opened:
        yield opened


async def ask(desk: Desk, name: str, *, tenant: str = "default", **fields: Any) -> Node:
    key = desk.access.create(tenant, (Role.OPERATE,))
    request = dataset_pb2.GetLineageRequest(id=name, **fields)
    answer = await desk.lineage.GetLineage(request, timeout=30, metadata=metadata(key))
    node: Node = answer.node
    return node


async def refused(desk: Desk, name: str, **fields: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await ask(desk, name, **fields)
    return failure.value.code().name, failure.value.details() or ""


def chain(node: Node, way: str) -> list[str]:
    """Of a tree without forks the ids, the root's first."""
    ids = [node.id]
    while children := getattr(node, way):
        (node,) = children
        ids.append(node.id)
    return ids


def below(node: Node, way: str) -> Iterator[Node]:
    for child in getattr(node, way):
        yield child
        yield from below(child, way)


async def ring(desk: Desk) -> tuple[str, str, str, str]:
    """A response of the base, a thumb on it, the dataset of it, two policies of which one continued the other, and a
    response of the second."""
    desk.plant.append(response_event(1), thumb_event(1, 1))
    desk.plant.ingest_all()
    dataset = desk.plant.build()
    example_id = dataset.table(["example_id"])["example_id"][0].as_py()
    first = desk.publish(dataset.manifest.dataset_id)
    second = desk.publish(dataset.manifest.dataset_id, passed=None, parent=first)
    desk.plant.append(response_event(2, policy_id=second))
    desk.update()
    return example_id, dataset.manifest.dataset_id, first, second


async def test_a_response_is_followed_to_the_policies_that_learned_from_it_and_back(desk: Desk) -> None:
    example_id, dataset_id, first, second = await ring(desk)
    down = await ask(desk, "r-1")
    (feedback,) = down.went_into
    (example,) = feedback.went_into
    (dataset,) = example.went_into
    assert [feedback.id, example.id, dataset.id] == ["feedback-1", example_id, dataset_id]
    assert [policy.id for policy in dataset.went_into] == [first, second]
    assert [one.id for one in dataset.went_into[1].went_into] == ["r-2"]
    assert [one.kind for one in (down, feedback, example, dataset, *dataset.went_into[:1])] == [
        Node.KIND_RESPONSE,
        Node.KIND_FEEDBACK,
        Node.KIND_EXAMPLE,
        Node.KIND_DATASET,
        Node.KIND_POLICY,
    ]
    up = await ask(desk, "r-2")
    assert [policy.id for policy in up.made_of] == [second]
    made_of = {one.id for one in below(up, "made_of")}
    assert made_of == {second, first, dataset_id, example_id, "feedback-1", "r-1", "base"}
    assert "gate passed" in next(one.detail for one in below(up, "made_of") if one.id == first)
    assert not up.went_into


async def test_the_way_between_two_ids_is_told_from_either_end(desk: Desk) -> None:
    example_id, dataset_id, first, second = await ring(desk)
    way = ["r-1", "feedback-1", example_id, dataset_id, second, "r-2"]
    assert chain(await ask(desk, "r-1", to_id="r-2"), "went_into") == way
    assert chain(await ask(desk, "r-2", to_id="r-1"), "made_of") == way[::-1]
    assert chain(await ask(desk, first, to_id=second), "went_into") == [first, second]
    assert chain(await ask(desk, first, to_id=first), "went_into") == [first]
    desk.plant.append(response_event(3))
    desk.update()
    assert (await refused(desk, "r-3", to_id=first))[0] == "FAILED_PRECONDITION"
    assert (await refused(desk, "r-1", to_id="r-9"))[0] == "NOT_FOUND"


async def test_what_is_not_shown_is_counted(desk: Desk) -> None:
    desk.plant.append(*[response_event(n) for n in range(30)], *[thumb_event(n, n) for n in range(30)])
    desk.plant.ingest_all()
    dataset = desk.plant.build().manifest
    policy = desk.publish(dataset.dataset_id)
    desk.update()
    narrow = await ask(desk, dataset.dataset_id, width=4)
    assert (len(narrow.made_of), narrow.made_of_left_out) == (4, 26)
    assert [one.id for one in narrow.went_into] == [policy]
    shallow = await ask(desk, dataset.dataset_id, depth=1, width=50)
    assert len(shallow.made_of) == 30
    assert [(len(one.made_of), one.made_of_left_out) for one in shallow.made_of] == [(0, 1)] * 30


async def test_a_tree_has_at_most_500_nodes_and_the_nearest_are_among_them(desk: Desk) -> None:
    desk.plant.append(*[response_event(n) for n in range(20)])
    desk.plant.append(*[thumb_event(n, n % 20, end_user=f"somebody-{n}") for n in range(600)])
    desk.update()
    base = await ask(desk, "base", width=50)
    assert 1 + sum(1 for way in WAYS for _ in below(base, way)) == 500
    assert len(base.went_into) == 20
    assert sum(one.went_into_left_out for one in base.went_into) == 620 + 1 - 500


async def test_what_stands_in_the_tree_already_is_not_followed_again(desk: Desk) -> None:
    await ring(desk)
    tree = await ask(desk, "r-2", depth=12)
    assert any(one.repeated and not one.made_of for one in below(tree, "made_of"))
    ids = [one.id for one in below(tree, "made_of") if not one.repeated]
    assert len(ids) == len(set(ids))


async def test_nothing_of_another_tenant_is_met(desk: Desk) -> None:
    example_id, dataset_id, first, _ = await ring(desk)
    for name in ("r-1", "feedback-1", example_id, dataset_id, first, "r-none", "d-00000000"):
        assert await refused(desk, name, tenant="other") == await refused(desk, "nothing", tenant="other")
    base = await ask(desk, "base", tenant="other")
    assert not base.went_into
    assert base.went_into_left_out == 0


async def test_a_dataset_that_is_gone_takes_its_examples_along(desk: Desk) -> None:
    example_id, dataset_id, first, _ = await ring(desk)
    for file in (desk.plant.folder / "datasets" / dataset_id).iterdir():
        file.unlink()
    desk.update()
    assert (await refused(desk, example_id))[0] == "NOT_FOUND"
    (dataset,) = (await ask(desk, first)).made_of
    assert (dataset.id, dataset.detail, len(dataset.made_of)) == (dataset_id, "not there (any more)", 0)
    (feedback,) = (await ask(desk, "r-1")).went_into
    assert not feedback.went_into


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("", {}, "id is empty"),
        ("x" * 300, {}, "id"),
        ("r-1", {"to_id": "x" * 300}, "to_id"),
        ("r-1", {"depth": 13}, "depth is 13; at most 12"),
        ("r-1", {"width": 51}, "width is 51; at most 50"),
    ],
)
async def test_what_no_request_may_hold_is_invalid(
    desk: Desk, name: str, fields: dict[str, Any], sentence: str
) -> None:
    desk.update()
    code, said = await refused(desk, name, **fields)
    assert (code, sentence in said) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize("edges", [{kind: [(kind, query)] for kind, query in ABOUT.items()}, MADE_OF, WENT_INTO])
def test_no_question_reads_all_of_a_tenant(plant: Plant, edges: dict[Any, Any]) -> None:
    desk = Desk(plant)
    desk.update()
    with desk.index.reading() as connection:
        for query in (query for found in edges.values() for _, query in found):
            plan = connection.execute(f"EXPLAIN QUERY PLAN {query}", {"tenant": "default", "id": "x"})
            steps = [step for *_, step in plan]
            assert steps
            assert not [step for step in steps if step.startswith("SCAN") or step.endswith("(tenant=?)")], query


async def test_what_is_erased_leaves_no_link_behind(desk: Desk) -> None:
    example_id, *_ = await ring(desk)
    desk.index.erase(["response-1"], ["feedback-1"])
    with desk.index.reading() as connection:
        for table in ("example_feedback", "example_responses"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    assert (await refused(desk, "r-1"))[0] == (await refused(desk, "feedback-1"))[0] == "NOT_FOUND"
    assert not (await ask(desk, example_id)).made_of
