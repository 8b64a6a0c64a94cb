"""What the whole run shares: the demo model, one real engine on it, one real Kafka broker, and one real S3 server."""

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from xdist.remote import Producer

from attune.chat.template import ChatTemplate
from attune.eventlog.broker import LocalBroker
from attune.inference.engine import Engine, EngineOptions
from attune.settings import Settings
from tests.brokers import run_broker
from tests.lanes import Lanes, engine_first
from tests.stores import Minio, run_minio

# A shell that runs the tests in the background has them ignore SIGINT, nohup SIGHUP, and so would every process that
# they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)  # `-p no:xdist` is fine
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    return Lanes(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        engine_first(items)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    return Settings().model_folder


@pytest.fixture(scope="session")
def template(demo_model: Path) -> ChatTemplate:
    return ChatTemplate.load(demo_model)


@pytest_asyncio.fixture(scope="session")
async def engine(demo_model: Path) -> AsyncIterator[Engine]:
    """vLLM on CPU. Tests leave it as they found it: nothing running, nothing loaded, not frozen."""
    engine = await Engine.start(EngineOptions(demo_model, max_loras=3))
    await engine.warm_up(deadline_seconds=120)
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """Tests leave it running and thawed."""
    with run_broker(tmp_path_factory.mktemp("kafka")) as running:
        yield running


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    """Tests leave it running and thawed."""
    with run_minio(tmp_path_factory.mktemp("minio")) as running:
        yield running
