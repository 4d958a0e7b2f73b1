"""Replies that grow in a notebook (extra ``[notebook]``); outside of one they are printed."""

from .showing import Stopped, show

__all__ = ["Stopped", "show"]
