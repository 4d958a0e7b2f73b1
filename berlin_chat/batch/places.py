"""Where in a file each answer stands, by numbers alone: a resumed batch of millions fits into memory."""

from __future__ import annotations

from array import array

#: How many slots there are at first, and how much of them is filled before there are twice as many.
FIRST, FILLED = 1024, 0.8


class Places:
    """A map from numbers of 64 bits, but 0, to places in a file; 17 bytes a slot. Not safe to share without a lock.

    Each number is also a mark: whether its question has been taken in this run.

    >>> places = Places()
    >>> places[7] = 123
    >>> places.get(7), places.get(8), places.mark(7), places.mark(7)
    (123, None, False, True)
    """

    _NONE = -1

    def __init__(self) -> None:
        self._count = 0
        self._make(FIRST)

    def _make(self, slots: int) -> None:
        self._last = slots - 1
        self._numbers = array("Q", bytes(8 * slots))
        self._places = array("q", bytes(8 * slots))
        self._marks = bytearray(slots)

    def __setitem__(self, number: int, place: int) -> None:
        slot = self._slot(number)
        if not self._numbers[slot]:
            slot = self._filled(slot, number)
        self._places[slot] = place

    def _slot(self, number: int) -> int:
        """The number's slot, or the free one where it belongs."""
        numbers, last = self._numbers, self._last
        slot = number & last
        while (there := numbers[slot]) and there != number:
            slot = (slot + 1) & last
        return slot

    def _filled(self, slot: int, number: int) -> int:
        """Gives a number the free slot, or another where there are too few; returns which."""
        if self._count >= FILLED * self._last:
            self._grow()
            slot = self._slot(number)
        self._numbers[slot], self._places[slot] = number, self._NONE
        self._count += 1
        return slot

    def _grow(self) -> None:
        old = zip(self._numbers, self._places, self._marks, strict=True)
        self._make(2 * len(self._numbers))
        for number, place, mark in old:
            if number:
                slot = self._slot(number)
                self._numbers[slot], self._places[slot], self._marks[slot] = number, place, mark

    def get(self, number: int) -> int | None:
        """Returns the place, None where there is none."""
        slot = self._slot(number)
        return self._places[slot] if self._numbers[slot] and self._places[slot] != self._NONE else None

    def __len__(self) -> int:
        """How many numbers have a place; looks at all of them."""
        slots = zip(self._numbers, self._places, strict=True)
        return sum(1 for number, place in slots if number and place != self._NONE)

    def mark(self, number: int) -> bool:
        """Marks the number; returns whether it was marked already."""
        slot = self._slot(number)
        if not self._numbers[slot]:
            slot = self._filled(slot, number)
        marked = bool(self._marks[slot])
        self._marks[slot] = True
        return marked
