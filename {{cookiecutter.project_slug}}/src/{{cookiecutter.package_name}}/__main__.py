"""The entry point. Standard streams are claimed first: a `print` during any import below would reach the client."""

from . import wire

WIRE = wire.claim()

import gc
import os
import signal
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # Process 1 of a container ignores a signal that it does not handle; 143 is what a shell says of one that ended others.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    # Imports make some 100,000 objects that live for ever; collecting among them costs a tenth of the start.
    gc.disable()
    from . import cli

    WIRE.exit(cli.main(sys.argv[1:], WIRE))


if __name__ == "__main__":
    main()
