"""Where tables are: in a folder, or under an address in an S3-compatible object store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deltalake.fs import DeltaStorageHandler
from pyarrow import fs

from attune.settings import LakeSettings

_CONNECT_SECONDS = 5


@dataclass(frozen=True)
class ObjectStore:
    """An address such as `s3://bucket/lake`; the options carry the secret and are shown nowhere."""

    url: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __truediv__(self, name: str) -> "ObjectStore":
        return ObjectStore(f"{self.url}/{name}", self.options)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


Place = Path | ObjectStore


def lake_place(settings: LakeSettings, data: Path) -> Place:
    """The lake of a data folder: in the folder itself, unless the settings name an object store."""
    if not settings.url:
        return data / "lake"
    return ObjectStore(settings.url.rstrip("/"), _options(settings))


def _options(settings: LakeSettings) -> dict[str, str]:
    """As deltalake names them; what is not set is taken from the environment (AWS_ACCESS_KEY_ID and the like)."""
    seconds = f"{settings.request_seconds:g}s"
    options = {
        "aws_region": settings.region,
        # A commit is a put that the store refuses when the version is there already.
        "aws_conditional_put": "etag",
        "connect_timeout": f"{_CONNECT_SECONDS}s",
        "timeout": seconds,
        "retry_timeout": seconds,
    }
    if settings.endpoint:
        options["aws_endpoint"] = settings.endpoint
        options["aws_allow_http"] = str(settings.endpoint.startswith("http://")).lower()
    if settings.access_key_id:
        options["aws_access_key_id"] = settings.access_key_id
        options["aws_secret_access_key"] = settings.secret_access_key.get_secret_value()
    return options


def options_of(place: Place) -> dict[str, str] | None:
    """What deltalake needs to reach it."""
    return None if isinstance(place, Path) else dict(place.options)


def files_of(place: Place) -> fs.FileSystem:
    """What lies there, by names relative to it."""
    if isinstance(place, Path):
        return fs.SubTreeFileSystem(str(place), fs.LocalFileSystem())
    return fs.PyFileSystem(DeltaStorageHandler(str(place), options=dict(place.options)))
