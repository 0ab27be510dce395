"""The targets that webhookd may connect to: well-formed and allowed URLs, public addresses.

Webhook URLs come from other people. Without this check a URL could reach all that the worker's host
can reach: databases, cloud metadata, the router. The URL is parsed once, by urllib3, and the parts
found there are the parts used. The address is checked right before the connection is made, since a
name may resolve differently each time (DNS rebinding).
"""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Protocol, Self

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from webhookd.errors import UnusableError
from webhookd.transport.addresses import OwnAddresses

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_LENGTH = 8192

_DEFAULT_PORTS = {"http": 80, "https": 443}
# None: any. Plain http serves many things besides webhooks on other ports.
_PORTS: dict[str, frozenset[int] | None] = {"http": frozenset({80, 8080}), "https": None}
# With whitespace or control characters a URL can mean one thing to a person and another to a
# parser. Only browsers read a backslash as a slash.
_UNSAFE_IN_URL = re.compile(r"[\s\x00-\x20\x7f-\x9f\\\ud800-\udfff]")
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_][a-z0-9_-]{0,62})*"
)


class NotAllowed(UnusableError):
    """A target or a request that is refused before anything is sent.

    The message is the reason, in one line. It contains neither the URL's query nor a secret.
    """


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a URL as they are used.

    *host* is in lower-case ASCII, an IPv6 address has no brackets; *path* includes the query.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Return the value of the host header: brackets around IPv6, no default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host.rstrip(".")
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def is_address(host: str) -> bool:
    """Return whether *host* is an IP address.

    ``127.1`` and ``0x7f.1`` are names here: the addresses that they resolve to are checked.
    """
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class EgressOptions(Protocol):
    """The options that decide where requests may be sent, as `config.options.Config` has them."""

    @property
    def allow_http(self) -> bool: ...
    @property
    def allow_network(self) -> Sequence[str]: ...
    @property
    def deny_network(self) -> Sequence[str]: ...
    @property
    def allow_port(self) -> Sequence[int]: ...


class Egress:
    """The rule that every exchange passes. Threads can share it.

    *networks* and *denied* are CIDR strings. Addresses inside *networks* are allowed even if they
    are not public, and on any port; those inside *denied* never are. *ports*, if any, replace those
    that are allowed elsewhere. *own* holds the host's own addresses, which only *networks* allow.
    Raise `UnusableError` for a malformed network.
    """

    def __init__(
        self,
        allow_http: bool,
        networks: Sequence[str] = (),
        *,
        denied: Sequence[str] = (),
        ports: Sequence[int] = (),
        own: Container[Address] | None = None,
    ) -> None:
        self._allow_http = allow_http
        self._networks = tuple(_parse_network(text, "allow-network") for text in networks)
        self._denied = tuple(_parse_network(text, "deny-network") for text in denied)
        self._ports = dict.fromkeys(_PORTS, frozenset(ports)) if ports else _PORTS
        self._own = OwnAddresses() if own is None else own

    @classmethod
    def of(cls, options: EgressOptions) -> Self:
        """Return the rules that these *options* make: workers and commands judge alike."""
        return cls(
            options.allow_http,
            options.allow_network,
            denied=options.deny_network,
            ports=options.allow_port,
        )

    def target(self, url: str) -> Target:
        """Return the parts of *url*. Raise `NotAllowed` if it is malformed or not allowed.

        Addresses are not checked here, unless the port is allowed with some of them only. The port
        of a name that may have such an address passes: `check_connection` judges it.
        """
        if len(url) > MAX_URL_LENGTH:
            raise NotAllowed(f"the URL is longer than {MAX_URL_LENGTH} characters")
        if _UNSAFE_IN_URL.search(url):
            raise NotAllowed(
                "the URL contains whitespace, a backslash or a character that cannot be sent"
            )
        try:
            parts = parse_url(url)
        except (LocationParseError, UnicodeError):
            # The parser's message quotes the whole URL, query and all.
            idna = "" if url.isascii() else ", or its host is not a valid international name"
            raise NotAllowed(f"the URL is malformed{idna}") from None
        if parts.scheme is None or not url[len(parts.scheme) :].startswith("://"):
            raise NotAllowed("the URL must start with https://")
        self._check_scheme(parts.scheme)
        if parts.auth is not None:
            raise NotAllowed("the URL contains credentials; send them in a header instead")
        if parts.fragment is not None:
            raise NotAllowed(
                "the URL has a fragment, which is never sent; write %23 where '#' is meant"
            )
        port = _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
        if port == 0:
            raise NotAllowed("the URL's port must be 1 to 65535")
        host = _checked_host(parts.host)
        if is_address(host):
            if not self._is_listed(parts.scheme, port):
                self.check_connection(parts.scheme, host, port)
        elif not self._networks:
            self._check_port(parts.scheme, port)
        return Target(parts.scheme, host, port, parts.request_uri)

    def check_address(self, address: str | Address) -> None:
        """Raise `NotAllowed` unless *address* is public or inside the allowed networks.

        The host's own addresses and those in the denied networks are refused. Raise `Shortage` if
        that cannot be found out.
        """
        try:
            ip = ip_address(address)
        except ValueError:
            raise NotAllowed("not an IP address") from None
        if isinstance(ip, IPv6Address) and ip.scope_id is not None:
            raise NotAllowed(f"the address {ip} has a zone")
        # The kernel connects a v4-mapped address over IPv4, so it is that IPv4 address.
        real = _unmapped(ip)
        allowed = _inside(real, self._networks)
        reason = None if allowed else _why_not_public(real)
        if reason is not None:
            raise NotAllowed(f"the address {ip} is {reason}; --allow-network permits such targets")
        forms = (real, *_embedded_v4s(real))
        # One message for both, since the receiver's owner may read it: it does not tell which of
        # the addresses are the host's.
        if any(_inside(form, self._denied) for form in forms) or (
            not allowed and any(form in self._own for form in forms)
        ):
            raise NotAllowed(
                f"the address {ip} is not a target here (--deny-network, or webhookd's own host)"
            )

    def check_connection(self, scheme: str, address: str, port: int) -> None:
        """Raise `NotAllowed` unless *address* is allowed as `check_address` says, and *port* with
        it. This is to be called for the very address that is connected to.
        """
        self.check_address(address)
        if not self._is_listed(scheme, port) and not _inside(
            _unmapped(ip_address(address)), self._networks
        ):
            self._check_port(scheme, port)

    def _is_listed(self, scheme: str, port: int) -> bool:
        ports = self._ports[scheme]
        return ports is None or port in ports

    def _check_port(self, scheme: str, port: int) -> None:
        if not self._is_listed(scheme, port):
            raise NotAllowed(
                f"the port {port} is not allowed for {scheme}; --allow-port permits it"
            )

    def _check_scheme(self, scheme: str) -> None:
        if scheme == "http" and not self._allow_http:
            raise NotAllowed("http is not allowed, only https; --allow-http permits it")
        if scheme not in _DEFAULT_PORTS:
            raise NotAllowed(f"the scheme {scheme[:20]!r} is not allowed, only https")


