"""Addresses of upstreams: what an admin may say, and where a connection may go.

Link-local addresses, where clouds answer with their machines' credentials, are refused (OWASP, "Server Side
Request Forgery"). Others of private networks are not: that is where vLLM and Ollama live.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

_METADATA_NAMES = frozenset({"metadata.google.internal", "metadata.goog", "metadata", "instance-data"})
_METADATA_ADDRESSES = frozenset(
    ipaddress.ip_address(text) for text in ("100.100.100.200", "192.0.0.192", "fd00:ec2::254")
)
_MOST = 500  # characters


def check_base_url(url: str, *, metadata_hosts: bool = False) -> str:
    """The URL, without a `/` at its end. Raises ValueError, which says what is wrong with it."""
    if len(url) > _MOST or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"must be at most {_MOST} printable ASCII characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is no URL") from None
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise ValueError("must begin with http:// or https://, and name a host")
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError("must hold no user, password, query or fragment: the key has a place of its own")
    if not metadata_hosts and is_metadata_host(host):
        raise ValueError("is a cloud's own address, or link-local: UPSTREAM_METADATA_HOSTS=true allows them")
    return url.rstrip("/")


def is_metadata_host(host: str) -> bool:
    """Whether a name or an address is one that clouds keep for themselves."""
    name = host.rstrip(".").lower()
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return name in _METADATA_NAMES
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_link_local or mapped.is_unspecified) or mapped in _METADATA_ADDRESSES
