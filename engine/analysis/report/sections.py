"""The sections of the page up to the counts, each as HTML from the analysis record."""

from collections.abc import Mapping
from html import escape
from typing import Any

from engine.analysis.report.charts import COLOURS, Axis, Mark, Series, bar_chart, line_chart, number_axis, share_axis
from engine.analysis.report.pieces import (
    CAUSES,
    ERRORS,
    METRICS,
    bars,
    cause_rows,
    number,
    percent,
    share,
    stacked_bar,
    table,
)
from engine.analysis.summary import OFFSET_BINS

Record = Mapping[str, Any]
MOST_CLASSES = 20
"""Classes of a confusion matrix; more cannot be read"""
PROTOCOLS = {"aitod": "AI-TOD", "coco": "COCO"}
ORACLE_TEXTS = {
    "as detected": ("As detected", ""),
    "counts": ("Perfect counts", "no budget too small"),
    "ranking": ("Perfect ranking", "no proposal ranked too low"),
    "boxes": ("Perfect boxes", "right class and overlap 0.1 is enough"),
    "classes": ("Perfect classes", "right place is enough"),
}


def headline(record: Record) -> str:
    """The answer in one sentence, and the figures that people ask for first."""
    counts, found = record["counts"], record["objects"] - record["missed"]
    figures = [
        ("AP", percent(record["detection"].get("mAP")), "%, IoU 0.50 to 0.95"),
        ("AP50", percent(record["detection"].get("mAP_50")), "%, IoU 0.50"),
        ("Objects found", share(found, record["objects"]), f"{found:,} of {record['objects']:,}"),
        (
            "False alarms",
            number(record["false_alarms"]),
            f"{record['false_alarms'] / max(record['images'], 1):.1f} an image",
        ),
    ]
    if counts is not None:
        error = counts["count_MAE"] if counts["count_MAE"] is not None else counts["expected_MAE"]
        figures += [
            ("Count error", number(error, 1), "objects an image, mean"),
            ("Queries", number(counts["mean_queries"], 0), f"an image; enough on {share(counts['coverage'] or 0, 1)}"),
        ]
    cards = "".join(
        f'<div class="figure"><dt>{name}</dt><dd>{value}</dd><small>{escape(note)}</small></div>'
        for name, value, note in figures
    )
    return f'<dl class="figures">{cards}</dl>'


def sentence(record: Record) -> str:
    """How many objects were missed, and mostly why."""
    objects, missed = record["objects"], record["missed"]
    if not objects:
        return "There are no objects to find"
    if not missed:
        return f"All {objects:,} objects were found"
    causes = {name: record["causes"]["all"][name] for name in CAUSES if name in record["causes"]["all"]}
    worst = max(causes, key=lambda name: causes[name])
    return f"{missed:,} of {objects:,} objects missed, {share(causes[worst], missed)} of them {_spoken(worst)}"


def _spoken(cause: str) -> str:
    spoken = {
        "budget": "never queried for lack of budget",
        "ranking": "never queried, as they were ranked too low",
        "score": "scored too low",
        "class": "under another class",
        "box": "off by some pixels",
        "nothing": "without any detection",
    }
    return spoken[cause]


def causes(record: Record) -> str:
    """Causes of misses: a bar, a list with remedies, and tables by class, size and count."""
    groups = record["causes"]
    every = groups["all"]
    missed = record["missed"]
    parts = {name: every[name] for name in every if name not in ("objects", "found")}
    if not missed:
        return "<p>No object was missed at this score threshold.</p>"
    items = "".join(
        f'<li><span class="tag k-{name}"></span><b>{escape(CAUSES[name].title)}</b>'
        f'<span class="value">{count:,} <small>{share(count, missed)}</small></span>'
        f"<p>{escape(CAUSES[name].text)}{_detail(name, record)}</p></li>"
        for name, count in sorted(parts.items(), key=lambda item: -item[1])
    )
    unknown = "A results file does not say where queries started: whether an object was ever queried is not known."
    remark = "" if record["has_queries"] else f"<p>{unknown}</p>"
    tables = "".join(
        cause_rows({name: group for name, group in groups[key].items() if group["objects"]}, first, caption)
        for key, first, caption in (
            ("by_size", "size", "By size of the object"),
            ("by_count", "objects in the image", "By number of objects in the image"),
            ("by_class", "class", "By class"),
        )
    )
    return f'{stacked_bar(parts, large=True)}<ul class="causes">{items}</ul>{remark}{tables}'


