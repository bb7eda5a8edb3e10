"""The Hub of the publishing tests, for runs that are pushed."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_SPEC = spec_from_file_location(
    "local_hub", Path(__file__).parents[1] / "augself_hub" / "conftest.py"
)
_MODULE = module_from_spec(_SPEC)
sys.modules["local_hub"] = _MODULE  # where its dataclasses look for their names
_SPEC.loader.exec_module(_MODULE)
local_hub = _MODULE.local_hub
