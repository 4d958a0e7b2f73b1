"""Many questions."""
