"""COCO's classes by category id, as detectors with 91 outputs have them: id 0 and the gaps between ids are unused."""

ROWS = (
    "-, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat",
    "traffic light, fire hydrant, -, stop sign, parking meter, bench, bird, cat, dog, horse",
    "sheep, cow, elephant, bear, zebra, giraffe, -, backpack, umbrella, -",
    "-, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat",
    "baseball glove, skateboard, surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife",
    "spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza",
    "donut, cake, chair, couch, potted plant, bed, -, dining table, -, -",
    "toilet, -, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven",
    "toaster, sink, refrigerator, -, book, clock, vase, scissors, teddy bear, hair drier",
    "toothbrush",
)
"""Ten ids each"""


def coco91() -> list[str]:
    """91 different names; label = category id."""
    names = ", ".join(ROWS).split(", ")
    return [f"unused {label}" if name == "-" else name for label, name in enumerate(names)]
