"""The store benchmark's frames: queries stand where the annotations say."""

import torch

from benchmarks.store_frames import with_annotated_queries
from pipeline.expert import BEVReading, ExpertFrame

PC_RANGE = [-50.0, -50.0, -5.0, 50.0, 50.0, 3.0]


def test_queries_move_to_annotated_and_false_boxes_and_keep_their_offsets():
    generator = torch.Generator().manual_seed(1)
    reference, offsets = torch.rand(10, 3, generator=generator), torch.rand(2, 10, 1, 4, 2, generator=generator) / 50
    frame = ExpertFrame(
        boxes=torch.zeros(10, 9),
        score=torch.ones(10),
        label=torch.zeros(10),
        reference=reference,
        features=torch.zeros(10, 4),
        reading=BEVReading(reference[None, :, None, None, :2] + offsets, torch.zeros(2, 10, 1, 4)),
    )
    truth = torch.tensor([[10.0, -20.0, -1.0, 4.0, 2.0, 1.5, 0.3, 0.0, 0.0], [0.0, 25.0, -1, 1, 1, 2, 0, 0, 0]])
    placed = with_annotated_queries(frame, truth, PC_RANGE, queries=8)
    assert torch.equal(placed.boxes[:2], truth) and len(placed.boxes) == 8
    torch.testing.assert_close(placed.score, torch.tensor([0.9, 0.9, 0.3, 0.3, 0.3, 0.3, 0.01, 0.01]))
    moved = (placed.boxes[2:6, :2] - truth[:, :2].repeat(2, 1)).norm(dim=1)
    assert ((moved > 0) & (moved < 4)).all()
    torch.testing.assert_close(placed.reference[0, :2], torch.tensor([0.6, 0.3]))
    kept = placed.reading.sampling - placed.reference[None, :, None, None, :2]
    torch.testing.assert_close(kept, offsets[:, :8])
