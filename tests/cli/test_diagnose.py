"""`tsugiki diagnose attention` on a tiny model: what it writes and says, and how mistakes end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tsugiki import testing
from tsugiki.cli import app
from tsugiki.data import schema
from tsugiki.evals.laws_report import MEANINGS
from tsugiki.types import Message, Sample


def test_attention(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tsugiki.cli._models.load_model", lambda *_: testing.tiny_model())
    samples = []
    for i, picture in enumerate(testing.tiny_images(3)):
        picture.save(tmp_path / f"{i}.png")
        messages = (Message.of("user", "What is it?", (tmp_path / f"{i}.png",)), Message.of("assistant", "A cup."))
        samples.append(Sample(str(i), messages))
    schema.write(tmp_path / "test.jsonl", samples)
    given = ["diagnose", "attention", "graft", "--data", str(tmp_path / "test.jsonl"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*given, "--layers", "2"])
    assert result.exit_code == 0 and "for the graft wings: layers: [" in result.output
    said = " ".join(result.output.split())
    assert all(meaning in said for meaning in MEANINGS.values()) and "1 - rho, before against after: " in said
    record = json.loads((tmp_path / "out" / "attention.json").read_text(encoding="utf-8"))
    assert len(record["wings"]["layers"]) == 2 and record["conversations"] == 3
    assert (tmp_path / "out" / "attention.html").is_file() and (tmp_path / "out" / "attention.png").is_file()
    wrong = CliRunner().invoke(app, [*given, "--layers", "9"])
    assert wrong.exit_code == 2 and "expected 1 to 4" in " ".join(wrong.output.split())
