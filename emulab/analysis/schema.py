"""JSON Schema of summary.json, published as ``summary.schema.json`` beside this file. ``python -m emulab.analysis.schema`` renews it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emulab.analysis.model import Summary

SCHEMA_PATH = Path(__file__).with_name("summary.schema.json")


def schema() -> dict[str, Any]:
    """Unknown keys are allowed: keys may be added, not renamed."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Summary.model_json_schema(by_alias=True, mode="serialization")}


def schema_text() -> str:
    """The text of the published file."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
