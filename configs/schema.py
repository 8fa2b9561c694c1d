"""All configuration keys of an experiment: frozen dataclasses, typed, documented and validated where they are defined.

A class is a block of the YAML file, a field is a key, the docstring under a field is its documentation. The
loader (`configs/loader.py`) fills them strictly and adds file, line and path to the errors raised here.
"""

import math
from dataclasses import dataclass
from typing import Literal


class InvalidValueError(ValueError):
    """A value outside its range. `field` is the key inside the block, dotted for a nested block."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def require(condition: bool, field: str, reason: str) -> None:
    """Raise `InvalidValueError(field, reason)` unless the condition holds."""
    if not condition:
        raise InvalidValueError(field, reason)


def require_positive(block: object, *names: str) -> None:
    for name in names:
        value = getattr(block, name)
        require(value > 0, name, f"must be > 0, got {value}")


def require_not_negative(block: object, *names: str) -> None:
    for name in names:
        value = getattr(block, name)
        require(value >= 0, name, f"must be >= 0, got {value}")


def require_probability(block: object, *names: str) -> None:
    for name in names:
        value = getattr(block, name)
        require(0 <= value <= 1, name, f"must lie in [0, 1], got {value}")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The convolutional backbone. Its strides and width must suit its entry of `models/backbones/catalog.py`."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_lite0"]
    """Architecture. ResNets are torchvision's; efficientnet_lite0 is the light one for CPUs and drones."""
    weights: str | None = None
    """torchvision's enum name (IMAGENET1K_V1), a local file, or null for random weights."""
    out_strides: tuple[int, ...] = (4, 8, 16, 32)
    """Strides of the maps handed to the neck, ascending; the first is the finest level of the detector."""
    frozen_stages: int = 1
    """-1: nothing frozen, 0: the stem, n: the stem and the first n stages."""
    batch_norm: Literal["frozen", "trainable"] = "frozen"
    """frozen: statistics and affine parameters stay as loaded. trainable: ordinary batch normalisation."""
    base_width: int = 64
    """Channels of the stem of a ResNet; smaller values scale the whole network."""

    def __post_init__(self) -> None:
        strides = self.out_strides
        require(bool(strides) and strides[0] > 0, "out_strides", f"needs strides > 0, got {list(strides)}")
        require(
            list(strides) == sorted(set(strides)),
            "out_strides",
            f"must ascend without repeats, got {list(strides)}",
        )
        require(-1 <= self.frozen_stages <= 4, "frozen_stages", f"must lie in -1..4, got {self.frozen_stages}")
        require_positive(self, "base_width")


@dataclass(frozen=True, kw_only=True)
class NeckConfig:
    """1x1 convolutions with GroupNorm; levels beyond the backbone's are stride-2 convolutions."""

    num_levels: int = 5
    """Feature levels of the transformer; at least the number of backbone.out_strides."""
    num_groups: int = 32
    """Groups of GroupNorm; divides hidden_dim."""
    bias: bool = False
    """Biases in the convolutions: true for weights of the original DINO and Deformable DETR."""

    def __post_init__(self) -> None:
        require_positive(self, "num_levels", "num_groups")


