"""What makes a data set unusable or suspicious beyond its annotation file: images, classes, splits, query limit."""

import os
from collections.abc import Sequence
from itertools import permutations, zip_longest
from pathlib import Path

from configs.schema import DataConfig
from datasets.coco import CocoDetection
from datasets.findings import Findings
from datasets.images.checks import check_contents
from datasets.images.decode import ImageFile
from datasets.images.duplicates import Digests, name_file, report_same_pixels, shared_files, shared_pixels
from datasets.structures import DataError


def check_images(dataset: CocoDetection, data: DataConfig, findings: Findings, *, decode: bool) -> Digests:
    """Check the header of every existing image file, or decode it; an evaluation needs every image.

    returns   a digest of the pixels of each image, None where they were not decoded
    """
    files = _image_files(dataset)
    present = [index for index, file in enumerate(files) if file.path.is_file()]
    found = check_contents(
        [files[index] for index in present],
        decode=decode,
        skip=dataset.training and data.on_bad_image == "skip",
        reading=dataset.reading,
        threads=max(data.num_workers, os.cpu_count() or 1),
        findings=findings,
    )
    digests: list[bytes | None] = [None] * len(files)
    for index, digest in zip(present, found, strict=True):
        digests[index] = digest
    report_same_pixels(files, digests, dataset.objects_per_image, findings)
    return digests


def check_classes(dataset: CocoDetection, num_classes: int) -> None:
    """Raises DataError unless the data set has as many classes as the model, or categories with faults of their own."""
    found = len(dataset.categories)
    if found != num_classes and dataset.table.all_sound:
        parents, remark = dataset.table.describe_parents(), ""
        if num_classes == found + 1 and not parents:
            remark = " (categories only: the background is no class here)"
        count = "1 category" if found == 1 else f"{found} categories"
        raise DataError(
            f"{dataset.table.path}: {count} ({', '.join(dataset.categories[:10])}){parents}, but "
            f"model.num_classes is {num_classes}; set model.num_classes: {found}{remark}",
            "num_classes",
        )


def check_trained_classes(dataset: CocoDetection, trained: Sequence[str], *, source: Path) -> None:
    """Raises DataError unless the data set has the classes that the checkpoint `source` was trained on."""
    if list(dataset.categories) != list(trained):
        raise DataError(
            f"{dataset.table.path}: categories {list(dataset.categories)} are not those that {source} was trained on, "
            f"{list(trained)}; set data.root and data.val to a data set with the same classes"
        )


def check_aspects(dataset: CocoDetection, *, size: tuple[int, int], findings: Findings) -> None:
    """Errors for images with a side that is below half a pixel once they fit inside `size`, (height, width)."""
    for index, (height, width) in enumerate(dataset.image_sizes.tolist()):
        scale = min(max(size) / max(height, width), min(size) / min(height, width))
        if min(height, width) * scale < 0.5:
            message = (
                f"{dataset.image_file(index).entry}: {width} x {height} px has a side below 1 px at data.image_size "
                f"{list(size)}; cut the image into tiles"
            )
            findings.add("error", "extreme_aspect", message)


def compare_splits(
    train: CocoDetection, val: CocoDetection, findings: Findings, pixels: tuple[Digests, Digests] | None = None
) -> None:
    """An error for differing classes, a warning for images that are in both splits.

    pixels   of the images of both splits, where they were decoded: copies are found too
    """
    if train.categories != val.categories and train.table.all_sound and val.table.all_sound:
        labels = zip_longest(train.categories, val.categories)
        k, (ours, theirs) = next((k, pair) for k, pair in enumerate(labels) if pair[0] != pair[1])
        only = [sorted(set(a) - set(b)) for a, b in permutations((train.categories, val.categories))]
        message = (
            f"{val.table.path}: its categories are not those of {train.table.path}: label {k} is {theirs!r} there and "
            f"{ours!r} in training; only in training: {only[0][:10]}, only in evaluation: {only[1][:10]}"
            f"{train.table.describe_parents()}{val.table.describe_parents()}; give both files the same categories with "
            "the same ids"
        )
        findings.add("error", "categories_differ", message)
    files = [_image_files(dataset) for dataset in (train, val)]
    shared = shared_files(*files)
    if pixels is not None:
        shared |= shared_pixels(*pixels, train.objects_per_image, val.objects_per_image)
    if shared:
        index = min(shared)
        message = (
            f"{val.table.path}: {len(shared):,} of its {len(val):,} images are trained on too, such as "
            f"{name_file(files[1][index])}, {name_file(files[0][shared[index]])} in training; the evaluation will be "
            "too good"
        )
        findings.add("warning", "same_file", message, count=len(shared))


def _image_files(dataset: CocoDetection) -> list[ImageFile]:
    return [dataset.image_file(index) for index in range(len(dataset))]


def check_query_limit(dataset: CocoDetection, limit: int, findings: Findings) -> None:
    """A warning for images with more objects than queries: the surplus is never matched."""
    above = dataset.objects_per_image > limit
    if above.any():
        message = (
            f"{dataset.table.path}: {int(above.sum())} of {len(dataset)} images have more objects than the {limit} "
            f"queries they can get, at most {int(dataset.objects_per_image.max())}; the surplus is not trained on: "
            "raise model.num_queries, and model.d3q.max_queries if it is set"
        )
        findings.add("warning", "more_objects_than_queries", message, count=int(above.sum()))
