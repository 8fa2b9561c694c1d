"""Batches: padding, mask, and moving them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from datasets.collate import collate
from datasets.structures import DataError, Target


def _sample(height: int, width: int, image_id: int) -> tuple[torch.Tensor, Target]:
    target = Target(
        boxes_xyxy=torch.tensor([[1.0, 1.0, 3.0, 2.0]] * image_id),
        labels=torch.zeros(image_id, dtype=torch.int64),
        image_id=image_id,
        size=(height, width),
        original_size=(height, width),
    )
    return torch.full((3, height, width), float(image_id)), target


@pytest.mark.parametrize(("size_divisor", "shape"), [(1, (7, 9)), (4, (8, 12)), (32, (32, 32))])
def test_padding_and_mask(size_divisor: int, shape: tuple[int, int]) -> None:
    batch = collate([_sample(5, 9, 1), _sample(7, 4, 2)], size_divisor=size_divisor)
    assert batch.images.shape == (2, 3, *shape)
    assert batch.padding_mask.shape == (2, *shape)
    assert len(batch) == 2
    for row, (height, width) in enumerate([(5, 9), (7, 4)]):
        inside = ~batch.padding_mask[row]
        assert inside.sum() == height * width
        assert inside[:height, :width].all()
        assert (batch.images[row][:, inside] == row + 1).all()
        assert (batch.images[row][:, ~inside] == 0).all()


def test_equal_sizes_need_no_padding() -> None:
    batch = collate([_sample(6, 6, 1), _sample(6, 6, 2)])
    assert not batch.padding_mask.any()
    assert (batch.images == torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)).all()
    with pytest.raises(ValueError, match="size_divisor 0"):
        collate([_sample(6, 6, 1)], size_divisor=0)


def test_a_batch_moves_whole() -> None:
    batch = collate([_sample(5, 9, 1), _sample(7, 4, 2)]).to("meta", non_blocking=True)
    assert batch.images.device.type == batch.padding_mask.device.type == "meta"
    assert all(t.boxes.device.type == t.labels.device.type == "meta" for t in batch.targets)
    assert [t.image_id for t in batch.targets] == [1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_can_be_pinned() -> None:
    batch = collate([_sample(5, 9, 1)]).pin_memory()
    assert batch.images.is_pinned()
    assert batch.targets[0].boxes_xyxy.is_pinned()


def test_pinning_reaches_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an accelerator: a DataLoader leaves a batch alone that has no method `pin_memory`."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.to("meta"))
    batch = pin_memory(collate([_sample(5, 9, 1), _sample(7, 4, 2)]))
    tensors = [batch.images, batch.padding_mask]
    tensors += [tensor for target in batch.targets for tensor in (target.boxes_xyxy, target.labels)]
    assert all(tensor.is_meta for tensor in tensors)


def test_moving_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate([_sample(5, 9, 1), _sample(7, 4, 2)])
    asked = []
    move = torch.Tensor.to

    def to(tensor: torch.Tensor, device: str, non_blocking: bool = False) -> torch.Tensor:
        asked.append(non_blocking)
        return move(tensor, device)

    monkeypatch.setattr(torch.Tensor, "to", to)
    batch.to("meta", non_blocking=True)
    assert asked == [True] * 6


def test_target_boxes_are_normalised_by_the_unpadded_size() -> None:
    _, target = _sample(4, 8, 1)
    torch.testing.assert_close(target.boxes, torch.tensor([[0.25, 0.375, 0.25, 0.25]]))


def test_summary_without_a_worker_is_the_message() -> None:
    assert DataError("a.json: bad").summary() == "a.json: bad"
