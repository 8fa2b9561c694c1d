"""Other projects' checkpoints in this project's detectors: one table of names per project, read in both directions."""

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Rows = tuple[tuple[str, str], ...]

# (name here, name there); the first match wins. {n} is a number, {rest} anything, {last} the number of decoder layers:
# the head of that index is the encoder's.
_MMDETECTION: Rows = (
    ("backbone.{rest}", "backbone.{rest}"),
    ("neck.projections.{n}.0.{rest}", "neck.convs.{n}.conv.{rest}"),
    ("neck.projections.{n}.1.{rest}", "neck.convs.{n}.gn.{rest}"),
    ("neck.downsamplings.{n}.0.{rest}", "neck.extra_convs.{n}.conv.{rest}"),
    ("neck.downsamplings.{n}.1.{rest}", "neck.extra_convs.{n}.gn.{rest}"),
    ("tokenizer.level_embedding", "level_embed"),
    ("encoder.layers.{n}.attention.{rest}", "encoder.layers.{n}.self_attn.{rest}"),
    ("encoder.layers.{n}.attention_norm.{rest}", "encoder.layers.{n}.norms.0.{rest}"),
    ("encoder.layers.{n}.ffn.0.{rest}", "encoder.layers.{n}.ffn.layers.0.0.{rest}"),
    ("encoder.layers.{n}.ffn.3.{rest}", "encoder.layers.{n}.ffn.layers.1.{rest}"),
    ("encoder.layers.{n}.ffn_norm.{rest}", "encoder.layers.{n}.norms.1.{rest}"),
    ("decoder.layers.{n}.self_attention.in_proj.{rest}", "decoder.layers.{n}.self_attn.attn.in_proj_{rest}"),
    ("decoder.layers.{n}.self_attention.out_proj.{rest}", "decoder.layers.{n}.self_attn.attn.out_proj.{rest}"),
    ("decoder.layers.{n}.self_norm.{rest}", "decoder.layers.{n}.norms.0.{rest}"),
    ("decoder.layers.{n}.cross_attention.{rest}", "decoder.layers.{n}.cross_attn.{rest}"),
    ("decoder.layers.{n}.cross_norm.{rest}", "decoder.layers.{n}.norms.1.{rest}"),
    ("decoder.layers.{n}.ffn.0.{rest}", "decoder.layers.{n}.ffn.layers.0.0.{rest}"),
    ("decoder.layers.{n}.ffn.3.{rest}", "decoder.layers.{n}.ffn.layers.1.{rest}"),
    ("decoder.layers.{n}.ffn_norm.{rest}", "decoder.layers.{n}.norms.2.{rest}"),
    ("decoder.position_head.0.{rest}", "decoder.ref_point_head.layers.0.{rest}"),
    ("decoder.position_head.2.{rest}", "decoder.ref_point_head.layers.1.{rest}"),
    ("decoder.norm.{rest}", "decoder.norm.{rest}"),
    ("proposal_head.transform.{rest}", "memory_trans_fc.{rest}"),
    ("proposal_head.norm.{rest}", "memory_trans_norm.{rest}"),
    ("proposal_head.classifier.{rest}", "bbox_head.cls_branches.{last}.{rest}"),
    ("proposal_head.box_head.deltas.{rest}", "bbox_head.reg_branches.{last}.4.{rest}"),
    ("proposal_head.box_head.hidden.{rest}", "bbox_head.reg_branches.{last}.{rest}"),
    ("query_maker.transform.{rest}", "pos_trans_fc.{rest}"),
    ("query_maker.norm.{rest}", "pos_trans_norm.{rest}"),
    ("query_budget.density_branch.hidden.{rest}", "bbox_head.densitymap_head.0.{rest}"),
    ("query_budget.density_branch.output.{rest}", "bbox_head.densitymap_head.2.{rest}"),
    ("denoising.label_embedding.{rest}", "dn_query_generator.label_embedding.{rest}"),
    ("decoder.heads.classifiers.{n}.{rest}", "bbox_head.cls_branches.{n}.{rest}"),
    ("decoder.heads.box_heads.{n}.deltas.{rest}", "bbox_head.reg_branches.{n}.4.{rest}"),
    ("decoder.heads.box_heads.{n}.hidden.{rest}", "bbox_head.reg_branches.{n}.{rest}"),
)

