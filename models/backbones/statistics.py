"""What input the backbones' published weights expect. Without torch: a config is resolved before torch is imported."""

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LITE0_STATISTICS = ((127 / 255,) * 3, (128 / 255,) * 3)


def input_statistics(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """RGB mean and standard deviation, in [0, 1], that the published weights of a backbone were trained with."""
    return LITE0_STATISTICS if name == "efficientnet_lite0" else IMAGENET_STATISTICS
