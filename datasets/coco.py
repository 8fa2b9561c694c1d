"""The data set class: a COCO annotation file and a folder of images -> (image, Target)."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.annotations.table import BadAnnotationPolicy, read_annotations
from datasets.annotations.usable import clipped_corners, clipped_sizes, find_usable, owners_of
from datasets.findings import Findings
from datasets.images.cache import CacheTooLargeError, ImageCache
from datasets.images.checks import check_places
from datasets.images.decode import MAX_PIXELS, ImageFile
from datasets.images.hints import hint_for_path
from datasets.images.orientation import ExifPolicy
from datasets.images.rasters import RasterOptions, Stretch, read_whole
from datasets.scaling import size_factors
from datasets.statistics import DatasetStatistics, summarise
from datasets.structures import DataError, GroundTruth, SampleKey, Target
from datasets.transforms import Mixer, Sample, Transform

MANY_DROPPED = 0.1
"""Share of dropped objects above which a warning is given."""


class CocoDetection(Dataset[tuple[Tensor, Target]]):
    """Images with boxes from one COCO detection file.

    annotations        the JSON file
    images_root        folder that its file_names are relative to
    transforms         (Sample, rng) -> Sample; the last one must make the image a tensor
    training           a zero-area box is a bad annotation; evaluation keeps it, as official evaluators do
    seed               augmentation is a function of (seed, epoch, image id): workers and ranks do not matter
    on_bad_annotation  "error" | "skip": policy for bad annotations; `skipped` counts them
    drop_empty         drop images without a usable object, as published; not in evaluation
    max_image_pixels   a larger image is refused
    exif, bands, stretch   how the pixels are read, as in `RasterOptions`
    recompute_area     replace an `area` of 0 beside a sound box by width x height; False to compare with pycocotools
    num_classes        of the model, which decides whether categories that are only the parents of others are classes
    findings           collects all findings, and the sound rest is opened; without it, errors are raised

    Targets hold the usable objects, clipped to the image: crowds, ignored boxes, boxes below 1 px and boxes
    outside the image are dropped, as published, and counted in `dropped`. `ground_truth` has everything, as in
    the file, except areas of 0. Labels are contiguous, in the order of the category ids. Annotation ids are not used.

    raises DataError at construction for a file that cannot be used, at `dataset[key]` for an unusable image.
    """

    mixers: tuple[Mixer, ...] = ()
    """Applied to a training image before `transforms`"""

    def __init__(
        self,
        *,
        annotations: Path,
        images_root: Path,
        transforms: Transform,
        training: bool,
        seed: int = 0,
        on_bad_annotation: BadAnnotationPolicy = "error",
        drop_empty: bool = False,
        max_image_pixels: int = MAX_PIXELS,
        exif: ExifPolicy = "auto",
        bands: tuple[int, int, int] | None = None,
        stretch: Stretch | None = None,
        recompute_area: bool = True,
        num_classes: int | None = None,
        findings: Findings | None = None,
    ) -> None:
        if drop_empty and not training:
            raise ValueError("drop_empty is for training only: an evaluation must see every image")
        if not images_root.is_dir():
            hint = hint_for_path(images_root, folder=True)
            raise DataError(f"{images_root}: no such images folder; {hint}make or fetch the data set, or set data.root")
        self.images_root, self.transforms, self.seed = images_root, transforms, seed
        self.training, self.reading = training, RasterOptions(max_image_pixels, exif, bands, stretch)
        self.table = read_annotations(
            annotations,
            on_bad_annotation=on_bad_annotation,
            keep_zero_area=not training,
            recompute_area=recompute_area,
            num_classes=num_classes,
            findings=findings,
        )
        self.skipped = self.table.skipped
        self._usable, self.dropped = find_usable(self.table)
        self.fixed = self.table.fixed | ({"clipped_box": clipped} if (clipped := self._count_clipped()) else {})
        usable_before = np.concatenate([[0], np.cumsum(self._usable)])
        usable_per_image = np.diff(usable_before[self.table.first_object])
        if training and not self._usable.any():
            raise DataError(
                f"{annotations}: no usable object in {len(self.table.image_ids)} images (dropped: "
                f"{self.dropped | self.skipped}); nothing to train on: check the annotations"
            )
        own = Findings() if findings is None else findings
        self._warn_of_many_dropped(own)
        self._warn_of_empty_classes(own)
        self.warnings = (*(self.table.warnings if findings is None else ()), *own.messages("warning"))
        self._positions = np.nonzero(usable_per_image > 0)[0] if drop_empty else np.arange(len(usable_per_image))
        self.objects_per_image = usable_per_image[self._positions]
        self._cache: ImageCache | None = None

    @property
    def categories(self) -> tuple[str, ...]:
        """Class names; label k is categories[k]."""
        return self.table.categories

    @property
    def image_sizes(self) -> np.ndarray:
        """(N, 2) height, width of the image files, px."""
        return self.table.sizes[self._positions]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, key: SampleKey | int) -> tuple[Tensor, Target]:
        """Image (3, h, w) float32 and its Target; a plain int is a key of epoch 0."""
        key = key if isinstance(key, SampleKey) else SampleKey(0, int(key))
        epoch, index, copy = key
        position, _ = self._locate(index)
        image_id = int(self.table.image_ids[position])
        sample = self.read_sample(index)
        for mix in self.mixers:
            sample = mix(sample, key, np.random.default_rng((self.seed, epoch, image_id, copy, mix.stream)))
        seed = (self.seed, epoch, image_id, copy)[: 4 if copy else 3]  # the first copy as without repeats
        sample = self.transforms(sample, np.random.default_rng(seed))
        if not isinstance(sample.image, Tensor):
            raise TypeError("transforms gave no tensor: end them with Normalize")
        height, width = sample.image.shape[-2:]
        original_height, original_width = self.table.sizes[position].tolist()
        target = Target(
            boxes_xyxy=sample.boxes,
            labels=sample.labels,
            image_id=image_id,
            size=(height, width),
            original_size=(original_height, original_width),
        )
        return sample.image, target

    def read_sample(self, index: int) -> Sample:
        """The image with the objects that a training sees, nothing transformed."""
        boxes, labels = self.usable_objects(index)
        return Sample(image=self.read_image(index), boxes=torch.from_numpy(boxes), labels=torch.from_numpy(labels))

    def read_image(self, index: int) -> Image.Image:
        """Decode the image to RGB, in the frame of its boxes."""
        if self._cache is not None:
            return self._cache[index]
        return read_whole(self.image_file(index), self.reading)

    def image_file(self, index: int) -> ImageFile:
        """Path of the image, and what its annotation file says about it."""
        position, _ = self._locate(index)
        height, width = self.table.sizes[position].tolist()
        entry = f"{self.table.path}: images[{position}] (id {self.table.image_ids[position]})"
        return ImageFile(self.path(index), size=(height, width), entry=entry)

    def cache_images(self, *, threads: int, copies: int = 1) -> None:
        """Decode every image now and keep them in memory, which forked workers share.

        copies   processes on this machine with such a cache
        raises   DataError for too little memory, before decoding, and for an unusable image
        """
        try:
            self._cache = ImageCache(sizes=self.image_sizes, read=self.read_image, threads=threads, copies=copies)
        except CacheTooLargeError as error:
            raise DataError(
                f"{self.table.path}: data.cache_images: memory for {len(self)} images {error}; "
                f"set data.cache_images: none"
            ) from None

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the images' ids, names and sizes and of all their objects, equal for the same data."""
        table = self.table
        digest = hashlib.sha256(repr((len(self), self.categories)).encode())
        objects = (table.first_object, table.boxes, table.labels, table.areas, table.crowd, table.ignored)
        for column in (table.image_ids, table.file_names.content, table.file_names.starts, table.sizes, *objects):
            digest.update(column.tobytes())
        return digest.hexdigest()

    def path(self, index: int) -> Path:
        return self.images_root / self.table.file_names[int(self._positions[index])]

    def check_files(self, findings: Findings | None = None, *, follow_links: bool = False) -> None:
        """Check that every image file exists and belongs to one entry only; decode nothing.

        follow_links   accept links to files outside the images folder
        findings       gets every missing file; without one they are raised as a DataError
        """
        found = Findings() if findings is None else findings
        files = [self.image_file(index) for index in range(len(self))]
        check_places(files, root=self.images_root, follow_links=follow_links, findings=found)
        if findings is None:
            found.raise_errors()

    def usable_labels(self, index: int) -> np.ndarray:
        """(N,) of the objects that a training sees."""
        _, objects = self._locate(index)
        return self.table.labels[objects][self._usable[objects]]

    def usable_objects(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(N, 4) float32 xyxy clipped to the image, and (N,) labels, of the objects that a training sees."""
        position, objects = self._locate(index)
        usable = np.arange(objects.start, objects.stop)[self._usable[objects]]
        return clipped_corners(self.table, position, usable).astype(np.float32), self.table.labels[usable]

    def annotated(self, index: int) -> np.ndarray:
        """(M, 4) xyxy of all objects of the file: crowds, ignored and unusable ones too."""
        boxes = self.table.boxes[self._locate(index)[1]]
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)

    def ground_truth(self, index: int) -> GroundTruth:
        """The image's objects as in the file: nothing clipped, nothing dropped except what `skipped` counts."""
        position, objects = self._locate(index)
        return GroundTruth(
            image_id=int(self.table.image_ids[position]),
            boxes=self.table.boxes[objects],
            labels=self.table.labels[objects],
            areas=self.table.areas[objects],
            crowd=self.table.crowd[objects],
        )

    def remarks(self) -> list[str]:
        """Lines of a report: what was dropped, what was fixed in memory, and warnings."""
        counts = {"dropped": self.dropped | self.skipped, "fixed": self.fixed}
        lines = [f"{what}: {found}" for what, found in counts.items() if found]
        return lines + [f"warning: {text}" for text in self.warnings]

    def statistics(self) -> DatasetStatistics:
        """Counts and sizes of the usable objects, clipped, before any transform."""
        return summarise(
            objects_per_image=self.objects_per_image,
            box_sizes=clipped_sizes(self.table, owners_of(self.table, self._usable), self._usable),
            labels=self.table.labels[self._usable],
            categories=self.categories,
        )

    def scaled_sizes(self, size: tuple[int, int]) -> np.ndarray:
        """(N,) sqrt(w*h) of the usable objects, clipped, px of images fitted inside `size` (height, width)."""
        owners = owners_of(self.table, self._usable)
        sizes = clipped_sizes(self.table, owners, self._usable)
        return np.sqrt(sizes.prod(axis=1)) * size_factors(self.table.sizes, size=size)[owners]

    def _locate(self, index: int) -> tuple[int, slice]:
        """Position in the table and the image's objects there."""
        position = int(self._positions[index])
        return position, slice(*self.table.first_object[position : position + 2].tolist())

    def _warn_of_many_dropped(self, findings: Findings) -> None:
        """Warn when more than a tenth of the file's objects are unusable, for any reason."""
        reasons = self.dropped | self.skipped
        count, total = sum(reasons.values()), len(self.table.boxes) + sum(self.skipped.values())
        if count <= total * MANY_DROPPED:
            return
        kinds = ", ".join(f"{reason} {number:,}" for reason, number in reasons.items())
        effect = "not trained on"
        if not self.training:
            effect = "not counted; the metrics take all that were not skipped as official evaluators do"
        message = f"{self.table.path}: {count:,} of {total:,} objects are dropped ({kinds}): {effect}"
        findings.add("warning", "many_dropped", message, count=count)

    def _warn_of_empty_classes(self, findings: Findings) -> None:
        """Warn of classes without an object to learn from."""
        counts = np.bincount(self.table.labels[self._usable], minlength=len(self.categories))
        empty = [name for name, count in zip(self.categories, counts, strict=True) if count == 0]
        if self.training and empty and not findings.counts("error"):
            more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
            message = (
                f"{self.table.path}: {len(empty)} of {len(counts)} categories have no object to learn from: "
                f"{', '.join(empty[:10])}{more}"
            )
            findings.add("warning", "empty_category", message, count=len(empty))

    def _count_clipped(self) -> int:
        """Number of usable objects that extend beyond their image and are clipped."""
        limits = np.repeat(self.table.sizes[:, ::-1], np.diff(self.table.first_object), axis=0)
        low, high = self.table.boxes[:, :2], self.table.boxes[:, :2] + self.table.boxes[:, 2:]
        return int((((low < 0) | (high > limits)).any(axis=1) & self._usable).sum())
