"""What the server says of itself, on standard error: for people, or a JSON object a line."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

FORMS, LEVELS = ("text", "json"), ("debug", "info", "warning", "error")


class JsonLines(logging.Formatter):
    """time, level, logger, message, what a record has as `fields`, an exception's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(form: str, level: str) -> None:
    """Of this process: our loggers from this level on, others' from warnings on.

    Args:
        form: one of `FORMS`. level: one of `LEVELS`.
    """
    logging.captureWarnings(form == "json")
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:  # the command line's own
            handler.setFormatter(JsonLines() if form == "json" else None)
    for ours in ("augself_hub", "serving"):
        logging.getLogger(ours).setLevel(level.upper())
    others = (
        logging.INFO if level == "debug" else max(logging.WARNING, getattr(logging, level.upper()))
    )
    logging.getLogger().setLevel(others)
