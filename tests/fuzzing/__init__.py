"""Fuzzing: what must hold of the decoders, the parsers and the reader of answers for any bytes at all.

``scripts/fuzz`` lets atheris, which is guided by coverage, look for bytes for which it does not hold. Here are

- ``form``: what a target is, how an input is cut into chunks, and what is compared;
- ``references``: the same decoders for a whole input at once, written from the standards;
- ``decoders``, ``replies``, ``answers``: the targets, all of which are in ``targets``;
- ``findings``: inputs for which a target has failed, which the tests try on every Python, without atheris;
- ``planted``: targets that are broken on purpose, so that the search can be seen to find something;
- ``search``: the command; ``worker``: the process in which one target is fuzzed.
"""
