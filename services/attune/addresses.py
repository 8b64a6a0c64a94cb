"""Hosts and ports, as people and gRPC write them."""

import ipaddress

_LOCAL_SOCKETS = ("unix:", "unix-abstract:")
_RESOLVERS = ("dns:///", "dns:", "ipv4:", "ipv6:")


def join(host: str, port: int) -> str:
    """`host:port` of a server that listens there."""
    host = reachable(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str) -> str:
    """Where to find a server that listens on all addresses."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine can be there, or get there."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def with_port(target: str, port: int) -> str:
    """A gRPC target as it is, or with this port where it is a host alone: `example.org`, `::1`, `[::1]`."""
    bare_ipv6 = target.count(":") > 1 and not target.startswith("[")
    if "/" in target or target.startswith((*_LOCAL_SOCKETS, *_RESOLVERS)):
        return target
    if bare_ipv6:
        return f"[{target}]:{port}"
    return target if ":" in target.rpartition("]")[2] else f"{target}:{port}"


def stays_here(target: str) -> bool:
    """Whether all that is sent to this gRPC target stays on this machine; what is not understood does not."""
    if target.startswith(_LOCAL_SOCKETS):
        return True
    prefix = next((prefix for prefix in _RESOLVERS if target.startswith(prefix)), "")
    return all(is_loopback(_host(address)) for address in target.removeprefix(prefix).split(","))


def _host(address: str) -> str:
    """Of `host:port`, `[host]:port` or a bare host."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address if address.count(":") > 1 else address.partition(":")[0]
