"""The sockets that this server listens on."""

import socket

from ..errors import StartError

# Bytes (Linux takes twice that) which the system keeps for a client that does not read, and would keep 4 MB of.
_UNREAD = 256 << 10


def listen(host: str, port: int, settings: str) -> socket.socket:
    """A listening socket. `settings`: the names of those that host and port come from.

    Raises:
        StartError: the address cannot be listened on.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        is_any = host == "::" and socket.has_dualstack_ipv6()  # then the other family too
        found = socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=is_any)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD)  # what it accepts has it too
        return found
    except OSError as error:
        raise StartError([f"{settings}: cannot listen on {host}:{port} ({error.strerror})"]) from None


def url_of(listener: socket.socket, path: str) -> str:
    """Where it is reached on this machine, with the port that it got."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"
