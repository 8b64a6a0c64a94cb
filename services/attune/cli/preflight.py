"""What `attune up` finds out before it starts anything."""

import contextlib
import socket
from collections.abc import Iterator

from attune.errors import FailedPrecondition, InvalidInput
from attune.eventlog.positions import refuse_shipped_spool
from attune.personas import PersonaError, Personas
from attune.personas.persona import read_personas
from attune.settings import Settings
from attune.tls import exposure, server_tls

SERVICES = ("inference", "aggregator", "trainer", "rollout")
"""Those that every ring has."""

IN_ORDER = ("inference", "shipper", "aggregator", "trainer", "rollout", "broker")
"""The order of stopping: what is acknowledged first stops to grow, then it is carried on."""


def services_of(settings: Settings) -> tuple[str, ...]:
    """What runs with these settings, in the order of stopping."""
    wanted = {*SERVICES, *(("shipper",) if settings.kafka.servers else ())}
    return tuple(name for name in IN_ORDER if name in wanted or (name == "broker" and settings.broker.enabled))


def check_start(settings: Settings) -> None:
    """Raises an AttuneError for what no service could start with."""
    if not (settings.model_folder / "config.json").is_file():
        raise InvalidInput(f"model: {settings.model_folder} has no config.json; name a folder in transformers' format")
    server_tls(settings.tls)
    _check_event_log(settings)


def unapplied(settings: Settings, personas: Personas) -> list[str]:
    """The personas of the operator's own folder that are not what was applied."""
    if settings.personas == "demo":
        return []
    try:
        found = [persona for persona, _ in read_personas(settings.personas_folder)]
    except PersonaError:  # a data folder that has its personas needs that folder no more
        return []
    applied = {(persona.tenant, persona.name): persona.version for persona in personas}
    return [persona.label for persona in found if applied.get((persona.tenant, persona.name)) != persona.version]


def _check_event_log(settings: Settings) -> None:
    if not settings.kafka.servers:
        refuse_shipped_spool(settings.data / "spool")
    else:
        from attune.eventlog.cluster import Cluster

        Cluster.of(settings.kafka)
    own = f"{settings.broker.host}:{settings.broker.port}"
    if settings.broker.enabled and settings.kafka.servers != (own,):
        raise InvalidInput(f"broker.enabled is true: kafka.servers has to be {own}; `attune up --with-kafka` sets both")


def dangers(settings: Settings) -> list[str]:
    """What may be meant and is said all the same: addresses that are open to others in plain text.

    A metrics page alone is nothing to say: it holds no text and no secret.
    """
    sections = {name: getattr(settings, name) for name in services_of(settings)}
    called = {name: section.host for name, section in sections.items() if hasattr(section, "grpc_port")}
    tls = settings.tls.certificate
    return [f"{name}.host: {danger}" for name, host in called.items() if (danger := exposure(host, tls))]


def check_ports(settings: Settings) -> None:
    """Raises FailedPrecondition for a port that another program, or another setting, has."""
    with contextlib.ExitStack() as taken:
        users: dict[tuple[str, int], str] = {}
        for service in services_of(settings):
            section = getattr(settings, service)
            for key in ("grpc_port", "http_port", "metrics_port", "port"):
                port = getattr(section, key, 0)
                user = f"{service}.{key}"
                if port == 0:
                    continue
                if (section.host, port) in users:
                    raise FailedPrecondition(f"{users[section.host, port]} and {user} are both {port}; change one")
                users[section.host, port] = user
                taken.enter_context(_listening(section.host, port, user))


@contextlib.contextmanager
def _listening(host: str, port: int, user: str) -> Iterator[None]:
    """Takes a port as no server could that shares it (SO_REUSEPORT), to find those that do."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise InvalidInput(f"{user.partition('.')[0]}.host is {host}, which is no address of this machine") from None
    with socket.socket(family, kind, protocol) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(where)
            taken.listen(1)
        except OSError as error:
            raise FailedPrecondition(
                f"cannot listen on {host}:{port} ({user}): {(error.strerror or 'no').lower()}; "
                f"stop what is there, or set {user} to another port (0 takes a free one)"
            ) from None
        yield
