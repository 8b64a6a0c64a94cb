"""The RPCs about the tables, which are all tenants' together."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from attune.access import CALLER
from attune.aggregator.turns import Turns
from attune.errors import NotFound, PermissionDenied
from attune.ids import DEFAULT_TENANT
from attune.lake.delta import open_table
from attune.lake.lake import Lake
from attune.lake.place import Place
from attune.lake.tables import SCHEMAS
from attune.lake.upkeep import TableFigures, figures_of, optimize
from attune.v1 import dataset_pb2, dataset_pb2_grpc


@dataclass(eq=False)
class LakeService(dataset_pb2_grpc.LakeServiceServicer):
    """Beside ingest, on handles of its own."""

    place: Place
    history_hours: int
    looks: Turns = field(default_factory=lambda: Turns("looks at the lake", 2))
    rounds: Turns = field(default_factory=lambda: Turns("optimizations", 1))

    async def GetLakeStats(
        self, request: dataset_pb2.GetLakeStatsRequest, context: Any
    ) -> dataset_pb2.GetLakeStatsResponse:
        _of_the_installation()
        figures = await self.looks.take(self._figures)
        return dataset_pb2.GetLakeStatsResponse(place=str(self.place), tables=[_told(each) for each in figures])

    async def OptimizeLake(
        self, request: dataset_pb2.OptimizeLakeRequest, context: Any
    ) -> AsyncIterator[dataset_pb2.OptimizeLakeResponse]:
        _of_the_installation()
        async for part in self.rounds.follow(self._optimize):
            yield part

    def _figures(self) -> list[TableFigures]:
        """Looking at a lake does not make one: raises NotFound."""
        opened = {name: open_table(self.place / name) for name in SCHEMAS}
        figures = [figures_of(name, handle) for name, handle in opened.items() if handle is not None]
        if not figures:
            raise NotFound("there is no lake yet: nothing was ingested")
        return figures

    def _optimize(self, tell: Callable[[dataset_pb2.OptimizeLakeResponse], None]) -> None:
        self._figures()
        for table in Lake(self.place, history_hours=self.history_hours).tables:

            def told(done: int, of: int, name: str = table.name) -> None:
                step = dataset_pb2.OptimizeStep(table=name, done=done, of=of)
                tell(dataset_pb2.OptimizeLakeResponse(step=step))

            done = optimize(table, told)
            optimized = dataset_pb2.OptimizedTable(
                table=table.name,
                merged_files=done.merged_files,
                into_files=done.into_files,
                deleted_files=done.deleted_files,
            )
            tell(dataset_pb2.OptimizeLakeResponse(optimized=optimized))


def _of_the_installation() -> None:
    if CALLER.get().tenant != DEFAULT_TENANT:
        raise PermissionDenied(f"the tables are all tenants' together: this needs a key of the tenant {DEFAULT_TENANT}")


def _told(figures: TableFigures) -> dataset_pb2.TableStats:
    return dataset_pb2.TableStats(
        name=figures.name,
        version=figures.version,
        rows=figures.rows,
        bytes=figures.bytes,
        files=figures.files,
        small_files=figures.small_files,
        days=len(figures.days),
        first_day=str(figures.days[0]) if figures.days else "",
        last_day=str(figures.days[-1]) if figures.days else "",
        changed_unix_ms=figures.changed_unix_ms,
    )
