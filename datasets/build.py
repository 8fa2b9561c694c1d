"""Config -> data sets and loaders."""

import os
from collections.abc import Sequence
from itertools import permutations, zip_longest
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.paths import expand_path
from configs.schema import DataConfig
from datasets.coco import CocoDetection
from datasets.collate import collate
from datasets.findings import Findings
from datasets.images.checks import check_contents
from datasets.images.decode import ImageFile
from datasets.images.name_hints import hint_for_path
from datasets.images.same_files import Digests, name_file, report_same_pixels, shared_files, shared_pixels
from datasets.loading import ImageLoader, ImageReader, WorkerBoard
from datasets.samplers import EvalSampler, TrainSampler
from datasets.structures import Batch, DataError, SampleKey, Target
from datasets.transforms import (
    ColorJitter,
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomVerticalFlip,
    Resize,
    Transform,
    resized_shape,
)
from datasets.worker_signals import leave_signals_to_parent

DENSITY_RANGE = (1e-4, 0.5)
"""Of `mean_density`: beyond it a sigmoid hardly learns."""


def open_root(data: DataConfig) -> Path:
    """The folder of both splits. Raises DataError, and ConfigError for a path that cannot be expanded."""
    root = expand_path(data.root, "data.root")
    if not root.is_dir():
        hint = hint_for_path(root, folder=True)
        raise DataError(
            f"{root}: no such data root; {hint}make or fetch the data set, or set data.root", "missing_root"
        )
    return root


def build_dataset(
    data: DataConfig,
    *,
    training: bool,
    seed: int,
    num_classes: int | None = None,
    processes_here: int = 1,
    findings: Findings | None = None,
) -> CocoDetection:
    """The training or the evaluation split.

    num_classes      of the model: categories that are only the parents of others are classes where it counts them
    processes_here   how many on this machine build it
    findings         gets all that is found, errors too, and what is left is opened; without one they are raised

    Raises DataError, with findings only where nothing is left, and ConfigError for a path that cannot be expanded.
    """
    root = open_root(data)
    found = Findings() if findings is None else findings
    name, split = ("train", data.train) if training else ("val", data.val)
    dataset = CocoDetection(
        annotations=root / expand_path(split.annotations, f"data.{name}.annotations"),
        images_root=root / expand_path(split.images, f"data.{name}.images"),
        transforms=_build_transforms(data, training=training),
        training=training,
        seed=seed,
        on_bad_annotation=data.on_bad_annotation,
        drop_empty=training and data.drop_empty,
        max_image_pixels=data.max_image_pixels,
        exif=data.exif,
        num_classes=num_classes,
        findings=findings,
    )
    dataset.check_files(found, follow_links=data.follow_links)
    check_aspects(dataset, size=data.image_size, findings=found)
    if findings is None:
        found.raise_errors()
    if data.cache_images == "memory":
        dataset.cache_images(threads=max(data.num_workers, 1), copies=processes_here)
    return dataset


def build_train_loader(
    dataset: CocoDetection, data: DataConfig, *, rank: int, world_size: int, seed: int, pin_memory: bool
) -> ImageLoader:
    """Batches in an order that follows from (seed, epoch); its `batch_sampler` is a TrainSampler."""
    sampler = TrainSampler(
        num_images=len(dataset), batch_size=data.batch_size, rank=rank, world_size=world_size, seed=seed
    )
    reader = ImageReader(dataset, board=WorkerBoard(data.num_workers), on_bad_image=data.on_bad_image)
    return ImageLoader(reader, batch_sampler=sampler, **_loader_options(data, pin_memory=pin_memory))


def build_eval_loader(
    dataset: CocoDetection, data: DataConfig, *, rank: int, world_size: int, pin_memory: bool
) -> ImageLoader:
    """Each image exactly once over all processes, in the same batches on any number of them."""
    sampler = EvalSampler(num_images=len(dataset), batch_size=data.batch_size, rank=rank, world_size=world_size)
    reader = ImageReader(dataset, board=WorkerBoard(data.num_workers), on_bad_image="error")
    return ImageLoader(reader, batch_sampler=sampler, **_loader_options(data, pin_memory=pin_memory))


def densest_batch(dataset: CocoDetection, data: DataConfig, *, skip: bool = False) -> Batch:
    """The images with the most objects, as training loads them.

    skip   take the next image for one that cannot be read, as with data.on_bad_image: skip

    Raises DataError.
    """
    samples: list[tuple[Tensor, Target]] = []
    problem: DataError | None = None
    for index in np.argsort(-dataset.objects_per_image, kind="stable").tolist():
        try:
            samples.append(dataset[SampleKey(0, index)])
        except DataError as error:
            problem = error
            if not skip and data.on_bad_image == "error":
                raise
        if len(samples) == data.batch_size:
            break
    if problem is not None and not samples:
        raise problem
    return collate(samples)


