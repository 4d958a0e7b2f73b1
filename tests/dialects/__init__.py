"""The dialects of OpenAI's chat completions that real servers speak, each as it was seen.

The bytes have a server's keys, order, labels and line ends; texts, names and numbers are our own, and short.
"""

from __future__ import annotations

from dialects import chunks, ends, errors, facts, framing, reasoning, tools

DIALECTS = [
    *framing.DIALECTS,
    *ends.DIALECTS,
    *chunks.DIALECTS,
    *errors.DIALECTS,
    *reasoning.DIALECTS,
    *tools.DIALECTS,
    *facts.DIALECTS,
]
