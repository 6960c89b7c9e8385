"""Object queries proposed by heatmaps over the camera images (CenterNet, Zhou et al., 2019; 2D proposals that become 3D
references as in Far3D, Jiang et al., 2024).

As for BEVFormer's heatmap queries: a few minutes of training are too short for learned queries to spread over the scene.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..boxes import to_unit
from ..heatmap import HeatmapProposals, HeatmapQueries, splat_peaks, top_peaks
from ..precision import in_float32
from ..views import own_cells

_NOWHERE = -20.0  # logit of a class in cells of padding: a probability of 2e-9, and finite losses


@dataclass
class ImageProposals(HeatmapProposals):
    """Proposals with the geometry of their centres; the heatmap is (B, V, classes, H, W).

    Attributes:
        geometry: (B, V, H, W, 6): offset of the centre from its cell (x, y, cells), log depth, log sizes.
        lidar2img: (B, V, 4, 4); stride: (2,) pixels of a cell in x and y.
        view_hw: (B, V, 2) rows and columns of each camera's own image; None where all images have one size.
    """

    geometry: Tensor
    lidar2img: Tensor
    stride: Tensor
    view_hw: Tensor | None = None


class ImageHeatmapQueries(HeatmapQueries):
    """Top peaks of class heatmaps over all cameras as queries; predicted depth lifts them to 3D references.

    All of it runs in float32: a log depth in bfloat16 is wrong by half a metre at 40 m.

    Args:
        num_query: N peaks kept over all cameras and classes.
        min_sigma: smallest standard deviation of a target peak, cells.
        heatmap_weight: weight of the Gaussian focal loss (CornerNet).
        geometry_weight: weight of the L1 loss of offset, log depth and log sizes at true centres.
        start_depth: metres, what an untrained head predicts.
    """

    geometry: nn.Conv2d

    def __init__(
        self,
        num_query: int,
        pc_range: list[float],
        embed_dims: int = 256,
        num_classes: int = 10,
        min_sigma: float = 0.6,
        heatmap_weight: float = 1.0,
        geometry_weight: float = 0.5,
        start_depth: float = 15.0,
    ) -> None:
        geometry = ("geometry", 6)
        super().__init__(num_query, pc_range, embed_dims, num_classes, min_sigma, heatmap_weight, geometry)
        self.geometry_weight, self.start_depth = geometry_weight, start_depth

    def init_weights(self) -> None:
        """Heatmap bias of a one-in-a-hundred prior, depth of ``start_depth``."""
        super().init_weights()
        assert self.geometry.bias is not None
        nn.init.normal_(self.geometry.weight, std=0.001)
        with torch.no_grad():
            self.geometry.bias.zero_()
            self.geometry.bias[2] = torch.tensor(self.start_depth).log()

    @in_float32
    def forward(
        self, level: Tensor, lidar2img: Tensor, image_hw: tuple[int, int], view_hw: Tensor | None = None
    ) -> ImageProposals:
        """Proposals from the pyramid's finest level (B, V, C, H, W).

        Args:
            lidar2img: (B, V, 4, 4) to pixels.
            image_hw: rows and columns of the padded image.
            view_hw: (B, V, 2) of each camera's own image, where images differ in size: no proposal lies outside.
        """
        batch, views, dims, height, width = level.shape
        feature = self.stem(level.flatten(0, 1))
        logits = self.heatmap(feature).unflatten(0, (batch, views))
        geometry = self.geometry(feature).permute(0, 2, 3, 1).unflatten(0, (batch, views))
        if view_hw is not None:
            logits = logits.masked_fill(~own_cells(view_hw, (height, width), image_hw)[:, :, None], _NOWHERE)
        # cameras side by side as rows of one tall map per class; peaks are found within each camera
        cell, label = top_peaks(logits.flatten(0, 1), min(self.num_query, height * width))
        score = logits.flatten(0, 1).flatten(1).detach().gather(1, label * height * width + cell)
        view = torch.arange(views, device=cell.device).view(1, views, 1).expand(batch, views, cell.shape[1]).flatten(1)
        best = score.view(batch, -1).topk(self.num_query, -1).indices
        cell, label = (t.view(batch, -1).gather(1, best) for t in (cell, label))
        view = view.gather(1, best)
        token = view * height * width + cell  # (B, N)

        def pick(tokens: Tensor) -> Tensor:  # (B, V*H*W, D) -> (B, N, D)
            return tokens.gather(1, token[..., None].expand(-1, -1, tokens.shape[-1]))

        stride = level.new_tensor([image_hw[1] / width, image_hw[0] / height])
        found = pick(geometry.detach().flatten(1, 3))
        cells = torch.stack([cell % width, torch.div(cell, width, rounding_mode="floor")], -1)
        pixels = (cells + 0.5 + found[..., :2]) * stride
        matrices = lidar2img.gather(1, view[..., None, None].expand(-1, -1, 4, 4))
        centre = unproject(pixels, found[..., 2].clamp(-1.0, 5.0).exp(), matrices)
        references = to_unit(centre, self.pc_range).clamp(1e-3, 1 - 1e-3)
        at_peak = pick(level.flatten(3).transpose(2, 3).flatten(1, 2))
        queries = self.queries(at_peak, label, references)
        return ImageProposals(*queries, references, logits, geometry, lidar2img, stride, view_hw)

    @in_float32
    def loss(
        self, proposals: ImageProposals, gt_boxes: list[Tensor], gt_labels: list[Tensor], code_weights: Tensor
    ) -> dict[str, Tensor]:
        """Heatmap and centre geometry losses, which no box code enters; boxes (n, 9) per frame."""
        views, _, height, width = proposals.heatmap.shape[1:]
        target = torch.zeros_like(proposals.heatmap)
        limit = proposals.stride.new_tensor([width, height])
        terms, num = [], 0
        for b, (boxes, labels) in enumerate(zip(gt_boxes, gt_labels, strict=True)):
            points = torch.cat([boxes[:, :3], torch.ones_like(boxes[:, :1])], -1)
            for v in range(views):
                cam = points @ proposals.lidar2img[b, v].T
                depth = cam[:, 2]
                if proposals.view_hw is not None:
                    limit = proposals.view_hw[b, v].flip(0) / proposals.stride
                uv = cam[:, :2] / depth.clamp(min=1e-3)[:, None] / proposals.stride
                seen = (depth > 0.5) & (uv > 0).all(-1) & (uv < limit).all(-1)
                if not seen.any():
                    continue
                uv, near, sizes = uv[seen], depth[seen], boxes[seen, 3:6]
                cell = uv.floor().long()
                col, row = cell.unbind(-1)
                # about a sixth of the object's projected width
                focal = proposals.lidar2img[b, v, 0, :3].norm() / proposals.stride[0]
                sigma = (sizes[:, :2].mean(-1) * focal / near / 6).clamp(min=self.min_sigma)
                splat_peaks(target[b, v], labels[seen], row, col, sigma)
                wanted = torch.cat([uv - cell - 0.5, near.log()[:, None], sizes.log()], -1)
                terms.append((proposals.geometry[b, v, row, col] - wanted).abs().sum())
                num += len(near)
        loss_heatmap, loss_geometry = self.losses(proposals.heatmap, target, proposals.geometry, terms, num)
        return {"loss_heatmap": loss_heatmap, "loss_geometry": self.geometry_weight * loss_geometry}


@in_float32
def unproject(pixels: Tensor, depth: Tensor, lidar2img: Tensor) -> Tensor:
    """Pixels (..., 2) at depths (...) metres along the optical axis to points (..., 3) in the LiDAR frame.

    Args:
        lidar2img: (..., 4, 4), as that of the pixels' image.
    """
    seen = torch.cat([pixels * depth[..., None], depth[..., None]], -1) - lidar2img[..., :3, 3]
    return torch.linalg.solve(lidar2img[..., :3, :3], seen[..., None])[..., 0]
