"""How bytes come in and how it stops."""
