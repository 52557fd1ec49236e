"""The Python SDK alone: `sdk.py stdio` or `sdk.py http PORT`; `tuned` as last argument for uvloop and no access log."""

import sys

import anyio
from mcp.server import MCPServer

server = MCPServer("sdk")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


match sys.argv[1:]:
    case ["stdio"]:
        server.run("stdio")
    case ["http", port]:
        server.run("streamable-http", port=int(port), stateless_http=True)  # the option is about legacy requests only
    case ["stdio", "tuned"]:
        anyio.run(server.run_stdio_async, backend_options={"use_uvloop": True})
    case ["http", port, "tuned"]:
        import uvicorn  # here, as the SDK itself has it: it takes time on stdio too

        app = server.streamable_http_app(stateless_http=True)
        uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", access_log=False, log_level="warning")
