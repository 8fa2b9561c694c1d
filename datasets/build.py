"""Config -> data sets and loaders."""

from collections.abc import Sequence
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from configs.schema import DataConfig, SplitConfig
from datasets.coco import CocoDetection
from datasets.collate import collate
from datasets.samplers import EvalSampler, TrainSampler
from datasets.structures import DataError
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


def build_dataset(data: DataConfig, *, training: bool, seed: int, processes_here: int = 1) -> CocoDetection:
    """The training or the evaluation split; processes_here is how many on this machine build it. Raises DataError."""
    root = Path(data.root)
    if not root.is_dir():
        raise DataError(f"{root}: no such data root; make or fetch the data set, or set data.root")
    split: SplitConfig = data.train if training else data.val
    dataset = CocoDetection(
        annotations=root / split.annotations,
        images_root=root / split.images,
        transforms=_build_transforms(data, training=training),
        training=training,
        seed=seed,
        on_bad_annotation=data.on_bad_annotation,
        drop_empty=training and data.drop_empty,
    )
    dataset.check_files()
    if data.cache_images == "memory":
        dataset.cache_images(threads=max(data.num_workers, 1), copies=processes_here)
    return dataset


def build_train_loader(
    dataset: CocoDetection, data: DataConfig, *, rank: int, world_size: int, seed: int, pin_memory: bool
) -> DataLoader[Any]:
    """Batches in an order that follows from (seed, epoch); its `batch_sampler` is a TrainSampler."""
    sampler = TrainSampler(
        num_images=len(dataset), batch_size=data.batch_size, rank=rank, world_size=world_size, seed=seed
    )
    return DataLoader(dataset, batch_sampler=sampler, **_loader_options(data, pin_memory=pin_memory))


def build_eval_loader(
    dataset: CocoDetection, data: DataConfig, *, rank: int, world_size: int, pin_memory: bool
) -> DataLoader[Any]:
    """Each image exactly once over all processes."""
    sampler = EvalSampler(num_images=len(dataset), rank=rank, world_size=world_size)
    options = _loader_options(data, pin_memory=pin_memory)
    return DataLoader(dataset, sampler=sampler, batch_size=data.batch_size, **options)


def check_classes(dataset: CocoDetection, num_classes: int) -> None:
    """Raises DataError unless the data set has as many classes as the model."""
    found = len(dataset.categories)
    if found != num_classes:
        raise DataError(
            f"{dataset.table.path}: {found} categories ({', '.join(dataset.categories[:10])}), but "
            f"model.num_classes is {num_classes}; set model.num_classes: {found}"
        )


def check_trained_classes(dataset: CocoDetection, trained: Sequence[str], *, source: Path) -> None:
    """Raises DataError unless the data set has the classes that the checkpoint `source` was trained on."""
    if list(dataset.categories) != list(trained):
        raise DataError(
            f"{dataset.table.path}: categories {list(dataset.categories)} are not those that {source} was trained on, "
            f"{list(trained)}; set data.root and data.val to a data set with the same classes"
        )


def mean_density(dataset: CocoDetection, data: DataConfig, *, stride: int) -> float:
    """Mean objects per cell of a map of this stride over the scaled images, to three digits, within DENSITY_RANGE.

    A random crop is not looked at: it takes the same share of the objects as of the cells, on average.
    """
    shapes = [resized_shape(height, width, size=data.image_size) for height, width in dataset.image_sizes.tolist()]
    cells = sum(-(-height // stride) * -(-width // stride) for height, width in shapes)
    low, high = DENSITY_RANGE
    return float(f"{min(max(int(dataset.objects_per_image.sum()) / cells, low), high):.3g}")


def densest_batch(dataset: CocoDetection, data: DataConfig) -> tuple[tuple[int, int], list[int]]:
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