def _detail(cause: str, record: Record) -> str:
    offsets = record["offsets"]
    if cause != "box" or not offsets["objects"]:
        return ""
    size = offsets["size_median"]
    return (
        f" Median error of the centre {offsets['centre_median']:.1f} px, of the side {size:+.1f} px"
        f" ({share(offsets['larger'], 1)} are drawn too large)."
    )


def costs(record: Record) -> str:
    """dAP of the error types, the oracles, and by how many pixels boxes are off."""
    errors, offsets = record["errors"], record["offsets"]
    counts = errors["false_positives"] | {"missed": errors["misses"]["missed"]}
    gains = {name: errors["dAP"][name] or 0 for name in ERRORS}
    highest = max([*gains.values(), 0.01])
    rows = [
        (title, note, gains[name], f"+{100 * gains[name]:.1f}<small>{number(counts.get(name))}</small>")
        for name, (title, note) in ERRORS.items()
    ]
    single, special = rows[:6], rows[6:]
    single.sort(key=lambda row: -row[2])
    base = record["oracles"]["as detected"]["AP50"]
    oracles = [
        (*ORACLE_TEXTS[name], oracle["AP50"] or 0, percent(oracle["AP50"]))
        for name, oracle in record["oracles"].items()
    ]
    recall = record["curves"]["recall"]
    lines = [
        Series(ORACLE_TEXTS[name][0], list(zip(recall, oracle["precision"], strict=True)), f"c{place}")
        for place, (name, oracle) in enumerate(record["oracles"].items())
    ]
    names = [*map(str, range(OFFSET_BINS - 1)), f"{OFFSET_BINS - 1}+"]
    pixels = bar_chart(
        "Misses that are off by so many pixels",
        "error of the centre, px",
        number_axis("objects", max(max(offsets["by_pixels"]), 1)),
        list(zip(names, offsets["by_pixels"], strict=True)),
    )
    curves = line_chart(
        "Precision over recall with one part perfect", share_axis("recall, %"), share_axis("precision, %"), lines
    )
    return (
        '<div class="columns"><div><h3>Error types <small>AP50 gained if fixed, and how many</small></h3>'
        f"{bars(single, highest)}{bars(special, highest)}</div>"
        f"<div><h3>Oracles <small>AP50 if one part were perfect; now {percent(base)}</small></h3>{bars(oracles, 1)}"
        f'</div></div><div class="charts">{curves}{pixels}</div>'
    )


def scores(record: Record) -> str:
    """Precision over recall, F1 over the threshold, calibration."""
    curves, names = record["curves"], [each["name"] for each in record["classes"]]
    shown = sorted(range(len(names)), key=lambda k: -record["classes"][k]["objects"])[: COLOURS - 1]

    def lines(x: list[float], rows: list[list[float | None]], mean: list[float | None]) -> list[Series]:
        thin = [Series(names[k], list(zip(x, rows[k], strict=True)), f"thin c{i + 1}") for i, k in enumerate(shown)]
        one = len(names) == 1
        return [
            *([] if one else thin),
            Series(names[0] if one else "mean of classes", list(zip(x, mean, strict=True)), "c0"),
        ]

    best = curves["best_threshold"]
    mark = None if best is None else Mark(best, f"best F1 {percent(curves['best_F1'])} at {best:.2f}")
    precision = lines(curves["recall"], curves["precision_at_recall"], curves["mean_precision_at_recall"])
    score = Axis("score threshold", 0, 1, (0, 0.25, 0.5, 0.75, 1), lambda x: f"{x:g}")
    f1 = lines(curves["thresholds"], curves["F1"], curves["mean_F1"])
    both = [
        Series("precision", list(zip(curves["thresholds"], curves["precision"], strict=True)), "c0"),
        Series("recall", list(zip(curves["thresholds"], curves["recall_at_threshold"], strict=True)), "c1"),
    ]
    diagram = record["calibration"]
    known = [(s, p) for s, p in zip(diagram["mean_score"], diagram["precision"], strict=True) if s is not None]
    reliability = [Series("detections", known, "c0"), Series("perfect", [(0, 0), (1, 1)], "ideal")]
    many = f" The {len(shown)} most frequent of {len(names)} classes." if len(names) > len(shown) else ""
    return (
        f'<p>IoU 0.5.{many} Calibration error {number(diagram["error"], 3)}.</p><div class="charts">'
        + line_chart("Precision over recall", share_axis("recall, %"), share_axis("precision, %"), precision)
        + line_chart("F1 over the score threshold", score, share_axis("F1, %"), f1, mark=mark)
        + line_chart("Precision and recall over the score threshold", score, share_axis("precision, recall, %"), both)
        + line_chart("Calibration", share_axis("mean score, %"), share_axis("right detections, %"), reliability)
        + "</div>"
    )


