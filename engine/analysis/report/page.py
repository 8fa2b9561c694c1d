"""The page: template, style sheet, script and data in one file that refers to nothing else."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from engine.analysis.report import sections
from engine.analysis.report.counting import counting, training
from engine.analysis.report.pieces import CAUSES, ERRORS

HERE = Path(__file__).parent
LARGEST_BYTES = 8 << 20
"""Of a page with 60 images"""


def render_page(record: Mapping[str, Any], gallery: Sequence[Mapping[str, Any]], *, title: str, subtitle: str) -> str:
    """HTML of the analysis record and the images of `gallery_images`.

    title, subtitle   plain text
    """
    parts = [
        ("misses", "Why were objects missed?", "Missed: no detection of its class, with the score, at an IoU of 0.5.",
         sections.causes(record)),
        ("costs", "What does each error cost?", "Error types as in TIDE, over all scores; each fixed alone.",
         sections.costs(record)),
        ("scores", "How good are the scores?", "", sections.scores(record)),
        ("classes", "Classes and sizes", "", sections.classes(record)),
    ]  # fmt: skip
    if record["counts"] is not None:
        note = "The count by density sets the number of queries of each image."
        parts.append(("counts", "Does it count well?", note, counting(record)))
    if record.get("training"):
        parts.append(("training", "The training", "", training(record)))
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{f"<p>{escape(note)}</p>" if note else ""}{html}</section>'
        for name, heading, note, html in parts
    )
    links = [(name, heading) for name, heading, _, _ in parts]
    names = {"misses": "Misses", "costs": "Costs", "scores": "Scores", "classes": "Classes", "counts": "Counts"}
    if gallery:
        links.append(("gallery", "Images"))
    data = {
        "images": list(gallery),
        "classes": [each["name"] for each in record["classes"]],
        "causes": {name: cause.title for name, cause in CAUSES.items()},
        "errors": {name: title for name, (title, _) in ERRORS.items()},
        "threshold": record["score_threshold"],
    }
    hidden = "" if gallery else "hidden"
    shown = Template(read("gallery.html")).substitute(
        hidden=hidden, note=escape(gallery_note(len(gallery), record["images"]))
    )
    return render_shell(
        title=title,
        sentence=sections.sentence(record),
        subtitle=subtitle,
        headline=sections.headline(record),
        links=[(name, names.get(name, heading.split()[-1].title())) for name, heading in links],
        sections=body + shown,
        after=Template(read("dialog.html")).substitute(data=embedded(data)),
        script=read("report.js"),
    )


def render_shell(
    *,
    title: str,
    sentence: str,
    subtitle: str,
    links: Sequence[tuple[str, str]],
    sections: str,
    headline: str = "",
    after: str = "",
    script: str = "",
) -> str:
    """A page with style sheet and theme switch; title, sentence and subtitle are plain text, the rest HTML.

    links    id and name of each section
    after    what follows the main part
    script   besides the theme's
    """
    return Template(read("shell.html")).substitute(
        title=escape(title),
        sentence=escape(sentence),
        subtitle=escape(subtitle),
        headline=headline,
        nav="".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading in links),
        sections=sections,
        after=after,
        style=read("report.css"),
        script=read("theme.js") + script,
    )


def read(name: str) -> str:
    """A file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def gallery_note(shown: int, images: int) -> str:
    """Which images the gallery holds."""
    if shown == images:
        return f"All {images:,} images."
    return (
        f"{shown} of {images:,} images: those with the most misses, the most false alarms and the largest count "
        "errors, and others evenly over the range of object counts."
    )


def embedded(data: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    escapes: dict[str, str | int | None] = {
        "<": "\\u003c",
        ">": "\\u003e",
        "&": "\\u0026",
        "\u2028": "\\u2028",
        "\u2029": "\\u2029",
    }
    return text.translate(str.maketrans(escapes))
