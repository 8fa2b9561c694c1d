"""Class heads that start from a checkpoint with other classes."""

import pytest
import torch
from torch import Tensor

from engine.checkpoints.checkpoint import CheckpointError
from engine.checkpoints.class_rows import ClassHeads, rows_by_name
from engine.checkpoints.key_mapping import LABEL_TABLE

WIDTH = 3
CLASSIFIERS = [f"decoder.heads.classifiers.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")]
PROPOSALS = ["proposal_head.classifier.weight", "proposal_head.classifier.bias"]
OURS, THEIRS = ("ship", "car", "tree"), ("car", "plane", "ship", "dog")


def heads(classes: int, *, background: bool, value: float) -> dict[str, Tensor]:
    """State dict of class tensors; row i of each holds value + i."""
    state = {}
    for name in (*CLASSIFIERS, *PROPOSALS, LABEL_TABLE, "decoder.norm.weight"):
        rows = value + torch.arange(float(classes + (background and name in CLASSIFIERS)))
        state[name] = rows if name.endswith("bias") else rows[:, None].repeat(1, WIDTH)
    return state


def started(
    *, ours_background: bool = True, theirs_background: bool = True, agnostic: tuple[bool, bool] = (False, False)
) -> tuple[dict[str, list[float]], str]:
    """First column of each tensor, and the line."""
    rows, line = rows_by_name(
        heads(len(OURS), background=ours_background, value=0.0),
        ClassHeads(OURS, agnostic[0]),
        heads(len(THEIRS), background=theirs_background, value=100.0),
        ClassHeads(THEIRS, agnostic[1]),
        source="x.pth",
    )
    return {name: table.reshape(len(table), -1)[:, 0].tolist() for name, table in rows.items()}, line


@pytest.mark.parametrize(
    ("ours", "theirs", "last"), [(True, True, [104.0]), (True, False, [3.0]), (False, True, []), (False, False, [])]
)
def test_classes_of_the_same_name_keep_their_rows(ours: bool, theirs: bool, last: list[float]) -> None:
    """The last row of a softmax is "no object", which is kept if both have it."""
    rows, line = started(ours_background=ours, theirs_background=theirs)
    assert rows.keys() == {*CLASSIFIERS, *PROPOSALS, LABEL_TABLE}
    for name, found in rows.items():
        assert found == [102.0, 100.0, 2.0, *(last if name in CLASSIFIERS else [])], name
    fresh = "tree, no object" if ours and not theirs else "tree"
    assert line == f"classes of the same name keep their rows: ship, car; these start fresh: {fresh}"


@pytest.mark.parametrize(
    ("agnostic", "proposals"), [((True, True), [100.0, 1.0, 2.0]), ((True, False), [0.0, 1.0, 2.0])]
)
def test_proposals_that_know_no_classes_keep_their_row_of_objects(
    agnostic: tuple[bool, bool], proposals: list[float]
) -> None:
    rows, _ = started(agnostic=agnostic)
    assert [rows[name] for name in PROPOSALS] == [proposals] * 2
    assert rows[LABEL_TABLE] == [102.0, 100.0, 2.0]


@pytest.mark.parametrize(("names", "said"), [((), "holds no class names"), (THEIRS[:2], "names 2 classes, but .* 4 ")])
def test_a_checkpoint_must_name_its_classes(names: tuple[str, ...], said: str) -> None:
    own, state = heads(3, background=False, value=0.0), heads(4, background=False, value=1.0)
    with pytest.raises(CheckpointError, match=rf"x\.pth: {said}.*reset_head: true"):
        rows_by_name(own, ClassHeads(OURS, False), state, ClassHeads(names, False), source="x.pth")
