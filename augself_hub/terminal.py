"""Text for a terminal: what strangers named cannot steer it, nor pretend to be another line."""

from __future__ import annotations

import logging


def shown(text: str) -> str:
    r"""The text with control characters as escapes (\x1b, \n, \u202e), and what cannot be written.

    Names of classes, files and columns come from strangers: on a terminal they could clear it,
    move the cursor or print a line that looks like ours.
    """
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def lines(text: str) -> str:
    """The same for text of several lines that are ours: line ends and tabs stay."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else _escape(letter) for letter in text
    )


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


class PlainFormatter(logging.Formatter):
    """Log lines whose arguments may come from strangers."""

    def format(self, record: logging.LogRecord) -> str:
        return lines(super().format(record))
