"""The command line: every command parses, calls one function of the library, and prints."""

from tsugiki.cli import _assets, _bank, _compare, _data, _diagnose, _learn, _mix, _synth, _use
from tsugiki.cli._app import app, main

__all__ = ["app", "main"]

_COMMANDS = (
    _assets,
    _bank,
    _compare,
    _data,
    _diagnose,
    _learn,
    _mix,
    _synth,
    _use,
)  # imported: that adds their commands to the app
