"""Config -> data sets and loaders."""

from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import torch

from configs.paths import expand_path
from configs.schema import DataConfig
from datasets.checks import check_aspects
from datasets.coco import CocoDetection
from datasets.collate import collate
from datasets.copy_paste import build_copy_paste
from datasets.findings import Findings
from datasets.images.hints import hint_for_path
from datasets.images.rasters import RasterOptions, parse_stretch
from datasets.loading import ImageLoader, ImageReader, WorkerBoard, ignore_job_signals
from datasets.mosaic import Mosaic
from datasets.samplers import EvalSampler, TrainSampler, repeat_factors
from datasets.structures import DataError
from datasets.transforms import (
    ColorJitter,
    Compose,
    Mixer,
    Normalize,
    RandomCrop,
    RandomFlip,
    RandomResize,
    RandomRotation,
    Resize,
    Transform,
)


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
    findings         collects all findings, and the sound rest is opened; without it, errors are raised

    Raises DataError (with findings: only if nothing sound is left) and ConfigError for a path that cannot be expanded.
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
        bands=data.bands,
        stretch=parse_stretch(data.stretch),
        num_classes=num_classes,
        findings=findings,
    )
    dataset.check_files(found, follow_links=data.follow_links)
    check_aspects(dataset, size=data.image_size, findings=found)
    if training:
        dataset.mixers = _build_mixers(dataset, data, found)
    if findings is None:
        found.raise_errors()
    if data.cache_images == "memory":
        dataset.cache_images(threads=max(data.num_workers, 1), copies=processes_here)
    return dataset


def raster_options(data: DataConfig, *, max_pixels: int) -> RasterOptions:
    """How images of a prediction are opened, as in training but for the limit of their size."""
    return RasterOptions(max_pixels, data.exif, data.bands, parse_stretch(data.stretch))


def build_train_loader(
    dataset: CocoDetection, data: DataConfig, *, rank: int, world_size: int, seed: int, pin_memory: bool
) -> ImageLoader:
    """Training loader; (seed, epoch) determine the order of its batches. Its `batch_sampler` is a TrainSampler."""
    repeats = None
    if data.repeat_threshold > 0:
        repeats = repeat_factors([dataset.usable_labels(i) for i in range(len(dataset))], data.repeat_threshold)
    sampler = TrainSampler(
        num_images=len(dataset),
        batch_size=data.batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
        repeats=repeats,
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


def _loader_options(data: DataConfig, *, pin_memory: bool) -> dict[str, Any]:
    return {
        "num_workers": data.num_workers,
        "collate_fn": collate,
        "pin_memory": pin_memory,
        "worker_init_fn": ignore_job_signals,
        "timeout": data.worker_timeout if data.num_workers > 0 else 0,
        "persistent_workers": data.num_workers > 0,
        # Forked workers share the annotations and cached images; others would be sent a copy each.
        "multiprocessing_context": "fork" if data.num_workers > 0 and "fork" in get_all_start_methods() else None,
        # Its own generator: loading never touches the random numbers of the model.
        "generator": torch.Generator().manual_seed(0),
    }


def _build_mixers(dataset: CocoDetection, data: DataConfig, findings: Findings) -> tuple[Mixer, ...]:
    mixers: list[Mixer] = []
    if data.copy_paste_prob > 0:
        paste = build_copy_paste(dataset, p=data.copy_paste_prob, share=data.copy_paste_share, findings=findings)
        mixers += [] if paste is None else [paste]
    if data.mosaic_prob > 0:
        mixers.append(
            Mosaic(
                p=data.mosaic_prob,
                size=data.image_size,
                images=len(dataset),
                load=dataset.read_sample,
                epochs=data.mosaic_epochs,
            )
        )
    return tuple(mixers)


def build_eval_transforms(data: DataConfig) -> Compose:
    """What an evaluation does with an image."""
    return _build_transforms(data, training=False)


def _build_transforms(data: DataConfig, *, training: bool) -> Compose:
    if data.mean is None or data.std is None:
        raise ValueError("data.mean and data.std are not resolved")
    transforms: list[Transform] = [Resize(size=data.image_size)]
    if training:
        if data.scale_jitter is not None:
            low, high = data.scale_jitter
            transforms = [RandomResize(size=data.image_size, low=low, high=high)]
        if data.crop_size is not None or data.scale_jitter is not None:
            transforms.append(RandomCrop(size=data.crop_size or data.image_size, keep_empty=data.keep_empty_crops))
        transforms.append(RandomFlip("horizontal", p=data.flip_prob))
        if data.vertical_flip_prob > 0:
            transforms.append(RandomFlip("vertical", p=data.vertical_flip_prob))
        if data.rotate_prob > 0:
            transforms.append(RandomRotation(p=data.rotate_prob))
        if data.brightness > 0:
            transforms.append(ColorJitter(strength=data.brightness))
    return Compose([*transforms, Normalize(mean=data.mean, std=data.std)])
