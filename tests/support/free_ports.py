"""Addresses for the workers of a test."""

import socket


def addresses(count):
    """Free ports of this machine, as addresses."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = tuple(f"127.0.0.1:{s.getsockname()[1]}" for s in sockets)
    for s in sockets:
        s.close()
    return found
