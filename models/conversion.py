"""Names of the published (mmdetection) checkpoints in this project's detectors."""

import re

# (pattern of a published name, its name here); the first match wins. L = number of decoder layers.
_RULES = [
    (r"backbone\.(.*)", r"backbone.\1"),
    (r"neck\.convs\.(\d+)\.conv\.(.*)", r"neck.projections.\1.0.\2"),
    (r"neck\.convs\.(\d+)\.gn\.(.*)", r"neck.projections.\1.1.\2"),
    (r"neck\.extra_convs\.(\d+)\.conv\.(.*)", r"neck.downsamplings.\1.0.\2"),
    (r"neck\.extra_convs\.(\d+)\.gn\.(.*)", r"neck.downsamplings.\1.1.\2"),
    (r"level_embed", r"tokenizer.level_embedding"),
    (r"encoder\.layers\.(\d+)\.self_attn\.(.*)", r"encoder.layers.\1.attention.\2"),
    (r"encoder\.layers\.(\d+)\.norms\.0\.(.*)", r"encoder.layers.\1.attention_norm.\2"),
    (r"encoder\.layers\.(\d+)\.norms\.1\.(.*)", r"encoder.layers.\1.ffn_norm.\2"),
    (r"decoder\.layers\.(\d+)\.self_attn\.attn\.in_proj_(\w+)", r"decoder.layers.\1.self_attention.in_proj.\2"),
    (r"decoder\.layers\.(\d+)\.self_attn\.attn\.out_proj\.(\w+)", r"decoder.layers.\1.self_attention.out_proj.\2"),
    (r"decoder\.layers\.(\d+)\.cross_attn\.(.*)", r"decoder.layers.\1.cross_attention.\2"),
    (r"decoder\.layers\.(\d+)\.norms\.0\.(.*)", r"decoder.layers.\1.self_norm.\2"),
    (r"decoder\.layers\.(\d+)\.norms\.1\.(.*)", r"decoder.layers.\1.cross_norm.\2"),
    (r"decoder\.layers\.(\d+)\.norms\.2\.(.*)", r"decoder.layers.\1.ffn_norm.\2"),
    (r"(en|de)coder\.layers\.(\d+)\.ffn\.layers\.0\.0\.(.*)", r"\1coder.layers.\2.ffn.0.\3"),
    (r"(en|de)coder\.layers\.(\d+)\.ffn\.layers\.1\.(.*)", r"\1coder.layers.\2.ffn.3.\3"),
    (r"decoder\.ref_point_head\.layers\.0\.(.*)", r"decoder.position_head.0.\1"),
    (r"decoder\.ref_point_head\.layers\.1\.(.*)", r"decoder.position_head.2.\1"),
    (r"decoder\.norm\.(.*)", r"decoder.norm.\1"),
    (r"memory_trans_fc\.(.*)", r"proposal_head.transform.\1"),
    (r"memory_trans_norm\.(.*)", r"proposal_head.norm.\1"),
    (r"pos_trans_fc\.(.*)", r"query_maker.transform.\1"),
    (r"pos_trans_norm\.(.*)", r"query_maker.norm.\1"),
    (r"dn_query_generator\.label_embedding\.(.*)", r"denoising.label_embedding.\1"),
    (r"bbox_head\.cls_branches\.L\.(.*)", r"proposal_head.classifier.\1"),
    (r"bbox_head\.reg_branches\.L\.4\.(.*)", r"proposal_head.box_head.deltas.\1"),
    (r"bbox_head\.reg_branches\.L\.(.*)", r"proposal_head.box_head.hidden.\1"),
    (r"bbox_head\.cls_branches\.(\d+)\.(.*)", r"decoder.heads.classifiers.\1.\2"),
    (r"bbox_head\.reg_branches\.(\d+)\.4\.(.*)", r"decoder.heads.box_heads.\1.deltas.\2"),
    (r"bbox_head\.reg_branches\.(\d+)\.(.*)", r"decoder.heads.box_heads.\1.hidden.\2"),
    (r"bbox_head\.densitymap_head\.0\.(.*)", r"query_budget.density_branch.hidden.\1"),
    (r"bbox_head\.densitymap_head\.2\.(.*)", r"query_budget.density_branch.output.\1"),
]


def name_from_mmdetection(name: str, *, detector: str, num_layers: int) -> str:
    """Name here of a tensor of an mmdetection D3Q, DINO or Deformable DETR checkpoint.

    detector     dino | deformable_detr
    num_layers   decoder layers: the head branch of that index is the encoder's

    Raises KeyError for a name that these detectors do not have.
    """
    if name == "query_embedding.weight":
        return "content_queries.weight" if detector == "dino" else "query_maker.content.weight"
    marked = re.sub(rf"^(bbox_head\.(?:cls|reg)_branches)\.{num_layers}\.", r"\1.L.", name)
    for pattern, replacement in _RULES:
        if re.fullmatch(pattern, marked):
            return re.sub(pattern, replacement, marked)
    raise KeyError(name)
