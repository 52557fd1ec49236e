"""An MCP server. `server.build_server` puts it together, `__main__` starts it."""

NAME = "{{ cookiecutter.project_slug }}"
"""The distribution, the console script, and the name the server gives itself."""
