"""Which proxy the environment has for a URL."""

from __future__ import annotations

import pytest
from yarl import URL

from bridge.net.proxies import mistakes_in, place_of, proxy_for

HTTPS = "https://oscar.example.org"


@pytest.mark.parametrize(
    ("environ", "url", "proxy"),
    [
        ({}, HTTPS, None),
        ({"https_proxy": "http://proxy:3128"}, HTTPS, "http://proxy:3128"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, HTTPS, "http://proxy:3128"),
        ({"HTTPS_PROXY": "http://PROXY:1", "https_proxy": "http://proxy:2"}, HTTPS, "http://proxy:2"),
        ({"HTTPS_PROXY": "http://proxy:1", "https_proxy": ""}, HTTPS, None),
        ({"https_proxy": "proxy:3128"}, HTTPS, "http://proxy:3128"),
        ({"https_proxy": "proxy"}, HTTPS, "http://proxy"),
        ({"https_proxy": "me:word@proxy:3128"}, HTTPS, "http://me:word@proxy:3128"),
        ({"https_proxy": "http://me:w%40rd@proxy:3128/"}, HTTPS, "http://me:w%40rd@proxy:3128"),
        ({"https_proxy": "https://proxy"}, HTTPS, "https://proxy"),
        ({"https_proxy": "[::1]:3128"}, HTTPS, "http://[::1]:3128"),
        ({"http_proxy": "http://proxy:3128"}, HTTPS, None),
        ({"http_proxy": "http://proxy:3128"}, "http://plain", "http://proxy:3128"),
        ({"ALL_PROXY": "proxy:3128"}, HTTPS, "http://proxy:3128"),
        ({"all_proxy": "http://all:1", "HTTPS_PROXY": "http://proxy:2"}, HTTPS, "http://proxy:2"),
        ({"all_proxy": "http://all:1", "https_proxy": ""}, HTTPS, None),
    ],
)
def test_a_proxy_is_taken_from_the_usual_variables(
    environ: dict[str, str], url: str, proxy: str | None
) -> None:
    assert proxy_for(url, environ) == (None if proxy is None else URL(proxy))


@pytest.mark.parametrize(
    ("no_proxy", "url", "excepted"),
    [
        ("*", HTTPS, True),
        ("oscar.example.org", HTTPS, True),
        ("OSCAR.Example.org", HTTPS, True),
        ("example.org", HTTPS, True),
        (".example.org", HTTPS, True),
        ("*.example.org", HTTPS, True),
        ("ample.org", HTTPS, False),
        ("other.org, example.org", HTTPS, True),
        ("other.org example.org", HTTPS, True),
        ("oscar.example.org:443", HTTPS, True),
        ("oscar.example.org:8443", HTTPS, False),
        ("example.org:8443", "https://oscar.example.org:8443", True),
        (":443", HTTPS, False),
        ("", HTTPS, False),
        ("10.0.0.0/8", "http://10.1.2.3", True),
        ("10.0.0.0/8:80", "http://10.1.2.3", True),
        ("10.1.2.3", "http://10.1.2.3", True),
        ("10.1.2.3:80", "http://10.1.2.3", True),
        ("2001:db8::/32", "http://[2001:db8::1]", True),
        ("[2001:db8::1]:80", "http://[2001:db8::1]", True),
        ("[2001:db8::1]:81", "http://[2001:db8::1]", False),
        ("2001:db8::1", "http://[2001:db8::1]", True),
        ("10.0.0.0/8", HTTPS, False),
    ],
)
def test_no_proxy_names_hosts_domains_networks_and_ports(no_proxy: str, url: str, excepted: bool) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        proxy = proxy_for(url, {"all_proxy": "http://proxy:1", name: no_proxy})
        assert (proxy is None) is excepted


@pytest.mark.parametrize(
    "value", ["socks5://me:secret@proxy:1080", "http://", "http://proxy:nought-secret", "http://[::1:secret"]
)
def test_what_names_no_http_proxy_is_a_mistake_that_shows_no_password(value: str) -> None:
    with pytest.raises(ValueError, match="expected http://HOST:PORT") as told:
        proxy_for(HTTPS, {"ALL_PROXY": value})
    assert "secret" not in str(told.value)
    [mistake] = mistakes_in({"ALL_PROXY": value})
    assert mistake.place == "environment variable ALL_PROXY"
    assert "secret" not in str(mistake)
    assert mistakes_in({"ALL_PROXY": value, "http_proxy": "", "https_proxy": "proxy:1"}) == []


def test_a_proxy_is_shown_without_its_password() -> None:
    assert place_of(URL("http://me:secret@proxy:3128")) == "http://proxy:3128"
    assert place_of(URL("http://me:secret@[::1]")) == "http://[::1]:80"
