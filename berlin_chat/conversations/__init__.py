"""Several turns: a conversation, the tools that it offers, how it is trimmed."""
