"""Start a detector from a checkpoint with other classes: the rows of classes with the same name are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.checkpoints.checkpoint import CheckpointError
from engine.checkpoints.key_mapping import CLASS_TENSORS

DECODER, PROPOSALS = "decoder.heads.classifiers.", "proposal_head.classifier."
NO_OBJECT = "no object"


@dataclass(frozen=True)
class ClassHeads:
    """What the rows of a detector's class tensors mean."""

    names: Sequence[str]
    """Of the classes, in the order of the labels; a decoder with softmax has one more row, "no object" """
    agnostic_proposals: bool
    """The first row of the proposal head is "object", the others mean nothing"""


def rows_by_name(
    own: Mapping[str, Tensor], ours: ClassHeads, state: Mapping[str, Tensor], theirs: ClassHeads, *, source: str
) -> tuple[dict[str, Tensor], str]:
    """The class tensors of a detector, with the checkpoint's rows of classes with the same name, and a line on them.

    own, state   state dicts of the detector and of the checkpoint `source`; tensors of one alone, or of another width,
                 are skipped

    Raises CheckpointError for a checkpoint without class names, or whose names are not those of its rows.
    """
    if not theirs.names:
        raise CheckpointError(f"{source}: holds no class names, which reset_head: by_name needs; set reset_head: true")
    pairs = [(k, theirs.names.index(name)) for k, name in enumerate(ours.names) if name in theirs.names]
    started: dict[str, Tensor] = {}
    fresh_background = False
    for name, table in own.items():
        if not name.startswith(CLASS_TENSORS) or name not in state or state[name].shape[1:] != table.shape[1:]:
            continue
        surplus = [len(rows) - len(heads.names) for rows, heads in ((table, ours), (state[name], theirs))]
        if surplus[1] not in ((0, 1) if name.startswith(DECODER) else (0,)):
            raise CheckpointError(
                f"{source}: names {len(theirs.names)} classes, but {name} has {len(state[name])} rows; set reset_head: "
                "true"
            )
        chosen = pairs
        if name.startswith(PROPOSALS) and (ours.agnostic_proposals or theirs.agnostic_proposals):
            chosen = [(0, 0)] if ours.agnostic_proposals and theirs.agnostic_proposals else []
        elif surplus == [1, 1]:
            chosen = [*pairs, (len(ours.names), len(theirs.names))]
        fresh_background |= surplus == [1, 0]
        started[name] = table.clone()
        for here, there in chosen:
            started[name][here] = state[name][there].to(table)
    kept = {ours.names[k] for k, _ in pairs}
    fresh = [name for name in ours.names if name not in kept] + [NO_OBJECT] * fresh_background
    lists = [", ".join(names) or "none" for names in ([name for name in ours.names if name in kept], fresh)]
    return started, f"classes of the same name keep their rows: {lists[0]}; these start fresh: {lists[1]}"
