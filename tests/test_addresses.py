import pytest

from attune.addresses import is_loopback, join, stays_here, with_port


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1:50051", "127.8.9.10:1", "localhost:50051", "LOCALHOST:1", "localhost.:1", "[::1]:50051", "::1",
     "127.0.0.1", "localhost", "dns:///localhost:50051", "dns:127.0.0.1:1", "ipv4:127.0.0.1:1,127.0.0.2:1",
     "ipv6:[::1]:50051", "unix:/run/attune", "unix:///run/attune", "unix-abstract:attune"],
)  # fmt: skip
def test_what_stays_on_this_machine(target: str) -> None:
    assert stays_here(target)


@pytest.mark.parametrize(
    "target",
    ["attune.example.org:443", "10.0.0.1:50051", "0.0.0.0:50051", "[::]:1", "[2001:db8::1]:50051", "x.localhost.org:1",
     "127.0.0.1.evil.org:1", "dns:///attune:50051", "dns://10.0.0.1/localhost:50051", "ipv4:127.0.0.1:1,10.0.0.1:1",
     "xds:///attune", "xds:localhost", "https://localhost", "", "user@localhost:1", "localhost@evil.org:1",
     "2130706433:1"],
)  # fmt: skip
def test_what_may_not(target: str) -> None:
    assert not stays_here(target)


def test_hosts_and_ports_are_joined_as_grpc_reads_them() -> None:
    assert join("127.0.0.1", 1) == "127.0.0.1:1"
    assert join("::1", 1) == "[::1]:1"
    assert join("0.0.0.0", 1) == "127.0.0.1:1"
    assert join("::", 1) == "[::1]:1"
    assert not is_loopback("")


@pytest.mark.parametrize(
    ("target", "whole"),
    [("example.org", "example.org:7"), ("example.org:1", "example.org:1"), ("10.0.0.1", "10.0.0.1:7"),
     ("::1", "[::1]:7"), ("[::1]", "[::1]:7"), ("[::1]:1", "[::1]:1"), ("unix:/run/attune", "unix:/run/attune"),
     ("unix-abstract:attune", "unix-abstract:attune"), ("dns:example.org", "dns:example.org"),
     ("https://example.org", "https://example.org")],
)  # fmt: skip
def test_a_host_alone_gets_the_port(target: str, whole: str) -> None:
    assert with_port(target, 7) == whole
