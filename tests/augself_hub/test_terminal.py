"""Foreign names on a terminal: no escape reaches it, and no name is two lines."""

import logging

from augself_hub.images.inventory import Inventory
from augself_hub.terminal import PlainFormatter, lines, shown

EVIL = "cat\x1b[2J\nerror: all is well\u202e\r\ud800"
PLAIN = r"cat\x1b[2J\nerror: all is well\u202e\r\ud800"


def test_control_characters_are_escapes():
    assert shown(EVIL) == PLAIN
    assert shown("Grüße, 猫 [2J\\n") == "Grüße, 猫 [2J\\n"
    assert lines("one\n\ttwo\x07") == "one\n\ttwo\\x07"


def test_an_inventory_of_foreign_classes_has_its_own_lines_alone():
    found = Inventory(EVIL, "list", 2, 1, {EVIL: 1}, {EVIL: 1}, {EVIL: 1}, {EVIL: EVIL}, (EVIL,))
    text = found.text()
    assert text.count("\n") == 4 and text.count(PLAIN) == 6
    assert text.replace("\n", "").isprintable()


def test_a_list_of_strangers_files(tmp_path, augself, monkeypatch):
    """Class names of a CSV, through the command itself."""
    (tmp_path / "list.csv").write_text('image,label\n"a.jpg","cat\x1b[31m"\n"b\x1b[2J.jpg","dog"\n')
    told = augself("list-images", str(tmp_path / "list.csv"))
    assert told.status == 0 and "\x1b" not in told.out and r"cat\x1b[31m 1" in told.out


def test_errors_and_log_lines(augself, tmp_path):
    told = augself("verify", str(tmp_path / "no\x1b[2J"))
    assert told.status == 1 and r"no\x1b[2J" in told.err and "\x1b" not in told.err
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s is\nleft", (EVIL,), None)
    assert "\x1b" not in PlainFormatter("%(message)s").format(record)
