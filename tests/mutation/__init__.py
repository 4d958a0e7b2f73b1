"""Mutation testing: ``decoding``, ``http/`` and ``providers/`` are changed, one place at a time, and a test must fail.

``scripts/mutants`` does it. Here are

- ``mutants``: the changes, which cosmic-ray makes, as far as they change what runs;
- ``survey``: which tests run which line, and how long each takes, found by running them once, with ``clock``;
- ``trial``: one mutant in a process of its own, which meets the tests that run its line;
- ``search``: the command.

What no test can tell is explained where it stands, by a comment on the line or alone above it that begins with
``pragma: no mutate``, as the tools for mutation testing have it. Such mutants are tried all the same.
"""
