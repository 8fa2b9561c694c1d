"""Initial weights of a detector, as published, except the backbone's."""

import math

from torch import nn

from models.attention import MSDeformAttn
from models.decoder import PredictionHeads
from models.proposals import BoxHead, ProposalHead

CLASS_PRIOR = 0.01


def initialise(detector: nn.Module) -> None:
    """Transformer Xavier-uniform, attention offsets as rings, classifiers at a prior of 0.01, boxes unmoved."""
    for part in (detector.get_submodule("encoder"), detector.get_submodule("decoder")):
        heads = {id(p) for m in part.modules() if isinstance(m, PredictionHeads) for p in m.parameters()}
        for parameter in part.parameters():
            if parameter.dim() > 1 and id(parameter) not in heads:
                nn.init.xavier_uniform_(parameter)
    for module in detector.modules():
        if isinstance(module, MSDeformAttn):
            module.reset_parameters()
        elif isinstance(module, BoxHead):
            nn.init.zeros_(module.deltas.weight)
            nn.init.zeros_(module.deltas.bias)
        elif isinstance(module, ProposalHead):
            nn.init.xavier_uniform_(module.transform.weight)
            _set_prior(module.classifier)
        elif isinstance(module, PredictionHeads):
            for classifier in module.classifiers:
                _set_prior(classifier)
    for name, parameter in detector.named_parameters():
        if name in ("content_queries.weight", "query_maker.content.weight", "query_maker.transform.weight"):
            nn.init.xavier_uniform_(parameter)


def _set_prior(classifier: nn.Module) -> None:
    nn.init.constant_(classifier.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))  # type: ignore[arg-type]
