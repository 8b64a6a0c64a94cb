from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from attune.chat.template import ChatTemplate
from attune.inference.engine import Engine
from tests.inference.house import House, endless, grammars, write_adapter


@pytest.fixture(scope="package", autouse=True)
def _compilers(demo_model: Path) -> Iterator[None]:
    yield
    grammars(demo_model).close()
    grammars.cache_clear()


@pytest_asyncio.fixture
async def house(tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path) -> AsyncIterator[House]:
    async with House.open(tmp_path, engine, template, demo_model) as house:
        yield house


@pytest_asyncio.fixture
async def endless_house(
    tmp_path: Path, engine: Engine, template: ChatTemplate, demo_model: Path
) -> AsyncIterator[House]:
    """Its answers go on to max_tokens."""
    async with House.open(tmp_path, endless(engine), template, demo_model) as house:
        yield house


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Callable[[int], Path]:
    """Adapters by seed, each written once."""
    folder = tmp_path_factory.mktemp("adapters")

    def adapter(seed: int) -> Path:
        target = folder / str(seed)
        return target if target.exists() else write_adapter(target, demo_model, seed=seed)

    return adapter
