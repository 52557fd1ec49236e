"""FastMCP with its own error handling, rate limiting, timing and logging: `middlewares.py stdio` or `... http PORT`.

On uvloop. `FASTMCP_LOG_ENABLED=false` in the environment turns its log off.
"""

import sys
from functools import partial

import anyio
import uvicorn
from fastmcp import FastMCP
from fastmcp.server.middleware.error_handling import ErrorHandlingMiddleware
from fastmcp.server.middleware.logging import LoggingMiddleware
from fastmcp.server.middleware.rate_limiting import RateLimitingMiddleware
from fastmcp.server.middleware.timing import TimingMiddleware

limiter = RateLimitingMiddleware(max_requests_per_second=1e9)  # counts every call, refuses none
middleware = [ErrorHandlingMiddleware(), limiter, TimingMiddleware(), LoggingMiddleware()]
server = FastMCP("fastmcp", middleware=middleware)


@server.tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


match sys.argv[1:]:
    case ["stdio"]:
        anyio.run(partial(server.run_stdio_async, show_banner=False), backend_options={"use_uvloop": True})
    case ["http", port]:
        app = server.http_app(stateless_http=True)
        uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", access_log=False, log_level="warning")
