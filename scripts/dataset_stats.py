"""Show what a data set holds, and which settings suit it, from its annotations alone.

    python scripts/dataset_stats.py --config configs/dino_d3q_scenes.yaml                     tables on the console
    python scripts/dataset_stats.py --config X --set data.root=data/mine --out runs/mine      also statistics.json, .png

Sizes of objects (AI-TOD's bins, before and after the resize to data.image_size), objects per image, classes, objects
that the resize makes smaller than 4 px, and a suggested image size, query floor and ceiling. Objects that training does
not use are left out and counted: crowds, ignored, below one pixel, outside the image. Random crops and scales are not
considered. The plot needs matplotlib: pip install -e '.[plots]'.

Exit codes: 0 done, 2 usage or config, 3 data.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import path_argument
from engine.commands.exit_codes import UsageError, exit_code
from engine.commands.resolve import read_file
from engine.console import guard_console

if TYPE_CHECKING:
    from configs.schema import Config
    from scripts.data_statistics.facts import Suggestion

FILES = ("statistics.json", "statistics.png")


def main(arguments: Sequence[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    return exit_code(lambda: show_statistics(options))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=path_argument, required=True, help="experiment file that names the data")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="other values")
    parser.add_argument("--out", type=path_argument, metavar="FOLDER", help="for statistics.json and statistics.png")
    return parser.parse_args(arguments)


def show_statistics(options: argparse.Namespace) -> None:
    """Read both splits, print the tables, and write the files if a folder is given."""
    for name in FILES if options.out is not None else ():
        if (options.out / name).exists():
            raise UsageError(f"--out {options.out}: {name} exists; remove it or choose another folder")
    config = read_file(options.config, options.set).config
    from scripts.data_statistics.facts import read_split, suggest, summarise

    splits = {"train": read_split(config, training=True), "val": read_split(config, training=False)}
    suggestion = suggest(config, splits["train"])
    figures = {name: summarise(facts) for name, facts in splits.items()}
    for lines in (overview(figures), sizes(figures, config), classes(figures)):
        print("\n".join([*lines, ""]))
    surplus = [int((splits["train"].counts > limit).sum()) for limit in (limit_of(config), suggestion.ceiling)]
    print("\n".join(advice(config, suggestion, surplus)))
    if options.out is None:
        return
    from scripts.data_statistics.plot import draw

    suggested = {
        "image_size": suggestion.image_size,
        "min_queries": suggestion.floor,
        "num_queries": suggestion.ceiling,
    }
    document = {"config": str(options.config), "data.image_size": config.data.image_size}
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**document, "splits": figures, "suggested": suggested}, indent=1)
        (options.out / FILES[0]).write_text(text + "\n", encoding="utf-8")
        drawn = draw(options.out / FILES[1], splits["train"], config, suggestion, title=str(options.config))
    except OSError as error:
        raise UsageError(f"--out {options.out}: cannot be written ({error.strerror}); choose another folder") from None
    print(f"\nwrote {', '.join(str(options.out / name) for name in FILES[: 1 + drawn])}")
    if not drawn:
        print("no plot: matplotlib is not installed (pip install -e '.[plots]')")


def limit_of(config: Config) -> int:
    """Most queries of an image."""
    d3q = config.model.d3q
    return config.model.num_queries if d3q is None else d3q.max_queries or config.model.num_queries


def overview(figures: Mapping[str, Any]) -> Iterator[str]:
    rows = [["", *figures], ["images", *(f"{split['images']:,}" for split in figures.values())]]
    rows.append(["  without objects", *(f"{split['images_without_objects']:,}" for split in figures.values())])
    for name in ("median", "smallest", "largest"):
        sides = [split["image_size"][name] for split in figures.values()]
        rows.append([f"  {name}, px", *(f"{width:g} x {height:g}" for height, width in sides)])
    rows.append(["objects", *(f"{split['objects']:,}" for split in figures.values())])
    for reason in sorted({reason for split in figures.values() for reason in split["not_used"]}):
        counts = [split["not_used"].get(reason, 0) for split in figures.values()]
        rows.append([f"  not used, {reason.replace('_', ' ')}", *(f"{count:,}" for count in counts)])
    rows.append(["objects per image", *("" for _ in figures)])
    for name in ("median", "mean", "percentile_90", "percentile_99", "most"):
        counts = [split["objects_per_image"][name] for split in figures.values()]
        rows.append([f"  {name.replace('_', ' ')}", *(f"{count:,.1f}".removesuffix(".0") for count in counts)])
    return aligned(rows)


def sizes(figures: Mapping[str, Any], config: Config) -> Iterator[str]:
    """A column per split for the image files, and one for the images as the network sees them."""
    from scripts.data_statistics.facts import BINS

    height, width = config.data.image_size
    columns = [(name, place) for name in figures for place in ("file", "scaled")]
    named = [name if place == "file" else f"{name}, scaled" for name, place in columns]
    rows = [["size of objects, sqrt(w*h)", *named]]
    chosen = [(figures[name]["size"][place], figures[name]["objects"]) for name, place in columns]
    for name, (low, high) in BINS.items():
        limits = f"{low:g} to {high:g} px" if high < 1e4 else f"from {low:g} px"
        rows.append([f"  {name}, {limits}", *(share(size["bins"][name], total) for size, total in chosen)])
    rows.append(["  below 4 px", *(share(size["below_4_px"], total) for size, total in chosen)])
    rows.append(["  median, px", *(number(size["median"]) for size, _ in chosen)])
    yield from aligned(rows)
    shrunk = [f"{share(split['shrunk_below_4_px'], split['objects'])} in {name}" for name, split in figures.items()]
    yield f"scaled: to fit data.image_size, {width} x {height} px, which makes smaller than 4 px: {', '.join(shrunk)}"


def classes(figures: Mapping[str, Any]) -> Iterator[str]:
    training = figures["train"]
    rows = [["class", "train", "images", "median px", *(name for name in figures if name != "train")]]
    for name, found in sorted(training["classes"].items(), key=lambda item: -item[1]["objects"]):
        others = [split["classes"].get(name, {}).get("objects", 0) for key, split in figures.items() if key != "train"]
        own = [share(found["objects"], training["objects"]), f"{found['images']:,}", number(found["median_size"])]
        rows.append([name, *own, *(f"{count:,}" for count in others)])
    return aligned(rows)


def advice(config: Config, suggestion: Suggestion, surplus: Sequence[int]) -> Iterator[str]:
    """surplus   training images with more objects than queries, with the config and with the suggestion"""
    rows = [["", "config", "suggested"]]
    pairs = [str(list(size)) for size in (config.data.image_size, suggestion.image_size)]
    rows.append(["data.image_size, height and width", *pairs])
    if config.model.d3q is not None:
        rows.append(["model.d3q.min_queries", str(config.model.d3q.min_queries), str(suggestion.floor)])
    rows.append(["model.num_queries", str(limit_of(config)), str(suggestion.ceiling)])
    rows.append(["  images with more objects than that", *(f"{count:,}" for count in surplus)])
    yield from aligned(rows)
    yield from suggestion.remarks
    yield f"to take the suggestion: --set {shlex.join(suggestion.settings(config))}"


def share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else "0"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Text columns, the first one left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *cells in rows:
        line = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        yield "  ".join(line).rstrip()


if __name__ == "__main__":
    sys.exit(main())
