"""What a call passes before a tool: one small class a file, each with one reason to refuse.

Their order stands in `server.py`.
"""
