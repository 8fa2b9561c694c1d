"""Pictures: matching, pixels of boxes and density maps, sizes, refusals."""

import dataclasses

import numpy as np
import pytest
import torch

from engine.drawing import INK, PAPER, colour_map
from engine.evaluation.gallery import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    Picture,
    draw_gallery,
    draw_picture,
    match_detections,
)

NAMES = ["vehicle", "ship"]
GREY = 90


def picture(**changes) -> Picture:
    """100 x 80 grey image: an object that is found, one that is missed, one false detection, one with a low score."""
    values = {
        "image_id": 7,
        "image": np.full((80, 100, 3), GREY, np.uint8),
        "object_boxes": [[10, 20, 18, 28], [60, 20, 68, 28]],
        "object_labels": [0, 1],
        "boxes": [[10, 20, 18, 28], [40, 60, 44, 66], [80, 60, 84, 64]],
        "scores": [0.9, 0.8, 0.1],
        "labels": [0, 0, 0],
        "num_queries": 300,
    }
    return Picture(**(values | changes))


def boxes_panel(drawn, height, width) -> np.ndarray:
    """The image with the boxes stands in the lower left corner."""
    return np.asarray(drawn)[-height:, :width]


def match(boxes, scores, labels, objects, object_labels, threshold=0.3):
    found = match_detections(boxes, scores, labels, objects, object_labels, score_threshold=threshold)
    return found.true_positive.tolist(), found.false_positive.tolist(), found.found.tolist()


def test_an_object_is_hit_once_by_the_best_score():
    assert match([[0, 0, 8, 8]] * 2, [0.5, 0.9], [0, 0], [[0, 0, 8, 8]], [0]) == ([False, True], [True, False], [True])


def test_the_class_and_the_threshold_count():
    boxes, objects = [[0, 0, 8, 8]], [[0, 0, 8, 8]]
    assert match(boxes, [0.9], [1], objects, [0]) == ([False], [True], [False])
    assert match(boxes, [0.29], [0], objects, [0]) == ([False], [False], [False])
    assert match(boxes, [0.3], [0], objects, [0]) == ([True], [False], [True])


def test_the_limit_is_an_iou_of_one_half():
    assert match([[0, 0, 8, 4]], [0.9], [0], [[0, 0, 8, 8]], [0])[0] == [True]
    assert match([[0, 0, 8, 3.9]], [0.9], [0], [[0, 0, 8, 8]], [0])[0] == [False]


def test_a_detection_takes_the_best_free_object():
    objects = [[0, 0, 10, 10], [2, 0, 12, 10]]
    assert match([[2, 0, 12, 10], [2, 0, 12, 10]], [0.9, 0.8], [0, 0], objects, [0, 0]) == (
        [True, True],
        [False, False],
        [True, True],
    )
    assert match([[2, 0, 12, 10]], [0.9], [0], objects, [0, 0])[2] == [False, True]


def test_nothing_to_match():
    assert match(np.zeros((0, 4)), [], [], [[0, 0, 8, 8]], [0]) == ([], [], [False])
    assert match([[0, 0, 8, 8]], [0.9], [0], np.zeros((0, 4)), []) == ([False], [True], [])