# IANA's special-purpose registries (RFC 6890 and later) and the addresses of cloud services. Not
# `is_global`: it takes multicast, site-local and several embedded forms for global, and its answers
# differ between Python versions.
_BANNED_V4 = tuple(
    (IPv4Network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared (carrier-grade NAT)"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's metadata service"),
        ("169.254.0.0/16", "link-local (cloud metadata)"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "for documentation"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "for benchmarks"),
        ("198.51.100.0/24", "for documentation"),
        ("203.0.113.0/24", "for documentation"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_BANNED_V6 = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "IPv4-compatible"),
        ("64:ff9b:1::/48", "for local translation (NAT64)"),
        ("2001::/32", "tunnelled (Teredo)"),
        ("2001:2::/48", "for benchmarks"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "for documentation"),
        ("3fff::/20", "for documentation"),
        ("fc00::/7", "private (unique local)"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_ISATAP_IDENTIFIERS = frozenset({0x00005EFE, 0x02005EFE})


def _why_not_public(ip: Address) -> str | None:
    if isinstance(ip, IPv4Address):
        return next((reason for network, reason in _BANNED_V4 if ip in network), None)
    reason = next((reason for network, reason in _BANNED_V6 if ip in network), None)
    if reason is not None:
        return reason
    for embedded in _embedded_v4s(ip):
        inner = _why_not_public(embedded)
        if inner is not None:
            return f"{embedded} in disguise, which is {inner}"
    # Everything outside of 2000::/3 is unassigned or special, except translated public IPv4
    # addresses.
    return None if ip in _GLOBAL_UNICAST or ip in _NAT64 else "reserved"


def _embedded_v4s(ip: Address) -> Iterator[IPv4Address]:
    """Yield every IPv4 address that a translator behind *ip* would send to.

    NAT64: RFC 6052; 6to4: RFC 3056; ISATAP: RFC 5214. A 6to4 site may use ISATAP inside.
    """
    if isinstance(ip, IPv4Address):
        return
    bits = int(ip)
    if ip in _SIX_TO_FOUR:
        yield IPv4Address((bits >> 80) & 0xFFFFFFFF)
    if ip in _NAT64 or (bits >> 32) & 0xFFFFFFFF in _ISATAP_IDENTIFIERS:
        yield IPv4Address(bits & 0xFFFFFFFF)


def _inside(ip: Address, networks: Sequence[Network]) -> bool:
    return any(ip.version == network.version and ip in network for network in networks)


def _unmapped(ip: Address) -> Address:
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def _checked_host(host: str | None) -> str:
    if not host:
        raise NotAllowed("the URL has no host")
    if host.startswith("["):
        if "%" in host:
            raise NotAllowed("the URL's address has a zone")
        return host[1:-1]
    if not _HOST_NAME.fullmatch(host.removesuffix(".")):
        raise NotAllowed("the URL's host is not a valid name")
    return host


def _parse_network(text: str, option: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise UnusableError(f"{option}: {error}; write a network like 10.0.0.0/8") from None
    if "%" in text:
        raise UnusableError(f"{option}: {text!r} has a zone; write a network like fd00::/8")
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network
