"""Kafka with TLS and logins: what is right gets in, what is wrong is told plainly, without a secret."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import UserScramCredentialUpsertion
from pydantic import SecretStr

from attune.errors import InvalidInput, Unavailable
from attune.eventlog import RESPONSES
from attune.eventlog.broker import free_port
from attune.eventlog.cluster import Cluster
from attune.eventlog.producer import Message, Producer
from attune.eventlog.topics import TopicRules, create_topics, describe_topics
from attune.settings import KafkaSettings
from tests.brokers import run_broker
from tests.certificates import Authority, Issued
from tests.eventlog.waiting import eventually

PASSWORD = "s3cret"
TOPIC_PREFIX = "secure."


@dataclass(frozen=True)
class Guarded:
    """A broker that asks for certificates at one port, and for a password over TLS at another."""

    certificates_at: str
    passwords_at: str
    authority: Authority
    client: Issued

    def settings(self, server: str, **changes: object) -> KafkaSettings:
        given = {"tls": True, "ca": self.authority.certificate, "request_seconds": 1.5, "delivery_seconds": 3}
        return KafkaSettings.model_validate({"servers": [server], "topic_prefix": TOPIC_PREFIX, **given, **changes})

    def login(self, mechanism: str = "PLAIN", password: str = PASSWORD, **changes: object) -> KafkaSettings:
        given = {"sasl_mechanism": mechanism, "username": "attune", "password": SecretStr(password)}
        return self.settings(self.passwords_at, **given, **changes)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    authority = Authority(folder / "authority")
    server = authority.issue("server")
    store = folder / "server.pem"
    store.write_bytes(server.key.read_bytes() + server.certificate.read_bytes())
    ports = {"PLAINTEXT": free_port(), "CERTIFICATES": free_port(), "PASSWORDS": free_port()}
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule"
    controller = free_port()
    properties = {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": listeners,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": (
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,CERTIFICATES:SSL,PASSWORDS:SASL_SSL"
        ),
        "inter.broker.listener.name": "PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(store),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.certificate),
        "listener.name.certificates.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.passwords.plain.sasl.jaas.config": f'{plain} required user_attune="{PASSWORD}";',
        "listener.name.passwords.scram-sha-256.sasl.jaas.config": f"{scram} required;",
        "listener.name.passwords.scram-sha-512.sasl.jaas.config": f"{scram} required;",
    }
    with run_broker(folder / "kafka", port=ports["PLAINTEXT"], **properties):
        admin = KafkaAdminClient(bootstrap_servers=f"127.0.0.1:{ports['PLAINTEXT']}")
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            told = admin.alter_user_scram_credentials([UserScramCredentialUpsertion("attune", mechanism, PASSWORD)])
            assert told == {"attune": None}
        admin.close()
        yield Guarded(
            f"127.0.0.1:{ports['CERTIFICATES']}",
            f"127.0.0.1:{ports['PASSWORDS']}",
            authority,
            authority.issue("client"),
        )


def works(settings: KafkaSettings) -> bool:
    cluster = Cluster.of(settings)
    create_topics(cluster, TopicRules(1, None, 1, 1))
    producer = Producer(cluster)
    try:
        return producer.send([Message(cluster.topic(RESPONSES), b"key", b"payload")]) == [None]
    finally:
        producer.close()


def refused(settings: KafkaSettings) -> str:
    with pytest.raises(Unavailable) as refusal:
        describe_topics(Cluster.of(settings))
    assert PASSWORD not in refusal.value.message
    return refusal.value.message


def test_a_client_with_a_certificate_of_the_right_authority_gets_in(guarded: Guarded) -> None:
    assert works(
        guarded.settings(guarded.certificates_at, certificate=guarded.client.certificate, key=guarded.client.key)
    )


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_client_with_the_right_password_gets_in(guarded: Guarded, mechanism: str) -> None:
    assert works(guarded.login(mechanism))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_a_wrong_password_is_told_as_such(guarded: Guarded, mechanism: str) -> None:
    wrong = guarded.login(mechanism, password="guessed")
    eventually(lambda: "SaslAuthenticationFailed" in refused(wrong), 30)  # now and then the broker just hangs up


def test_a_client_without_a_certificate_does_not_get_in(guarded: Guarded) -> None:
    assert refused(guarded.settings(guarded.certificates_at))


def test_a_broker_of_another_authority_is_not_talked_to(guarded: Guarded, tmp_path: Path) -> None:
    other = Authority(tmp_path, "somebody else")
    for wrong in (guarded.login(ca=other.certificate), guarded.login(ca=None)):
        eventually(lambda wrong=wrong: "CERTIFICATE_VERIFY_FAILED" in refused(wrong), 30)  # type: ignore[misc]


def test_a_client_without_tls_does_not_get_in(guarded: Guarded) -> None:
    assert refused(guarded.login(tls=False, ca=None))


def test_files_that_cannot_be_used_are_named_with_their_setting(guarded: Guarded, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=rf"kafka\.ca: {tmp_path}/none.pem cannot be used: No such file"):
        Cluster.of(guarded.login(ca=tmp_path / "none.pem"))
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(InvalidInput, match=r"kafka\.ca: .* cannot be used"):
        Cluster.of(guarded.login(ca=tmp_path / "empty.pem"))
    other = guarded.authority.issue("another")
    with pytest.raises(InvalidInput, match=r"kafka\.certificate, kafka\.key: .* cannot be used"):
        Cluster.of(guarded.settings(guarded.certificates_at, certificate=guarded.client.certificate, key=other.key))
