"""One question's way over the network. Nothing here knows a protocol."""
