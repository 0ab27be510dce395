"""Which URLs and addresses may be connected to."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.descriptors import crowded_out
from webhookd.errors import UnusableError
from webhookd.transport.addresses import OwnAddresses
from webhookd.transport.egress import Egress, NotAllowed, Target
from webhookd.transport.shortage import Shortage

# Without the host's own addresses: a machine may have a public one.
PUBLIC = Egress(allow_http=False, networks=(), own=set())
# fmt: off
NOT_PUBLIC_V4 = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254", "168.63.129.16", "169.254.0.1", "169.254.169.254", "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1", "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
]
NOT_PUBLIC_V6 = [
    "::", "::1", "::2", "::7f00:1", "::8.8.8.8", "::ffff:0:8.8.8.8", "64:ff9b:1::8.8.8.8",
    "100::1", "2001::1",
    "2001:0:808:808::", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "3fff::1",
    "4000::1", "5f00::1",
    "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "fec0::1", "ff02::1", "ff0e::1",
]
PUBLIC_ADDRESSES = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1", "172.15.255.255", "172.32.0.0", "192.0.1.1", "192.169.0.0", "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255", "2600::1", "2001:4860:4860::8888", "2a00:1450:4001::200e", "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8", "2002:808:808::1", "2a00::5efe:808:808",
]
# fmt: on


def disguises(text: str) -> list[str]:
    """Return the IPv6 addresses that end up at the IPv4 address *text*."""
    bits = int(IPv4Address(text))
    return [
        f"::ffff:{text}",
        f"64:ff9b::{text}",
        str(IPv6Address((0x2002 << 112) | (bits << 80) | 1)),
        str(IPv6Address((0x2A00 << 112) | (0x00005EFE << 32) | bits)),
        # ISATAP within a 6to4 site that is public itself.
        str(IPv6Address((0x2002_0808_0808 << 80) | (0x00005EFE << 32) | bits)),
        str(IPv6Address((0x2A00 << 112) | (0x02005EFE << 32) | bits)),
    ]


@pytest.mark.parametrize("address", NOT_PUBLIC_V4 + NOT_PUBLIC_V6)
def test_an_address_that_is_not_public_is_banned_and_the_message_names_the_way_out(
    address: str,
) -> None:
    with pytest.raises(NotAllowed, match=r"^the address \S+ is .*--allow-network") as caught:
        PUBLIC.check_address(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", [form for v4 in NOT_PUBLIC_V4 for form in disguises(v4)])
def test_a_private_ipv4_address_inside_an_ipv6_address_is_banned(address: str) -> None:
    with pytest.raises(NotAllowed):
        PUBLIC.check_address(address)


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_a_public_address_is_allowed(address: str) -> None:
    PUBLIC.check_address(address)


@given(st.ip_addresses(v=4))
def test_a_disguised_ipv4_address_is_judged_as_itself(address: IPv4Address) -> None:
    def allowed(text: str) -> bool:
        try:
            PUBLIC.check_address(text)
        except NotAllowed:
            return False
        return True

    assert {allowed(form) for form in disguises(str(address))} == {allowed(str(address))}


@given(st.ip_addresses())
def test_an_allowed_address_is_never_one_that_the_standard_library_calls_private_or_multicast(
    address: IPv4Address | IPv6Address,
) -> None:
    try:
        PUBLIC.check_address(address)
    except NotAllowed:
        return
    # A 6to4 address is judged by the IPv4 address inside; the standard library calls all of
    # 2002::/16 private.
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    assert not (inner.is_private or inner.is_multicast or inner.is_loopback or inner.is_link_local)


@pytest.mark.parametrize("address", ["fe80::1%eth0", "2600::1%1", "::1%lo"])
def test_a_zone_is_banned_even_inside_an_allowed_network(address: str) -> None:
    with pytest.raises(NotAllowed, match="zone"):
        Egress(allow_http=False, networks=["::/0"]).check_address(address)


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("10.0.0.0/8", "10.1.2.3"),
        ("10.0.0.0/8", "::ffff:10.1.2.3"),
        ("::ffff:10.0.0.0/104", "10.1.2.3"),
        ("127.0.0.1/32", "127.0.0.1"),
        ("fd00::/8", "fd00::1"),
        ("64:ff9b::a00:0/104", "64:ff9b::10.0.0.1"),
        ("0.0.0.0/0", "192.168.1.1"),
    ],
)
def test_an_allowed_network_lifts_the_ban_inside_it(network: str, address: str) -> None:
    Egress(allow_http=False, networks=[network]).check_address(address)


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("10.0.0.0/8", "192.168.0.1"),
        ("10.0.0.0/8", "64:ff9b::10.0.0.1"),
        ("10.0.0.0/8", "2002:a00:1::1"),
        ("::/0", "10.0.0.1"),
        ("::/0", "::ffff:10.0.0.1"),
        ("0.0.0.0/0", "::1"),
    ],
)
def test_an_allowed_network_lifts_no_ban_outside_of_it(network: str, address: str) -> None:
    with pytest.raises(NotAllowed):
        Egress(allow_http=False, networks=[network]).check_address(address)


@pytest.mark.parametrize("network", ["10.0.0.0/33", "10.0.0.1/8", "localhost", "", "fe80::%1/10"])
def test_a_malformed_network_is_unusable_in_one_line(network: str) -> None:
    with pytest.raises(UnusableError, match=r"^allow-network: [^\n]+$"):
        Egress(allow_http=False, networks=[network])


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.com", Target("https", "example.com", 443, "/")),
        ("HTTPS://Example.COM/A?b=C", Target("https", "example.com", 443, "/A?b=C")),
        ("https://example.com:8443/a/../b?x=y&z", Target("https", "example.com", 8443, "/b?x=y&z")),
        ("https://example.com:/a", Target("https", "example.com", 443, "/a")),
        ("https://example.com?q", Target("https", "example.com", 443, "/?q")),
        ("https://example.com./", Target("https", "example.com.", 443, "/")),
        ("https://example.com/ü?ü", Target("https", "example.com", 443, "/%C3%BC?%C3%BC")),
        ("https://bücher.example/", Target("https", "xn--bcher-kva.example", 443, "/")),
        ("https://[2600::1]:8443/", Target("https", "2600::1", 8443, "/")),
        ("https://8.8.8.8/", Target("https", "8.8.8.8", 443, "/")),
        ("https://127.1/", Target("https", "127.1", 443, "/")),
        ("https://%31%32%37.0.0.1/", Target("https", "127.0.0.1", 443, "/")),
        ("https://a_b.example/@x:y", Target("https", "a_b.example", 443, "/@x:y")),
    ],
)
def test_a_url_is_taken_apart_as_it_will_be_used(url: str, target: Target) -> None:
    assert PUBLIC.target(url) == target


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "must start with https://"),
        ("example.com/x", "must start with https://"),
        ("//example.com/x", "must start with https://"),
        ("https:example.com", "must start with https://"),
        ("https:/example.com", "must start with https://"),
        ("http://example.com/", "http is not allowed"),
        ("ftp://example.com/", "'ftp' is not allowed"),
        ("file:///etc/passwd", "'file' is not allowed"),
        ("javascript://x/%0a", "'javascript' is not allowed"),
        ("https://user:hunter2@example.com/", "credentials"),
        ("https://user@example.com/", "credentials"),
        ("https://example.com@127.0.0.1/", "credentials"),
        ("https://example.com/#x", "fragment"),
        ("https://example.com#@127.0.0.1/", "fragment"),
        ("https://example.com:0/", "1 to 65535"),
        ("https://example.com:65536/", "malformed"),
        ("https://example.com:8o/", "malformed"),
        ("https://example.com:-1/", "malformed"),
        ("https://[::1/", "malformed"),
        ("https://[::g]/", "malformed"),
        ("https:///x", "no host"),
        ("https://:443/x", "no host"),
        ("https://[fe80::1%25eth0]/", "zone"),
        ("https://a..b/", "not a valid name"),
        ("https://.a/", "not a valid name"),
        ("https://-a.example/", "not a valid name"),
        ("https://*.example/", "not a valid name"),
        ("https://a%2fb.example/", "not a valid name"),
        (f"https://{'a' * 64}.example/", "not a valid name"),
        (f"https://{'a.' * 130}example/", "not a valid name"),
        ("https://exa mple.com/", "whitespace"),
        ("https://example.com/a b", "whitespace"),
        ("https://example.com/a\u00a0b", "whitespace"),
        (" https://example.com/", "whitespace"),
        ("https://example.com/\r\nx: y", "whitespace"),
        ("https://example.com/\x00", "whitespace"),
        ("https://example.com/\x7f", "whitespace"),
        ("https://example.com\\@127.0.0.1/", "backslash"),
        ("https://example.com/\ud800", "cannot be sent"),
        ("https://b\u2100.example/", "international name"),
        (f"https://example.com/{'a' * 8192}", "longer than 8192"),
    ],
)
def test_a_url_that_could_never_be_delivered_is_refused_with_its_reason(
    url: str, reason: str
) -> None:
    with pytest.raises(NotAllowed, match=reason) as caught:
        PUBLIC.target(url)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_http_is_allowed_when_told_so_with_its_own_default_port() -> None:
    assert Egress(allow_http=True).target("http://example.com/x") == Target(
        "http", "example.com", 80, "/x"
    )


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://example.com/", "example.com"),
        ("https://example.com:443/", "example.com"),
        ("https://example.com:80/", "example.com:80"),
        ("https://example.com.:8443/", "example.com:8443"),
        ("https://[2600::1]/", "[2600::1]"),
        ("https://[2600::1]:8443/", "[2600::1]:8443"),
    ],
)
def test_the_authority_is_what_the_host_header_needs(url: str, authority: str) -> None:
    assert PUBLIC.target(url).authority == authority


@given(st.text(max_size=60))
def test_any_text_is_either_a_target_or_refused(text: str) -> None:
    for url in (text, f"https://{text}", f"https://example.com/{text}"):
        try:
            target = PUBLIC.target(url)
        except NotAllowed:
            continue
        assert f"{target.host}{target.path}".isascii()
        assert not any(character.isspace() for character in target.host + target.path)


# --- ports, denied networks, the host's own addresses


@pytest.mark.parametrize(
    ("url", "ports", "allowed"),
    [
        ("https://example.com:9000/", (), True),
        ("http://example.com/", (), True),
        ("http://example.com:8080/", (), True),
        ("http://example.com:9000/", (), False),
        ("http://8.8.8.8:9000/", (), False),
        ("http://8.8.8.8:8080/", (), True),
        ("https://example.com/", (8443,), False),
        ("https://example.com:8443/", (8443,), True),
        ("https://8.8.8.8/", (8443,), False),
        ("http://example.com/", (8443,), False),
        ("http://example.com:8443/", (8443,), True),
    ],
)
def test_ports(url: str, ports: tuple[int, ...], allowed: bool) -> None:
    egress = Egress(allow_http=True, ports=ports, own=set())
    if allowed:
        target = egress.target(url)
        egress.check_connection(target.scheme, "8.8.8.8", target.port)
    else:
        with pytest.raises(NotAllowed, match=r"^the port \d+ is not allowed .*--allow-port"):
            egress.target(url)


def test_within_an_allowed_network_every_port_is_allowed() -> None:
    egress = Egress(allow_http=True, networks=["10.0.0.0/8", "8.8.8.0/24"], ports=[8443], own=set())
    for address in ("10.1.2.3", "8.8.8.8", "::ffff:10.1.2.3"):
        egress.check_connection("http", address, 9000)
    assert egress.target("http://10.1.2.3:9000/").port == 9000
    # The address decides, and it is not known yet.
    assert egress.target("http://example.com:9000/").port == 9000
    for refused in ("1.1.1.1", "64:ff9b::8.8.8.8"):
        with pytest.raises(NotAllowed, match="the port 9000"):
            egress.check_connection("http", refused, 9000)
    with pytest.raises(NotAllowed, match="the port 9000"):
        egress.target("http://1.1.1.1:9000/")


def test_the_address_is_refused_before_the_port() -> None:
    with pytest.raises(NotAllowed, match=r"192\.168\.0\.1 is private"):
        Egress(allow_http=True).target("http://192.168.0.1:9000/")


@pytest.mark.parametrize(
    "address",
    ["10.9.1.1", "8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "2600::1"],
)
def test_a_denied_network_wins_over_an_allowed_one_and_over_public(address: str) -> None:
    egress = Egress(
        allow_http=True,
        networks=["10.0.0.0/8", "8.8.0.0/16"],
        denied=["10.9.0.0/16", "8.8.8.8/32", "2600::/16"],
        own=set(),
    )
    with pytest.raises(NotAllowed, match="is not a target here") as caught:
        egress.check_address(address)
    # The receiver's owner may read it: whether the address is denied or the host's is not told.
    own = Egress(True, own={ip_address("8.8.8.8")})
    with pytest.raises(NotAllowed) as owns:
        own.check_address("8.8.8.8")
    assert str(owns.value).partition(" is ")[2] == str(caught.value).partition(" is ")[2]
    egress.check_address("10.8.1.1")
    egress.check_address("8.8.4.4")


@pytest.mark.parametrize(
    "form", ["9.9.9.9", "::ffff:9.9.9.9", "64:ff9b::9.9.9.9", "2002:909:909::1"]
)
def test_the_hosts_own_address_is_denied_unless_a_network_names_it(form: str) -> None:
    own = {ip_address("9.9.9.9")}
    with pytest.raises(NotAllowed, match="is not a target here"):
        Egress(True, own=own).check_address(form)
    Egress(True, ["9.9.9.9/32", "64:ff9b::/96", "2002::/16"], own=own).check_address(form)


def test_the_kernel_tells_which_addresses_are_the_hosts() -> None:
    own = OwnAddresses()
    assert ip_address("127.0.0.1") in own
    assert ip_address("8.8.8.8") not in own
    assert ip_address("2001:4860:4860::8888") not in own


def test_what_the_kernel_said_is_believed_for_a_few_seconds_only() -> None:
    now = 1000.0
    own = OwnAddresses(clock=lambda: now)
    address = ip_address("127.0.0.1")
    assert address in own
    with crowded_out():
        assert address in own
        now += 5.0
        with pytest.raises(Shortage):
            assert address in own
    assert address in own
