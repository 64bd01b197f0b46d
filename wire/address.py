"""Where a key may go unencrypted: to this machine, and nowhere else."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, without brackets and port) is certainly this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
