"""A model card in Markdown with the sections of Hugging Face's, from the facts that the page is made of."""

from __future__ import annotations

import json
import re
from typing import Any

from edgetl import __version__
from edgetl.report import words
from edgetl.report.facts import Facts
from edgetl.report.page import environment
from edgetl.report.rows import Measured

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def card(facts: Facts) -> str:
    """The card: YAML between "---" lines, then the sections. Names are escaped, so no label becomes markup."""
    made = environment()
    made.filters["md"] = markdown
    text = made.get_template("card.md").render(
        facts=facts, say=words, version=__version__, front=front_matter(facts), rows=_rows(facts)
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def markdown(text: object) -> str:
    """`text` on one line, everything that Markdown or HTML would read as markup escaped."""
    line = " ".join(str(text).split())
    return _SPECIAL.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def front_matter(facts: Facts) -> str:
    """YAML as flow-style JSON values, a key a line: JSON is YAML, and needs no writer of it."""
    precisions = dict.fromkeys(variant.precision for variant in facts.variants)
    tags = ["edgetl", "onnx", *(["tensorrt"] if any(v.profile.startswith("trt") for v in facts.variants) else [])]
    found: dict[str, Any] = {
        "license": "unknown",
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": [*tags, *precisions, facts.model.split(" ")[0]],
        "metrics": ["accuracy", "f1"],
    }
    if facts.scores:
        found["model-index"] = [{"name": facts.name, "results": [_result(facts)]}]
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in found.items())


def _result(facts: Facts) -> dict[str, Any]:
    best = facts.scores[-1]
    return {
        "task": {"type": "image-classification"},
        "dataset": {
            "name": facts.data.name or "not published",
            "type": facts.data.name or "private",
            "split": best.split,
        },
        "metrics": [
            {"type": "accuracy", "value": round(best.accuracy, 6)},
            {"type": "f1", "name": "macro F1", "value": round(best.macro_f1, 6)},
        ],
    }


def _rows(facts: Facts) -> list[tuple[str, Measured]]:
    return [(words.called(one), one) for one in facts.measured]
