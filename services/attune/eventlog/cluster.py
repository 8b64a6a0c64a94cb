"""Which Kafka cluster, and how its clients are made: the one place that names kafka-python's options."""

import logging
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient

from attune.errors import AttuneError, DataLoss, InvalidInput, NotFound, Unavailable
from attune.settings import KafkaSettings

_OURS = "attune."
# Otherwise the pause between tries to connect grows to 30 s, and as long after a broker is back nothing moves.
_RECONNECT_MOST_MS = 1000
_RETRY_AFTER_SECONDS = 1.0
# What a record batch and a request have beside the record.
_ENVELOPE_BYTES = 64 << 10

Client = TypeVar("Client")


_SAYS_NOTHING = (kafka_errors.KafkaTimeoutError, kafka_errors.NodeNotReadyError)


class _LastFailure(logging.Handler):
    """Why the client last failed: it says so in its logs alone, several times a second, and raises time-outs.

    Its logs go no further. They are many while a broker is away, and we say it once.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._failure: tuple[float, BaseException] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, kafka_errors.KafkaError) and not isinstance(argument, _SAYS_NOTHING):
                login_failed = "SaslAuthenticationFailed" in self.reason()  # what follows from it says less
                if isinstance(argument, kafka_errors.SaslAuthenticationFailedError) or not login_failed:
                    self._failure = time.monotonic(), argument

    def forget(self) -> None:
        self._failure = None

    def reason(self, within_seconds: float = 5) -> str:
        """Empty when there was none lately."""
        if self._failure is None or time.monotonic() - self._failure[0] > within_seconds:
            return ""
        return str(self._failure[1])[:200]


_last_failure = _LastFailure()
_client_log = logging.getLogger("kafka")
_client_log.setLevel(logging.WARNING)
_client_log.addHandler(_last_failure)
_client_log.propagate = False


@dataclass(frozen=True)
class Cluster:
    """Where the brokers are, how to reach them, and what our topics are called there."""

    servers: tuple[str, ...]
    topic_prefix: str
    request_seconds: float
    delivery_seconds: float
    max_record_bytes: int
    tls: ssl.SSLContext | None = None
    sasl_mechanism: str = ""
    username: str = ""
    password: str = ""

    @classmethod
    def of(cls, settings: KafkaSettings) -> "Cluster":
        """Raises InvalidInput when a certificate or key that the settings name cannot be used."""
        return cls(
            servers=settings.servers,
            topic_prefix=settings.topic_prefix,
            request_seconds=settings.request_seconds,
            delivery_seconds=settings.delivery_seconds,
            max_record_bytes=settings.max_record_mib << 20,
            tls=_tls(settings) if settings.tls else None,
            sasl_mechanism=settings.sasl_mechanism,
            username=settings.username,
            password=settings.password.get_secret_value(),
        )

    def topic(self, name: str) -> str:
        """What Kafka calls one of our topics."""
        return self.topic_prefix + name.removeprefix(_OURS)

    def group(self, reader: str) -> str:
        return self.topic_prefix + reader

    @property
    def request_ms(self) -> int:
        return int(self.request_seconds * 1000)

    @property
    def max_message_bytes(self) -> int:
        """What a topic has to take, so that it takes the largest record."""
        return self.max_record_bytes + _ENVELOPE_BYTES

    def make(self, kind: Callable[..., Client], **options: Any) -> Client:
        """A client of that kind. Raises Unavailable when no broker answers.

        A constructor that fails leaves its thread and its sockets behind, so they are kept at hand.
        """
        made: list[KafkaNetClient] = []
        _last_failure.forget()

        def net(**configuration: Any) -> KafkaNetClient:
            made.append(KafkaNetClient(**configuration))
            return made[-1]

        try:
            with reported():
                return kind(**self._options(), **options, kafka_client=net)
        except BaseException:
            for each in made:
                each.close()
            raise

    def admin(self) -> KafkaAdminClient:
        """Raises Unavailable when no broker answers."""
        return self.make(KafkaAdminClient)

    def _options(self) -> dict[str, Any]:
        """Of every client."""
        sasl = {
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password,
        }
        layers = ("SASL" if self.sasl_mechanism else "", "SSL" if self.tls else "PLAINTEXT")
        return {
            "bootstrap_servers": list(self.servers),
            "client_id": "attune",
            "security_protocol": "_".join(layer for layer in layers if layer),
            "ssl_context": self.tls,
            **(sasl if self.sasl_mechanism else {}),
            "request_timeout_ms": self.request_ms,
            "bootstrap_timeout_ms": self.request_ms,
            "reconnect_backoff_max_ms": _RECONNECT_MOST_MS,
        }


@contextmanager
def reported() -> Iterator[None]:
    """Turns Kafka's errors into ours."""
    try:
        yield
    except kafka_errors.KafkaError as error:
        raise translated(error) from error
    except OSError as error:
        raise Unavailable(f"Kafka cannot be reached: {error}", retry_after_seconds=_RETRY_AFTER_SECONDS) from error


def translated(error: BaseException) -> AttuneError:
    """NotFound for a topic that is not there, DataLoss for a damaged record, else Unavailable: it may pass."""
    name = type(error).__name__
    match error:
        case kafka_errors.UnknownTopicOrPartitionError():
            return NotFound("Kafka does not have the topics; `attune topics create` makes them")
        case kafka_errors.CorruptRecordError():
            return DataLoss("Kafka holds a record whose checksum does not fit")
        case kafka_errors.KafkaTimeoutError():
            reason = last_failure()
            text = f"Kafka did not answer in time{': ' if reason else ''}{reason}"
            return Unavailable(text, retry_after_seconds=_RETRY_AFTER_SECONDS)
        case kafka_errors.AuthorizationError() | kafka_errors.SaslAuthenticationFailedError():
            return Unavailable(f"Kafka does not let us: {name}; see kafka.username and the brokers' access rules")
        case _:
            return Unavailable(f"Kafka cannot be used now: {name}", retry_after_seconds=_RETRY_AFTER_SECONDS)


def last_failure() -> str:
    """Why a connection failed in the last seconds; empty when none did."""
    return _last_failure.reason()


def _tls(settings: KafkaSettings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        if settings.ca:
            context = ssl.create_default_context(cafile=settings.ca.expanduser())
    except (OSError, ssl.SSLError) as error:
        raise _unusable("ca", settings.ca, error) from error
    try:
        if settings.certificate and settings.key:
            context.load_cert_chain(settings.certificate.expanduser(), settings.key.expanduser(), password="")
    except (OSError, ssl.SSLError) as error:
        raise _unusable("certificate, kafka.key", settings.certificate, error) from error
    return context


def _unusable(setting: str, file: Path | None, error: OSError) -> InvalidInput:
    return InvalidInput(f"kafka.{setting}: {file} cannot be used: {error.strerror or error}")
