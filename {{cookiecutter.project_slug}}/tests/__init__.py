"""The suite drives the real process over real stdio and real HTTP, in both eras of the protocol."""