@dataclass(frozen=True, kw_only=True)
class PositionEncodingConfig:
    """Sine position encoding of the feature maps."""

    temperature: float = 20.0
    """20 in DINO, 10000 in Deformable DETR."""
    offset: float = 0.0
    """0 in DINO, -0.5 in Deformable DETR."""

    def __post_init__(self) -> None:
        require_positive(self, "temperature")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """An encoder or decoder stack."""

    num_layers: int = 6
    """Layers of the stack."""
    num_heads: int = 8
    """Attention heads; divides hidden_dim."""
    num_points: int = 4
    """Sampling points per head and level."""
    ffn_dim: int = 2048
    """Hidden width of the feed-forward block."""
    dropout: float = 0.0
    """Dropout of attention and feed-forward blocks."""

    def __post_init__(self) -> None:
        require_positive(self, "num_layers", "num_heads", "num_points", "ffn_dim")
        require(0 <= self.dropout < 1, "dropout", f"must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """Contrastive denoising queries (DINO only)."""

    num_queries: int = 100
    """Positive queries per image, roughly; the group count is max(1, num_queries // most objects of an image)."""
    label_noise: float = 0.5
    """A label is redrawn with half this probability."""
    box_noise: float = 1.0
    """Corner noise in half box sides."""

    def __post_init__(self) -> None:
        require_positive(self, "num_queries")
        require_probability(self, "label_noise")
        require_not_negative(self, "box_noise")


@dataclass(frozen=True, kw_only=True)
class D3QConfig:
    """The query budget of D3Q: the query count of an image follows its density map."""

    queries_per_object: float = 3.0
    """Queries per estimated object (t of the paper)."""
    min_queries: int = 300
    """Every image gets at least this many."""
    max_queries: int | None = None
    """No image gets more; null: num_queries, the rows of the query table. A trained detector takes any lower value."""
    initial_density: float | None = None
    """Objects per cell that the untrained map predicts everywhere; null: the mean of the training set. Published:
    0.1, with which an 800x800 image starts at 4,000 objects (stride 4), and so at the query ceiling."""

    def __post_init__(self) -> None:
        require_positive(self, "queries_per_object", "min_queries")
        ceiling, density = self.max_queries, self.initial_density
        require(
            ceiling is None or ceiling >= self.min_queries,
            "max_queries",
            f"{ceiling} is below min_queries {self.min_queries}",
        )
        require(density is None or 0 < density < 1, "initial_density", f"must lie in (0, 1) or be null, got {density}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The detector."""

    detector: Literal["dino", "deformable_detr"]
    """The host."""
    num_classes: int | None
    """Foreground classes; null: as many as the training annotations have."""
    hidden_dim: int = 256
    """Width of the transformer."""
    num_queries: int = 900
    """Query count without D3Q; with D3Q its ceiling."""
    query_content: Literal["learned", "proposal"] = "learned"
    """learned: row i of a table for the i-th best proposal. proposal: computed from the proposal box
    (the Deformable DETR baseline)."""
    class_agnostic_proposals: bool = False
    """Rank proposals by their first class channel and train it as "object" (both Deformable DETRs); false
    ranks by the best class (DINO)."""
    backbone: BackboneConfig
    """The convolutional backbone. Its strides and width must suit its entry of `models/backbones/catalog.py`."""
    neck: NeckConfig = NeckConfig()
    """Backbone maps to transformer levels."""
    position_encoding: PositionEncodingConfig = PositionEncodingConfig()
    """Position encoding of the encoder."""
    encoder: TransformerConfig = TransformerConfig()
    """The encoder."""
    decoder: TransformerConfig = TransformerConfig()
    """The decoder."""
    denoising: DenoisingConfig | None = None
    """Denoising queries; null for none."""
    d3q: D3QConfig | None = None
    """The dynamic query budget; null for a fixed number of queries."""

    def __post_init__(self) -> None:
        require_positive(self, "hidden_dim", "num_queries")
        classes = self.num_classes
        require(classes is None or classes > 0, "num_classes", f"must be > 0 or null, got {classes}")
        require(self.hidden_dim % 4 == 0, "hidden_dim", f"must be divisible by 4, got {self.hidden_dim}")
        for name, divisor in (
            ("encoder.num_heads", self.encoder.num_heads),
            ("decoder.num_heads", self.decoder.num_heads),
            ("neck.num_groups", self.neck.num_groups),
        ):
            require(
                self.hidden_dim % divisor == 0,
                name,
                f"{divisor} does not divide hidden_dim {self.hidden_dim}",
            )
        given = len(self.backbone.out_strides)
        require(
            self.neck.num_levels >= given,
            "neck.num_levels",
            f"{self.neck.num_levels} < {given} backbone.out_strides",
        )
        if self.detector == "dino":
            require(self.query_content == "learned", "query_content", "dino has learned query content only")
        else:
            require(self.denoising is None, "denoising", "only dino has denoising queries; set it to null")
        if self.d3q is not None:
            for name in ("min_queries", "max_queries"):
                limit = getattr(self.d3q, name)
                require(
                    limit is None or limit <= self.num_queries,
                    f"d3q.{name}",
                    f"{limit} exceeds num_queries {self.num_queries}, the rows of the query table",
                )

    @property
    def class_count(self) -> int:
        """num_classes, once it is resolved. Raises InvalidValueError before."""
        if self.num_classes is None:
            raise InvalidValueError("model.num_classes", "null, and no annotations are read here; give the number")
        return self.num_classes


@dataclass(frozen=True, kw_only=True)
class SetLossConfig:
    """Matching costs and losses of one set of predictions (decoder layers, or encoder proposals)."""

    classification: Literal["softmax", "focal"]
    """softmax: cross-entropy over the classes and "no object". focal: sigmoid focal loss per class."""
    class_cost: float
    """Weight of the classification cost in the matching."""
    class_weight: float
    """Weight of the classification loss."""
    box_weight: float
    """Weight of the box distance, in the matching and in the loss."""
    giou_weight: float = 2.0
    """Weight of the generalised IoU, in the matching and in the loss."""
    no_object_weight: float = 0.1
    """Class weight of "no object" (softmax only)."""
    alpha: float = 0.25
    """Focal loss: share of the positives."""
    gamma: float = 2.0
    """Focal loss: exponent of the modulating factor."""

    def __post_init__(self) -> None:
        require_not_negative(self, "class_cost", "class_weight", "box_weight", "giou_weight", "gamma")
        require_probability(self, "no_object_weight", "alpha")


@dataclass(frozen=True, kw_only=True)
class CriterionConfig:
    """Losses."""

    box_distance: Literal["l1", "log_size_l1"]
    """l1: of (cx, cy, w, h). log_size_l1: D3Q's, with logarithmic sizes."""
    decoder: SetLossConfig
    """Decoder layers and denoising queries."""
    encoder: SetLossConfig
    """Encoder proposals."""
    encoder_tokens: Literal["all", "selected"] = "all"
    """Proposals in the encoder loss: every token, or the selected queries only (the DINO baseline)."""
    decoder_normalizer: Literal["batch", "image"] = "batch"
    """batch: losses divided by the batch's positives. image: by each image's, then averaged (Deformable
    D3Q)."""
    drop_off_centre_matches: bool = False
    """Un-assign a matched prediction whose centre lies outside its object (the Deformable DETR baseline)."""
    density_weight: float = 1.0
    """Weight of the density loss; unused without model.d3q."""
    count_weight: float = 0.0
    """Weight of the count loss, which makes the density of an image add up to its number of objects; 0 as published,
    for none; unused without model.d3q."""

    def __post_init__(self) -> None:
        require_not_negative(self, "density_weight", "count_weight")
        focal = self.encoder.classification == "focal"
        require(
            focal,
            "encoder.classification",
            "the encoder scores are sigmoids in every published system: focal",
        )


@dataclass(frozen=True, kw_only=True)
class FidelityConfig:
    """Switches between published and corrected behaviour."""

    density_merge: Literal["max", "sum"] = "max"
    """Overlapping objects in the density target: max as published (loses mass in crowds), sum conserves
    it."""
    mask_denoising_padding: bool = False
    """Mask the empty denoising slots of an image with fewer objects than others of its batch; false as published."""
    max_denoising_queries: int | None = None
    """Most denoising queries of an image, two per object; with more objects, a random subset of them is noised. null as
    published: no limit, 3,000 queries for 1,500 objects."""
    count_padding: bool = True
    """Count the density in the padding of an image too, as published; false: only inside the image."""
    round_objects: bool = True
    """Round the estimated count before it is multiplied by queries_per_object, as published; false multiplies the
    estimate itself."""
    log_size_form: Literal["clamped", "logsigmoid"] = "clamped"
    """The log-size loss. clamped: sizes below 1e-12 count as that and get no gradient; above, it is the published one.
    logsigmoid: computed from the box logits, finite with a gradient at any size."""

    def __post_init__(self) -> None:
        limit = self.max_denoising_queries
        require(limit is None or limit >= 2, "max_denoising_queries", f"must be >= 2, got {limit}")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """One split of the data set; paths relative to data.root."""

    annotations: str
    """COCO JSON file."""
    images: str
    """Folder of the images."""


def _is_stretch(text: str) -> bool:
    """percentile, or two numbers in order."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        return text == "percentile"
    return -math.inf < low < high < math.inf


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data set and augmentation."""

    root: str
    """Folder of the data set, relative to the working directory."""
    train: SplitConfig
    """Training split."""
    val: SplitConfig
    """Evaluation split."""
    image_size: tuple[int, int] = (800, 800)
    """(height, width) that images are scaled to fit, keeping their aspect ratio."""
    crop_size: tuple[int, int] | None = None
    """(height, width) of a random training crop after scaling; null for whole images."""
    keep_empty_crops: float = 1.0
    """Share of the random crops without objects that are kept, of images with objects; instead of the others, up to 10
    more are drawn."""
    mosaic_prob: float = 0.0
    """Probability that a training image becomes a mosaic: windows of itself and of three random images around a random
    point, at the scale of image_size."""
    mosaic_epochs: int | None = None
    """Mosaics in so many first epochs only; null for all."""
    flip_prob: float = 0.5
    """Probability of a horizontal flip in training."""
    vertical_flip_prob: float = 0.0
    """Probability of a vertical flip in training; overhead images allow it."""
    rotate_prob: float = 0.0
    """Probability of a rotation by 90 degrees in training. 0.5 gives all eight orientations, with both flips at
    0.5."""
    scale_jitter: tuple[float, float] | None = None
    """Smallest and largest factor of a random scale in training, log-uniform, on top of image_size. Larger images are
    cropped to crop_size, or image_size, at a random place; smaller ones are padded. null for none."""
    brightness: float = 0.0
    """Random brightness and contrast change in training, as a share; 0 for none."""
    drop_empty: bool = False
    """Drop images without objects from training (the published setting)."""
    on_bad_annotation: Literal["error", "skip"] = "error"
    """A broken box stops the run, or is skipped and counted."""
    on_bad_image: Literal["error", "skip"] = "error"
    """A training image that cannot be read after some retries stops the run, or is counted and replaced by the next
    one. In an evaluation it stops the run."""
    max_image_pixels: int = 89_478_485
    """Larger images are refused before they are decoded: a small file can claim any size."""
    exif: Literal["auto", "apply", "ignore"] = "auto"
    """The rotation that a camera stores in EXIF or TIFF. auto applies it if only the rotated image has the annotated
    size, and otherwise reads the pixels as stored; apply always applies it, as browsers and OpenCV do; ignore never
    does."""
    bands: tuple[int, int, int] | None = None
    """Numbers of three bands of rasters, from 1, for red, green, blue; null: as the file says. Needs rasterio."""
    stretch: str | None = None
    """Values of rasters that become black and white, "MIN,MAX", or percentile: the 2nd and 98th percentile of each band
    of a raster; null: 8-bit values as they are. Needs rasterio."""
    follow_links: bool = False
    """Accept image files that are links out of the images folder."""
    repeat_threshold: float = 0.0
    """Repeat-factor sampling: images with a class that fewer than this share of the images have are seen more often in
    an epoch, sqrt(threshold / share) times; 0 for none. LVIS uses 0.001, few classes need more, such as 0.2."""
    copy_paste_prob: float = 0.0
    """Probability that objects of rare classes are copied from another image, with the pixels around them, to free
    places of a training image; at most 10."""
    copy_paste_share: float = 0.1
    """Rare classes of copy_paste_prob: those that fewer than this share of the images have."""
    batch_size: int = 1
    """Images per process and step."""
    num_workers: int = 2
    """Loader processes per training process; 0 loads in the training process."""
    worker_timeout: int = 300
    """Seconds without a batch after which hanging loader processes end the run; 0 for no limit."""
    cache_images: Literal["none", "memory"] = "none"
    """memory decodes every image once, before the first epoch, and keeps it: 3 bytes per pixel, in each process."""
    mean: tuple[float, float, float] | None = None
    """RGB mean of the input in [0, 1]; null follows the backbone's weights."""
    std: tuple[float, float, float] | None = None
    """RGB standard deviation of the input in [0, 1]; null follows the backbone's weights."""

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "max_image_pixels")
        require_not_negative(self, "num_workers", "worker_timeout", "brightness")
        require_probability(self, "flip_prob", "vertical_flip_prob", "rotate_prob", "repeat_threshold")
        require_probability(self, "copy_paste_prob", "copy_paste_share", "mosaic_prob", "keep_empty_crops")
        require(self.mosaic_epochs is None or self.mosaic_epochs >= 1, "mosaic_epochs", "must be >= 1, or null")
        require(min(self.image_size) >= 16, "image_size", f"sides must be >= 16 px, got {list(self.image_size)}")
        if self.crop_size is not None:
            require(min(self.crop_size) >= 16, "crop_size", f"sides must be >= 16 px, got {list(self.crop_size)}")
        crops = self.crop_size is not None or self.scale_jitter is not None
        message = "there are no random crops: set crop_size or scale_jitter too"
        require(self.keep_empty_crops == 1 or crops, "keep_empty_crops", message)
        if self.scale_jitter is not None:
            low, high = self.scale_jitter
            require(0.1 <= low <= high <= 10, "scale_jitter", f"must be 0.1 <= low <= high <= 10, got {[low, high]}")
        require(self.bands is None or min(self.bands) >= 1, "bands", f"count from 1, got {self.bands}")
        require(self.stretch is None or _is_stretch(self.stretch), "stretch", "must be MIN,MAX, or percentile")
        require((self.mean is None) == (self.std is None), "std", "give mean and std together, or neither")
        require(self.std is None or min(self.std) > 0, "std", f"must be > 0, got {self.std}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 1e-4
    """Learning rate; never scaled by the batch size."""
    backbone_lr_factor: float = 0.1
    """Learning rate factor of the backbone."""
    sampling_offsets_lr_factor: float = 1.0
    """Learning rate factor of the sampling-offset layers (0.1 in Deformable DETR)."""
    weight_decay: float = 1e-4
    """Weight decay of every parameter."""
    clip_grad_norm: float = 0.1
    """Largest gradient norm; 0 for no clipping."""
    epochs: int = 24
    """Passes over the training set."""
    lr_drop_epochs: tuple[int, ...] = ()
    """The learning rate is multiplied by lr_drop_factor after each of these epochs."""
    lr_drop_factor: float = 0.1
    """Factor of each drop."""
    warmup_steps: int = 0
    """Linear warm-up of the learning rate over the first steps."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, used for evaluation; 0 for none."""
    early_stop: int = 0
    """End the training after so many evaluations without a better AP; 0 for none."""
    accumulate_steps: int = 1
    """Batches per optimiser step, whose gradients are averaged; the last step of an epoch takes the remaining
    batches."""
    max_skipped_steps: int = 5
    """Consecutive steps that may be skipped because loss or gradient is not finite; one more ends the run."""
    processes: int | None = None
    """Number of processes that lr was chosen for; another number is reported, lr stays."""

    def __post_init__(self) -> None:
        require_positive(self, "lr", "epochs", "lr_drop_factor")
        require_not_negative(
            self,
            "backbone_lr_factor",
            "sampling_offsets_lr_factor",
            "weight_decay",
            "clip_grad_norm",
            "warmup_steps",
            "max_skipped_steps",
            "early_stop",
        )
        require_positive(self, "accumulate_steps")
        require(0 <= self.ema_decay < 1, "ema_decay", f"must lie in [0, 1), got {self.ema_decay}")
        require(self.processes is None or self.processes > 0, "processes", f"must be > 0, got {self.processes}")
        bad = [epoch for epoch in self.lr_drop_epochs if epoch < 1]
        require(not bad, "lr_drop_epochs", f"must be >= 1, got {bad}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation during and after training."""

    protocol: Literal["aitod", "coco", "visdrone", "dota"] = "aitod"
    """Metric definition (docs/evaluation.md)."""
    max_detections: int = 1500
    """Largest number of detections per image and class that count; with protocol visdrone per image, 500 there."""
    scores: Literal["published", "corrected"] = "published"
    """published: the probability of the class, as trained. corrected: as if criterion.decoder.no_object_weight were 1,
    so that half of the detections with a score of 0.5 are right; softmax classification only (docs/scores.md)."""
    every_epochs: int = 4
    """Evaluate after every so many epochs, and after the last one."""
    gallery_images: int = 8
    """Images drawn per evaluation; 0 for none."""
    gallery_score: float = 0.3
    """Predictions below this score are not drawn; below this corrected score, where there are any (docs/scores.md)."""
    report: bool | None = None
    """Write report.html, why objects were missed, after the last evaluation of a training (docs/analysis.md); null:
    where there is a gallery."""

    def __post_init__(self) -> None:
        require_positive(self, "max_detections", "every_epochs")
        require_not_negative(self, "gallery_images")
        require_probability(self, "gallery_score")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How a run is executed."""

    seed: int = 0
    """Seed of weights, shuffling, augmentation and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto uses a GPU if there is one."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Autocast type of the network; boxes, costs and losses stay float32."""
    recompute: Literal["none", "feed_forward", "layers"] = "none"
    """Activation checkpointing: recompute feed-forward blocks, or whole encoder and decoder layers, in the backward
    pass. Less memory, more time, the same numbers."""
    compile: bool = False
    """torch.compile for backbone and encoder; takes a compiler and a minute at the start, and again for new image
    shapes. Meant for GPUs; slower on a CPU."""
    channels_last: bool = False
    """On GPUs: channels-last memory format in the backbone, which half-precision convolutions prefer."""
    query_bucket: int = 1
    """In training, pad the queries of a batch to a multiple of this number: fewer different shapes, so less memory
    fragmentation on a GPU; more work, the same numbers. Divides model.num_queries."""
    deterministic: bool = False
    """Use only deterministic algorithms, so that two runs agree bit for bit (on CPUs with the same number of threads).
    On GPUs the gradients of deformable attention are then computed in pure PyTorch, which is slower; operations without
    a deterministic form in torch cause a warning."""
    num_threads: int = 0
    """CPU threads of torch per process; 0 leaves torch's choice."""
    log_every: int = 50
    """Steps between two log lines and metric records."""
    output_dir: str | None = None
    """Run folder; null: runs/<name of the config file>. A resumed run stays in the folder of its checkpoint, unless
    --set names another one: a branch. In an evaluation: the folder of the results, if given by --set."""
    keep_checkpoints: int = 2
    """Number of latest checkpoints kept: last.pth, last.1.pth before it, and so on; best.pth is kept too."""
    start_timeout: float = 300.0
    """Seconds within which all processes must have started."""
    hang_timeout: float = 600.0
    """Seconds after which a collective times out and names the stuck rank; longer than any work that one rank does
    alone, such as drawing the gallery."""

    def __post_init__(self) -> None:
        require_not_negative(self, "seed", "num_threads")
        require_positive(self, "log_every", "keep_checkpoints", "query_bucket", "start_timeout", "hang_timeout")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    model: ModelConfig
    """The detector."""
    criterion: CriterionConfig
    """Losses."""
    fidelity: FidelityConfig = FidelityConfig()
    """Published or corrected behaviour."""
    data: DataConfig
    """Data set and augmentation."""
    optim: OptimConfig = OptimConfig()
    """AdamW and its schedule."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation."""
    runtime: RuntimeConfig = RuntimeConfig()
    """Execution."""
    init_from: str | None = None
    """Checkpoint whose weights start the training; null for none."""
    reset_head: Literal[False, True, "by_name"] = False
    """With init_from: false makes class heads of another size an error; true: they keep their initial values. by_name:
    so do all class heads and labels of the denoising, except the rows of classes with the same name in the
    checkpoint."""

    def __post_init__(self) -> None:
        queries, bucket = self.model.num_queries, self.runtime.query_bucket
        require(queries % bucket == 0, "runtime.query_bucket", f"{bucket} does not divide model.num_queries {queries}")
        require(not self.reset_head or self.init_from is not None, "reset_head", "needs init_from")
        decoder = self.criterion.decoder
        require(
            self.evaluation.scores == "published" or decoder.classification == "softmax",
            "evaluation.scores",
            "corrected needs criterion.decoder.classification: softmax; focal has no background whose weight could be "
            "divided out: choose published",
        )
        require(
            self.evaluation.scores == "published" or decoder.no_object_weight > 0,
            "evaluation.scores",
            "corrected divides by criterion.decoder.no_object_weight, which is 0: choose published",
        )
