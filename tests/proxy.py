"""A proxy that gives each request a credential, as the conformance suite cannot send one. Standard library only."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socketserver import StreamRequestHandler, ThreadingTCPServer

_CONNECTION = re.compile(rb"^connection:.*\n", re.IGNORECASE | re.MULTILINE)


@contextmanager
def authorized(port: int, key: str) -> Iterator[str]:
    """The address at which requests are passed on to the server on this port, each with the key.

    All else of a request stays as it came, Host and Origin too. Each has a connection of its own, on which bytes go both
    ways as they come, so that no end of a body or a stream has to be known here.
    """
    added = f"Authorization: Bearer {key}\r\nConnection: close\r\n".encode()

    class Request(StreamRequestHandler):
        def handle(self) -> None:
            request_line, fields = self.rfile.readline(), b""
            while (line := self.rfile.readline()).strip():
                fields += line
            if not request_line:
                return  # it connected, and left
            with socket.create_connection(("127.0.0.1", port)) as server:
                server.sendall(request_line + added + _CONNECTION.sub(b"", fields) + line)
                sending = threading.Thread(target=pump, args=(self.rfile.read1, server))
                sending.start()
                pump(server.recv, self.connection)
                sending.join()

    with ThreadingTCPServer(("127.0.0.1", 0), Request) as proxy:
        serving = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        serving.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}/mcp"
        finally:
            proxy.shutdown()
            serving.join()


def pump(read: Callable[[int], bytes], sink: socket.socket) -> None:
    """Pass on bytes until one side has no more or takes no more; then neither side waits any longer."""
    with suppress(OSError):
        while data := read(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
