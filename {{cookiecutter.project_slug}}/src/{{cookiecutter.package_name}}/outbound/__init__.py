"""Calls to other services: with deadlines, retries, a breaker, and errors that a model can act on."""