def check_images(dataset: CocoDetection, data: DataConfig, findings: Findings, *, decode: bool) -> Digests:
    """Look at the header of every image file that is there, or decode it; evaluation cannot do without any image.

    returns   a digest of the pixels of each image, None where they were not decoded
    """
    files = image_files(dataset)
    present = [index for index, file in enumerate(files) if file.path.is_file()]
    found = check_contents(
        [files[index] for index in present],
        decode=decode,
        skip=dataset.training and data.on_bad_image == "skip",
        max_pixels=data.max_image_pixels,
        exif=data.exif,
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
        raise DataError(
            f"{dataset.table.path}: {found} categories ({', '.join(dataset.categories[:10])}){parents}, but "
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
    """An error for other classes, a warning for images that are trained on and evaluated.

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
    files = [image_files(dataset) for dataset in (train, val)]
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


def image_files(dataset: CocoDetection) -> list[ImageFile]:
    return [dataset.image_file(index) for index in range(len(dataset))]


def check_query_limit(dataset: CocoDetection, limit: int, findings: Findings) -> None:
    """A warning for images with more objects than queries: the surplus is never matched."""
    above = dataset.objects_per_image > limit
    if above.any():
        message = (
            f"{dataset.table.path}: {int(above.sum())} of {len(dataset)} images have more objects than the {limit} "
            f"queries they can get, at most {int(dataset.objects_per_image.max())}; the surplus is not learnt: raise "
            "model.num_queries, and model.d3q.max_queries where it is set"
        )
        findings.add("warning", "more_objects_than_queries", message, count=int(above.sum()))


def mean_density(dataset: CocoDetection, data: DataConfig, *, stride: int) -> float:
    """Mean objects per cell of a map of this stride over the scaled images, to three digits, within DENSITY_RANGE.

    A random crop is not looked at: it takes the same share of the objects as of the cells, on average.
    """
    shapes = [resized_shape(height, width, size=data.image_size) for height, width in dataset.image_sizes.tolist()]
    cells = sum(-(-height // stride) * -(-width // stride) for height, width in shapes)
    low, high = DENSITY_RANGE
    return float(f"{min(max(int(dataset.objects_per_image.sum()) / cells, low), high):.3g}")


def densest_shapes(dataset: CocoDetection, data: DataConfig) -> tuple[tuple[int, int], list[int]]:
    """What the largest training batch may be: (H, W) of the padded images, px, and the objects of each.

    After the random crop, those of the window with most objects around one of them.
    """
    shapes = np.array([resized_shape(height, width, size=data.image_size) for height, width in dataset.image_sizes])
    window = np.array(data.crop_size if data.crop_size is not None else shapes.max(axis=0))
    cropped = np.minimum(shapes, window)
    largest = cropped[cropped.prod(axis=1).argmax()] if data.batch_size == 1 else cropped.max(axis=0)
    densest = np.argsort(-dataset.objects_per_image, kind="stable")[: data.batch_size].tolist()
    counts = [int(dataset.objects_per_image[index]) for index in densest]
    if data.crop_size is not None:
        counts = [_most_in_window(dataset, index, shapes[index], window) for index in densest]
    height, width = largest.tolist()
    return (height, width), counts


def _most_in_window(dataset: CocoDetection, index: int, shape: np.ndarray, window: np.ndarray) -> int:
    """Most objects of an image scaled to `shape` (h, w) in a window of that size around one of them."""
    boxes = dataset.ground_truth(index).boxes
    centres = (boxes[:, :2] + boxes[:, 2:] / 2)[:, ::-1] * (shape / dataset.image_sizes[index])
    near = [int((np.abs(centres - centre) <= window / 2).all(axis=1).sum()) for centre in centres]
    return min(max(near, default=0), int(dataset.objects_per_image[index]))


def _loader_options(data: DataConfig, *, pin_memory: bool) -> dict[str, Any]:
    return {
        "num_workers": data.num_workers,
        "collate_fn": collate,
        "pin_memory": pin_memory,
        "worker_init_fn": leave_signals_to_parent,
        "timeout": data.worker_timeout if data.num_workers > 0 else 0,
        "persistent_workers": data.num_workers > 0,
        # Forked workers share the annotations and cached images; others would be sent a copy each.
        "multiprocessing_context": "fork" if data.num_workers > 0 and "fork" in get_all_start_methods() else None,
        # Its own generator: loading never touches the random numbers of the model.
        "generator": torch.Generator().manual_seed(0),
    }


def _build_transforms(data: DataConfig, *, training: bool) -> Compose:
    if data.mean is None or data.std is None:
        raise ValueError("data.mean and data.std are not resolved")
    transforms: list[Transform] = [Resize(size=data.image_size)]
    if training:
        if data.crop_size is not None:
            transforms.append(RandomCrop(size=data.crop_size))
        transforms.append(RandomHorizontalFlip(p=data.flip_prob))
        if data.vertical_flip_prob > 0:
            transforms.append(RandomVerticalFlip(p=data.vertical_flip_prob))
        if data.brightness > 0:
            transforms.append(ColorJitter(strength=data.brightness))
    return Compose([*transforms, Normalize(mean=data.mean, std=data.std)])
