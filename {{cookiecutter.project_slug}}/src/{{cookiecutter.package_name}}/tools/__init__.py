"""One file per tool: all there is to write. See the README."""
