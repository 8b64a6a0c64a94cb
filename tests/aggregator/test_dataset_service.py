"""Datasets and tables as operators of several tenants ask for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from attune.access import Role
from attune.lake.dataset import list_datasets
from attune.v1 import dataset_pb2, dataset_pb2_grpc
from tests.aggregator.office import Office, open_office
from tests.aggregator.recipes.conversation import UP, answer, opinion
from tests.aggregator.recipes.story import story, write_lake
from tests.keyed import metadata
from tests.persona_files import apply

_STREAMS = ("BuildDatasets", "VerifyDatasets", "OptimizeLake")


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    data = tmp_path_factory.mktemp("data")
    write_lake(data / "lake", story())
    apply(data, "concierge", 'system_prompt = "Answer."', tenant="other")
    with open_office(data) as opened:
        yield opened


class Operator:
    def __init__(self, office: Office, key: str) -> None:
        channel = grpc.insecure_channel(f"127.0.0.1:{office.port}")
        self._stubs: tuple[Any, ...] = (
            dataset_pb2_grpc.DatasetServiceStub(channel),  # type: ignore[no-untyped-call]
            dataset_pb2_grpc.LakeServiceStub(channel),  # type: ignore[no-untyped-call]
        )
        self._metadata = metadata(key)

    def ask(self, method: str, **fields: Any) -> Any:
        stub = next(stub for stub in self._stubs if hasattr(stub, method))
        request = getattr(dataset_pb2, f"{method}Request")(**fields)
        answer = getattr(stub, method)(request, timeout=60, metadata=self._metadata)
        return list(answer) if method in _STREAMS else answer

    def refused(self, method: str, **fields: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as refused:
            self.ask(method, **fields)
        return refused.value.code().name, refused.value.details()

    def build(self, **fields: Any) -> list[str]:
        first, *built = self.ask("BuildDatasets", **fields)
        assert first.datasets == len(built)
        return [part.built.dataset.dataset_id for part in built]


@pytest.fixture
def ours(office: Office) -> Operator:
    return Operator(office, office.key)


@pytest.fixture
def theirs(office: Office) -> Operator:
    return Operator(office, office.access.create("other", (Role.OPERATE,)))


def test_a_tenant_has_its_own_datasets_alone(ours: Operator, theirs: Operator) -> None:
    (dataset_id,) = ours.build(recipes=["pairs"])
    (other_id,) = theirs.build(recipes=["thumbs"])
    assert dataset_id in [dataset.dataset_id for dataset in ours.ask("ListDatasets").datasets]
    assert [dataset.dataset_id for dataset in theirs.ask("ListDatasets").datasets] == [other_id]
    unknown = "d-" + "0" * 32
    for method, fields in (
        ("GetDataset", {"dataset_id": "{}"}),
        ("CompareDatasets", {"first_id": other_id, "second_id": "{}"}),
        ("CompareDatasets", {"first_id": "{}", "second_id": other_id}),
        ("VerifyDatasets", {"dataset_id": "{}"}),
    ):
        of_others, of_nobody = (
            theirs.refused(method, **{name: value.format(each) for name, value in fields.items()})
            for each in (dataset_id, unknown)
        )
        assert of_others == ("NOT_FOUND", f"no dataset {dataset_id}")
        assert of_nobody == ("NOT_FOUND", f"no dataset {unknown}")
    checked = theirs.ask("VerifyDatasets")
    assert [part.checked.dataset_id for part in checked[1:]] == [other_id]


def test_the_tables_are_for_the_installation_s_own_operator(ours: Operator, theirs: Operator) -> None:
    assert {table.name for table in ours.ask("GetLakeStats").tables} == {"responses", "feedback", "dead-letter"}
    for method in ("GetLakeStats", "OptimizeLake"):
        code, said = theirs.refused(method)
        assert (code, "tenant default" in said) == ("PERMISSION_DENIED", True)


def test_what_no_request_may_hold_is_invalid(ours: Operator) -> None:
    for method, fields, sentence in (
        ("BuildDatasets", {"engine": 7}, "there is no engine 7"),
        ("BuildDatasets", {"recipes": ["thumbs"] * 21}, "21 recipes; at most 20"),
        ("BuildDatasets", {"recipes": ["x" * 1000]}, "recipes must be 1 to 63"),
        ("BuildDatasets", {"persona": "../etc"}, "persona must be 1 to 63"),
        ("ListDatasets", {"limit": 1001}, "limit is 1001; at most 1000"),
        ("GetDataset", {"dataset_id": ""}, "that is no dataset's id"),
        ("GetDataset", {"dataset_id": "d-" + "0" * 33}, "that is no dataset's id"),
        ("CompareDatasets", {"first_id": "d-0000", "second_id": "*"}, "no dataset d-0000"),
        ("VerifyDatasets", {"dataset_id": "d-../"}, "that is no dataset's id"),
        ("ExplainExample", {"id": ""}, "id is empty"),
        ("ExplainExample", {"id": "x" * 1000}, "id has 1000 characters"),
    ):
        code, said = ours.refused(method, **fields)
        assert code in ("INVALID_ARGUMENT", "NOT_FOUND")
        assert sentence in said


def test_a_list_ends_at_its_limit_and_says_how_many_are_older(ours: Operator) -> None:
    ours.build(recipes=["pairs", "prompts"])
    listed = ours.ask("ListDatasets", limit=1)
    assert (len(listed.datasets), listed.older >= 1) == (1, True)


def test_where_datasets_lie_is_not_told(tmp_path: Path) -> None:
    write_lake(tmp_path / "lake", [answer(1), opinion(1, 1, thumb=UP)])
    with open_office(tmp_path) as office:
        ours = Operator(office, office.key)
        theirs = Operator(office, office.access.create("other", (Role.OPERATE,)))
        first, second = ours.build(recipes=["thumbs", "prompts"])
        (tmp_path / "datasets" / first / "part-00000.parquet").unlink()
        manifest = tmp_path / "datasets" / second / "manifest.json"
        manifest.write_text(manifest.read_text().replace("prompts", "Prompts"))
        assert [dataset.manifest.dataset_id for dataset in list_datasets(tmp_path / "datasets")] == [first]
        damage = {part.checked.dataset_id: part.checked.damage for part in ours.ask("VerifyDatasets")[1:]}
        assert "part-00000.parquet is missing" in damage[first]
        assert "manifest.json is damaged" in damage[second]
        assert theirs.ask("VerifyDatasets")[0].datasets == 0
        said = [*damage.values(), ours.refused("GetDataset", dataset_id=first)[1]]
        assert not any(str(tmp_path) in sentence for sentence in said)


def test_an_example_is_explained_to_its_own_tenant_alone(office: Office, ours: Operator, theirs: Operator) -> None:
    ours.build(recipes=["thumbs"])
    newest = list_datasets(office.data / "datasets", "default", "concierge", "thumbs")[-1]
    row = newest.table().to_pylist()[0]
    (explained,) = ours.ask("ExplainExample", id=row["example_id"]).examples
    assert (explained.dataset_id, explained.split) == (newest.manifest.dataset_id, row["split"])
    assert (explained.given_weight, explained.weight, len(explained.steps)) == (1, 1, 0)
    for name in (row["example_id"], row["feedback_ids"][0], row["response_ids"][0], "nobody-knows-it"):
        assert theirs.refused("ExplainExample", id=name) == ("NOT_FOUND", "the newest datasets say nothing of that id")
    found = ours.ask("ExplainExample", id=row["feedback_ids"][0])
    assert row["example_id"] in [each.example_id for each in found.examples]