def test_lines_run_just_outside_the_enlarged_box():
    panel = boxes_panel(draw_picture(picture(), NAMES, 0.3), 640, 800)  # enlarged by 8
    for colour, (left, top, right, bottom) in (
        (TRUE_POSITIVE, (80, 160, 144, 224)),
        (FALSE_NEGATIVE, (480, 160, 544, 224)),
        (FALSE_POSITIVE, (320, 480, 352, 528)),
    ):
        middle = (top + bottom) // 2
        assert (panel[middle, [left - 2, left - 1, right, right + 1]] == colour).all()
        assert (panel[[top - 2, top - 1, bottom, bottom + 1], (left + right) // 2] == colour).all()
        assert (panel[top:bottom, left:right] == GREY).all(), "the object itself stays visible"
        assert (panel[middle, [left - 3, right + 2]] == GREY).all()
    assert (panel[470:540, 630:690] == GREY).all(), "below the threshold nothing is drawn"


def test_an_image_of_500_px_keeps_its_size_and_gets_thin_lines():
    large = picture(image=np.full((500, 500, 3), GREY, np.uint8))
    panel = boxes_panel(draw_picture(large, NAMES, 0.3), 500, 500)
    assert (panel[24, [9, 18]] == TRUE_POSITIVE).all()
    assert (panel[24, [8, 10, 17, 19]] == GREY).all()


def test_boxes_at_the_border_keep_all_four_sides():
    whole = picture(boxes=[[-3, 0, 100, 90]], scores=[0.9], labels=[1], object_boxes=np.zeros((0, 4)), object_labels=[])
    panel = boxes_panel(draw_picture(whole, NAMES, 0.3), 640, 800)
    edges = np.concatenate([panel[0], panel[-1], panel[:, 0], panel[:, -1]])
    assert (edges == FALSE_POSITIVE).all()


def test_boxes_without_area_or_beyond_the_image_are_drawn_without_error():
    odd = picture(boxes=[[20, 20, 20, 20], [500, 500, 510, 510]], scores=[1, 1], labels=[0, 1])
    assert draw_picture(odd, NAMES, 0.3).size[0] >= 800


def test_class_names_cover_no_box():
    """Where boxes stand side by side, the pixels of every line survive the names."""
    boxes = [[x, y, x + 8, y + 8] for x in range(4, 90, 10) for y in range(4, 70, 10)]
    dense = picture(
        boxes=boxes,
        scores=[0.9] * len(boxes),
        labels=[0] * len(boxes),
        object_boxes=boxes,
        object_labels=[0] * len(boxes),
    )
    panel = boxes_panel(draw_picture(dense, NAMES, 0.3), 640, 800)
    for left, top, right, bottom in np.array(boxes) * 8:
        assert (panel[top - 1, left:right] == TRUE_POSITIVE).all()
        assert (panel[bottom, left:right] == TRUE_POSITIVE).all()
        assert (panel[top:bottom, left:right] == GREY).all()


def test_a_lone_box_is_named_above_or_where_there_is_no_room_below():
    panel = boxes_panel(draw_picture(picture(), NAMES, 0.3), 640, 800)
    assert (panel[140:157, 80:130] == INK).all(axis=-1).any()
    at_the_top = picture(boxes=[[10, 0, 18, 8]], scores=[0.9], labels=[0])
    panel = boxes_panel(draw_picture(at_the_top, NAMES, 0.3), 640, 800)
    assert (panel[66:84, 80:130] == INK).all(axis=-1).any()


def test_the_density_map_is_normalised_and_its_padding_cropped():
    density = np.zeros((20, 25))
    density[12, 15] = 0.02  # cell centre at (x, y) = (15.5, 12.5) of 19.5 x 15.6 visible cells
    density[18, 24] = 9.0  # in the padding
    drawn = np.asarray(draw_picture(picture(density_map=density, density_extent=(0.78, 0.78)), NAMES, 0.3)).astype(int)
    panel = drawn[-640:, 812:1612]
    y, x = np.unravel_index(panel.sum(axis=2).argmax(), panel.shape[:2])
    assert abs(x - 15.5 / 19.5 * 800) <= 4
    assert abs(y - 12.5 / 15.6 * 640) <= 4
    assert np.abs(panel[y, x] - colour_map(1.0)).max() <= 30, "the peak has nearly the colour of 1"
    assert panel[100, 100].max() < GREY, "elsewhere the image is dimmed"
    assert np.ptp(panel[100, 100]) <= 4


def test_an_empty_density_map_is_drawn():
    assert draw_picture(picture(density_map=np.zeros((16, 20))), NAMES, 0.3).size[0] >= 1612


def test_colour_map_is_perceptually_ordered():
    colours = colour_map(np.linspace(0, 1, 50)).astype(float)
    assert colours[0].tolist() == [0, 0, 4]
    assert colours[-1].tolist() == [252, 255, 164]
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert (colour_map([-1.0, 2.0]) == colour_map([0.0, 1.0])).all()


def test_titles_of_narrow_images_are_not_cut():
    narrow = picture(image=np.full((80, 8, 3), GREY, np.uint8), density_map=np.ones((4, 4)), predicted_count=2.0)
    drawn = np.asarray(draw_picture(narrow, NAMES, 0.3))
    assert (drawn[:30, -4:] == PAPER).all()
    assert (drawn[:30] != 255).any(axis=(0, 2)).nonzero()[0].max() > 400


def test_a_gallery_holds_every_picture_in_its_cell():
    pictures = [picture(image_id=i) for i in range(3)] + [picture(image=np.full((100, 50, 3), GREY, np.uint8))]
    drawn = [draw_picture(p, NAMES, 0.3) for p in pictures]
    sheet = draw_gallery(pictures, NAMES, 0.3, columns=2)
    width, height = max(d.width for d in drawn), max(d.height for d in drawn)
    top = sheet.height - 20 - 2 * height - 30
    assert sheet.width == 2 * 20 + 2 * width + 40
    for index, image in enumerate(drawn):
        left, upper = 20 + index % 2 * (width + 40), top + index // 2 * (height + 30)
        assert sheet.crop((left, upper, left + image.width, upper + image.height)).tobytes() == image.tobytes()
    header = np.asarray(sheet)[:top]
    for colour in (TRUE_POSITIVE, FALSE_NEGATIVE, FALSE_POSITIVE):
        assert (header == colour).all(axis=-1).sum() == 14 * 14, "one swatch of the legend each"


def test_tensors_are_accepted():
    given = picture(boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))
    assert given.boxes.shape == (0, 4)
    assert given.labels.dtype == np.int64
    assert draw_picture(given, NAMES, 0.3).size[0] >= 800


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((80, 100))}, r"image 7: image has shape \(80, 100\); expected \(any, any, 3\)"),
        ({"image": np.zeros((80, 100, 3))}, "image 7: image has dtype float64; expected uint8"),
        ({"scores": [0.5]}, r"image 7: scores has shape \(1,\); expected \(3\)"),
        ({"boxes": [[0, 0, np.nan, 1]] * 3}, "image 7: boxes holds NaN"),
        ({"density_map": np.full((2, 2), np.inf)}, "image 7: density_map holds NaN or infinity"),
        ({"density_extent": (0.0, 1.0)}, r"density_extent \(0.0, 1.0\) must lie in \(0, 1\]"),
    ],
)
def test_refusals_name_image_and_field(changes, message):
    with pytest.raises(ValueError, match=message):
        picture(**changes)


def test_labels_need_names_and_galleries_pictures():
    with pytest.raises(ValueError, match="image 7: label 2 has no name; there are 2 class names"):
        draw_picture(dataclasses.replace(picture(), labels=[0, 2, 0]), NAMES, 0.3)
    with pytest.raises(ValueError, match="no pictures"):
        draw_gallery([], NAMES, 0.3)