def classes(record: Record) -> str:
    """The table of the classes, the AP of the sizes, and the confusion matrix."""
    rows = [
        [
            escape(each["name"]),
            number(each["objects"]),
            *(percent(each[key]) for key in ("AP", "AP50", "precision", "recall", "F1")),
        ]
        for each in record["classes"]
    ]
    threshold = record["score_threshold"]
    heading = ["class", "objects", "AP", "AP50", "precision", "recall", "F1"]
    detail = table(
        heading, rows, caption=f"Classes, %; precision, recall and F1 at a score of {threshold:g}", sortable=True
    )
    published = "".join(
        f"<li>{escape(name)} <b>{value:.1f}</b></li>" for name, value in (record.get("published") or {}).items()
    )
    known = [
        [label, percent(record["detection"][name])] for name, label in METRICS.items() if name in record["detection"]
    ]
    beside = ""
    if published:
        above = "<h3>Published <small>AP on AI-TOD-v2 test, by the authors</small></h3>"
        note = "Other images than these, unless you evaluate AI-TOD-v2: to compare training setups, not runs."
        beside = f'<aside class="published">{above}<ul>{published}</ul><p>{note}</p></aside>'
    protocol = PROTOCOLS.get(record["protocol"], record["protocol"])
    caption = f"{protocol} protocol, {record['max_detections']:,} detections"
    summary = table(["metric", "%"], known, caption=caption)
    return f'{detail}<div class="columns">{summary}{beside}</div>{confusion(record)}'


def confusion(record: Record) -> str:
    """What objects were taken for, as shares of the objects of a class; false alarms in numbers."""
    names, matrix = [each["name"] for each in record["classes"]], record["confusion"]
    order = sorted(range(len(names)), key=lambda k: -record["classes"][k]["objects"])[:MOST_CLASSES]
    order.sort()
    rest = len(names)
    head = "".join(f'<th scope="col"><span>{escape(names[k])}</span></th>' for k in order)
    rows = []
    for k in order:
        whole = sum(matrix[k])
        cells = "".join(_cell(matrix[k][j], whole, j == k) for j in [*order, rest])
        rows.append(f'<tr><th scope="row">{escape(names[k])}</th>{cells}</tr>')
    alarms = "".join(f"<td>{number(matrix[rest][j])}</td>" for j in order)
    rows.append(f'<tr class="alarms"><th scope="row">nothing there</th>{alarms}<td></td></tr>')
    caption = f"Objects (rows) and what they were detected as at a score of {record['score_threshold']:g}, % of the row"
    more = f" The {MOST_CLASSES} most frequent classes." if len(names) > MOST_CLASSES else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="confusion matrix"><table class="confusion">'
        f"<caption>{escape(caption + '.')}{more} Last row: false alarms.</caption><thead><tr><td></td>{head}"
        f'<th scope="col"><span>missed</span></th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _cell(count: int, whole: int, diagonal: bool) -> str:
    if not whole or not count:
        return '<td class="zero">·</td>'
    part = count / whole
    kind, text = "hit" if diagonal else "miss", f"{100 * part:.0f}" if part >= 0.005 else "&lt;1"
    return f'<td class="{kind}" style="--share:{part:.3f}" title="{count:,} objects">{text}</td>'