# The repositories of the detectors' authors. A decoder layer's norm1 follows its cross-attention, norm2 its
# self-attention, although self-attention comes first.
_ORIGINAL: Rows = (
    ("backbone.{rest}", "backbone.0.body.{rest}"),
    ("tokenizer.level_embedding", "transformer.level_embed"),
    ("encoder.layers.{n}.attention.{rest}", "transformer.encoder.layers.{n}.self_attn.{rest}"),
    ("encoder.layers.{n}.attention_norm.{rest}", "transformer.encoder.layers.{n}.norm1.{rest}"),
    ("encoder.layers.{n}.ffn.0.{rest}", "transformer.encoder.layers.{n}.linear1.{rest}"),
    ("encoder.layers.{n}.ffn.3.{rest}", "transformer.encoder.layers.{n}.linear2.{rest}"),
    ("encoder.layers.{n}.ffn_norm.{rest}", "transformer.encoder.layers.{n}.norm2.{rest}"),
    ("decoder.layers.{n}.self_attention.in_proj.{rest}", "transformer.decoder.layers.{n}.self_attn.in_proj_{rest}"),
    ("decoder.layers.{n}.self_attention.out_proj.{rest}", "transformer.decoder.layers.{n}.self_attn.out_proj.{rest}"),
    ("decoder.layers.{n}.self_norm.{rest}", "transformer.decoder.layers.{n}.norm2.{rest}"),
    ("decoder.layers.{n}.cross_attention.{rest}", "transformer.decoder.layers.{n}.cross_attn.{rest}"),
    ("decoder.layers.{n}.cross_norm.{rest}", "transformer.decoder.layers.{n}.norm1.{rest}"),
    ("decoder.layers.{n}.ffn.0.{rest}", "transformer.decoder.layers.{n}.linear1.{rest}"),
    ("decoder.layers.{n}.ffn.3.{rest}", "transformer.decoder.layers.{n}.linear2.{rest}"),
    ("decoder.layers.{n}.ffn_norm.{rest}", "transformer.decoder.layers.{n}.norm3.{rest}"),
    ("decoder.position_head.0.{rest}", "transformer.decoder.ref_point_head.layers.0.{rest}"),
    ("decoder.position_head.2.{rest}", "transformer.decoder.ref_point_head.layers.1.{rest}"),
    ("decoder.norm.{rest}", "transformer.decoder.norm.{rest}"),
    ("proposal_head.transform.{rest}", "transformer.enc_output.{rest}"),
    ("proposal_head.norm.{rest}", "transformer.enc_output_norm.{rest}"),
    ("query_maker.transform.{rest}", "transformer.pos_trans.{rest}"),
    ("query_maker.norm.{rest}", "transformer.pos_trans_norm.{rest}"),
    ("denoising.label_embedding.{rest}", "label_enc.{rest}"),
    ("content_queries.weight", "transformer.tgt_embed.weight"),
)
_ORIGINAL_HEADS: Rows = (
    ("decoder.heads.classifiers.{n}.{rest}", "class_embed.{n}.{rest}"),
    ("decoder.heads.box_heads.{n}.hidden.0.{rest}", "bbox_embed.{n}.layers.0.{rest}"),
    ("decoder.heads.box_heads.{n}.hidden.2.{rest}", "bbox_embed.{n}.layers.1.{rest}"),
    ("decoder.heads.box_heads.{n}.deltas.{rest}", "bbox_embed.{n}.layers.2.{rest}"),
)

COUNTER = "num_batches_tracked"
LABEL_TABLE = "denoising.label_embedding.weight"
CLASS_TENSORS = ("decoder.heads.classifiers.", "proposal_head.classifier.", LABEL_TABLE)
DUPLICATE = re.compile(r"transformer\.decoder\.((class|bbox)_embed\..+)")


@dataclass(frozen=True)
class Naming:
    """The table of one project for one detector."""

    rows: Rows

    def to_here(self, name: str) -> str:
        """Name here of a tensor there. Raises KeyError for one that these detectors do not have."""
        return _translate(name, ((there, here) for here, there in self.rows))

    def from_here(self, name: str) -> str:
        """Undo of `to_here`."""
        return _translate(name, self.rows)


