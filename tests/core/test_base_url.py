"""Addresses of upstreams: private networks are fine, a cloud's own address is not, however it is spelt."""

from __future__ import annotations

import pytest

from api.core.base_url import check_base_url, is_metadata_host


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "http://127.0.0.1:11434/v1",
        "http://10.0.0.7:8000",
        "http://[::1]:8000/v1",
        "http://vllm.internal:8000/v1",
    ],
)
def test_where_providers_live_is_allowed(url):
    """The net, this machine, and private networks; a `/` at the end counts for nothing."""
    assert check_base_url(url) == url
    assert check_base_url(url + "/") == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://x",
        "file:///etc/passwd",
        "https://",
        "//x",
        "https://user:password@x",
        "https://x?key=1",
        "https://x/v1?",
        "https://x#y",
        "https://x y",
        "https://x\r\nhost: y",
        "https://ü.example",
        "https://x:99999",
        "https://x:0",
        "https://" + "x" * 600,
        "http://169.254.169.254/latest",
        "http://[fe80::1]/",
        "http://[fe80::1%25eth0]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[fd00:ec2::254]/",
        "http://0.0.0.0:80",
        "http://metadata.google.internal/",
        "http://METADATA.google.internal./",
        "http://100.100.100.200",
    ],
)
def test_what_is_no_providers_address_is_refused(url):
    """With a reason that says nothing of the value: it may hold a password."""
    with pytest.raises(ValueError, match=r"^(must|is) ") as refused:
        check_base_url(url)
    assert "password@" not in str(refused.value)


def test_who_needs_a_link_local_address_can_allow_it():
    """By a setting, for all of them."""
    assert check_base_url("http://169.254.1.1/v1", metadata_hosts=True) == "http://169.254.1.1/v1"
    assert not is_metadata_host("192.168.0.1")
