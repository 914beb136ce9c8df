"""Whose request it is, where proxies stand in front."""

import ipaddress

# Whoever has an IPv6 address has a network of this size.
_IPV6_PREFIX = 64
_MAX_ADDRESS_LENGTH = 64
NO_ADDRESS = "somebody"


def client_address(forwarded_for: str, trusted_proxies: int) -> str:
    """Whose request it is, in as far as proxies that are trusted say; for all others the same word.

    Args:
        forwarded_for: The values of X-Forwarded-For, joined by commas. Each proxy adds the address that it was asked
            from; what stands before the entries of the trusted ones may be anything.
        trusted_proxies: As TRUSTED_PROXIES.
    """
    entries = [entry.strip() for entry in forwarded_for.split(",")]
    if not 0 < trusted_proxies <= len(entries):
        return NO_ADDRESS
    return _network(entries[-trusted_proxies])


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return address[:_MAX_ADDRESS_LENGTH] or NO_ADDRESS  # some proxies tell a port too
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False))
    return str(parsed)