@dataclass(frozen=True)
class Translated:
    """A state dict under the names of this project."""

    state: dict[str, Tensor]
    """Names without a counterpart here stay as they were"""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> names of the skipped tensors, as in the file"""


def mmdetection_naming(*, detector: str, num_layers: int) -> Naming:
    """mmdetection 3 and the published D3Q, which is a fork of it.

    detector     dino | deformable_detr
    num_layers   decoder layers
    """
    table = "content_queries" if detector == "dino" else "query_maker.content"
    return Naming((*_fill(_MMDETECTION, last=num_layers), (f"{table}.weight", "query_embedding.weight")))


def original_naming(*, detector: str, num_layers: int, num_maps: int, num_levels: int) -> Naming:
    """IDEA-Research/DINO and fundamentalvision/Deformable-DETR (two-stage, with box refinement).

    num_maps     backbone maps; the remaining of the num_levels levels are downsampled from the last one
    """
    levels = [f"projections.{n}" for n in range(num_maps)]
    levels += [f"downsamplings.{n}" for n in range(num_levels - num_maps)]
    neck = tuple((f"neck.{level}.{{rest}}", f"input_proj.{n}.{{rest}}") for n, level in enumerate(levels))
    class_head, box_head = ("class_embed.{last}", "bbox_embed.{last}")
    if detector == "dino":
        class_head, box_head = ("transformer.enc_out_class_embed", "transformer.enc_out_bbox_embed")
    encoder_heads = (
        ("proposal_head.classifier.{rest}", f"{class_head}.{{rest}}"),
        ("proposal_head.box_head.hidden.0.{rest}", f"{box_head}.layers.0.{{rest}}"),
        ("proposal_head.box_head.hidden.2.{rest}", f"{box_head}.layers.1.{{rest}}"),
        ("proposal_head.box_head.deltas.{rest}", f"{box_head}.layers.2.{{rest}}"),
    )
    return Naming(neck + _ORIGINAL + _fill(encoder_heads, last=num_layers) + _ORIGINAL_HEADS)


def translate(state: Mapping[str, Tensor], naming: Naming, own: Collection[str]) -> Translated:
    """A file's tensors under the names of this project; tensors that carry no weight here are skipped, with the reason.

    own   names of the detector's tensors
    """
    translated = Translated({})
    for name, value in state.items():
        here = _or_itself(naming, name)
        if here.endswith(COUNTER) and here not in own:
            translated.skipped.setdefault("batch counters, which frozen batch normalisation does not have", []).append(
                name
            )
        elif _is_duplicate(name, state):
            translated.skipped.setdefault("second names of tensors above", []).append(name)
        else:
            translated.state[here] = value
    _drop_spare_labels(translated)
    return translated


def to_mmdetection(state: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """This project's tensors under mmdetection's names.

    Frozen batch normalisation has no batch counters here, and in mmdetection they stay 0: zeros are added.

    Raises KeyError for a tensor that mmdetection does not have.
    """
    result = {}
    for name, value in state.items():
        there = naming.from_here(name)
        result[there] = value
        layer, _, last = there.rpartition(".")
        if last == "running_var":
            result.setdefault(f"{layer}.{COUNTER}", torch.zeros((), dtype=torch.int64))
    return result


def _fill(rows: Rows, *, last: int) -> Rows:
    return tuple((here, there.replace("{last}", str(last))) for here, there in rows)


def _translate(name: str, rows: Iterator[tuple[str, str]] | Rows) -> str:
    for source, target in rows:
        if found := _pattern(source).fullmatch(name):
            return target.format(**found.groupdict())
    raise KeyError(name)


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{rest\}", r"(?P<rest>.+)"))


def _or_itself(naming: Naming, name: str) -> str:
    try:
        return naming.to_here(name)
    except KeyError:
        return name


def _is_duplicate(name: str, state: Mapping[str, Tensor]) -> bool:
    """The original decoders hold the heads a second time; a copy with other values would be no copy."""
    found = DUPLICATE.fullmatch(name)
    return found is not None and found[1] in state and torch.equal(state[found[1]], state[name])


def _drop_spare_labels(translated: Translated) -> None:
    """The original DINO's label table has more rows than there are classes; the noise never draws the last ones."""
    table, head = translated.state.get(LABEL_TABLE), translated.state.get("proposal_head.classifier.weight")
    if table is None or head is None or len(table) <= len(head):
        return
    translated.state[LABEL_TABLE] = table[: len(head)]
    rows = f"rows {len(head)} to {len(table) - 1} of the label table"
    translated.skipped["rows of the label table without a class"] = [rows]
