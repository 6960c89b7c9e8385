"""Transforms from index entries to packed model inputs.

Each transform declares ``moves_pixels``: cached expert targets stay valid only where no pixel moves.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from pipeline.data.geometry import lidar2img, own_hw, resize_factors, resized_hw
from pipeline.data.index import Frame
from pipeline.data.pixels import AS_RECORDED, halved, resized
from pipeline.errors import FD3DError

Item = dict[str, Any]


def padded(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images (V, H, W, C) of the largest size; smaller ones are continued at the bottom and right by their last pixels.

    Continued, not black, so that resizing mixes nothing into an image's last pixels; the detector's preprocessor blanks the rest.
    """
    height, width = np.max([image.shape[:2] for image in images], axis=0)
    return np.stack(
        [
            np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), "edge")
            if image.shape[:2] != (height, width)
            else image
            for image in images
        ]
    )


@TRANSFORMS.register_module()
class LoadMultiViewImages(BaseTransform):
    """Decode the images of every frame of the queue.

    Sets ``img`` (V, H, W, 3) uint8 of the original size (smaller images continued at the bottom and right by their last pixels), ``lidar2img`` (V, 4, 4) and ``scale``; resizing is left to
    :class:`PackFrames`, so that colour augmentation sees the original pixels.

    Args:
        scale: factor by which images will be resized.
        to_rgb: whether the decoder's BGR is turned to RGB.
    """

    moves_pixels = False

    def __init__(self, scale: float = 1.0, to_rgb: bool = False) -> None:
        if not 0 < scale <= 1:
            raise FD3DError(f"image.scale is {scale}; it must be in (0, 1]")
        self.scale, self.to_rgb = scale, to_rgb

    def transform(self, results: Item) -> Item:
        """Raises FD3DError naming an image that is missing, truncated, of another size than the tables say, or another than was indexed."""
        for entry in results["frames"]:
            frame = entry["frame"]
            images = [
                self._decode(Path(results["root"]) / path, size, int(checksum))
                for path, size, checksum in zip(frame.image_paths, frame.image_sizes, frame.image_crc32, strict=True)
            ]
            entry["img"], entry["scale"] = padded(images), self.scale
            factors = resize_factors(frame.image_sizes.max(0), self.scale)
            entry["lidar2img"] = lidar2img(frame.intrinsics, frame.lidar2cam, factors)
        return results

    def _decode(self, path: Path, size: np.ndarray, checksum: int | None = None) -> np.ndarray:
        try:
            content = np.fromfile(path, np.uint8)
        except OSError as error:
            raise FD3DError(f"image {path} cannot be read: {error.strerror}; is the data root complete?") from error
        image = cv2.imdecode(content, AS_RECORDED | cv2.IMREAD_ANYDEPTH) if content.size else None
        if image is None:
            raise FD3DError(f"image {path} is truncated or no image; copy it again")
        if image.dtype != np.uint8:
            raise FD3DError(f"image {path} has {image.dtype} pixels; convert the images to 8 bits a channel")
        if image.shape[:2] != tuple(size):
            raise FD3DError(f"image {path} has size {image.shape[:2]}, the tables say {tuple(int(n) for n in size)}")
        if checksum is not None and zlib.crc32(content.data) != checksum:
            raise FD3DError(
                f"image {path} is another than when the index was made; run 'fd3d index' again, and what was made with the old image"
            )
        return image[..., ::-1] if self.to_rgb else image


@TRANSFORMS.register_module()
class PhotometricDistortion(BaseTransform):
    """Random brightness, contrast and saturation, the same for all images of an item, within 0..255.

    The cheap part of SSD's photometric distortion (Liu et al., 2016), in one linear map per image.

    Args:
        brightness: largest shift on the 0..255 scale.
        contrast, saturation: factors are drawn from 1 - x .. 1 + x.
    """

    moves_pixels = False

    def __init__(self, brightness: float = 32.0, contrast: float = 0.4, saturation: float = 0.4) -> None:
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def transform(self, results: Item) -> Item:
        """Distort the colours of ``img``, in place of the decoded pixels."""
        contrast = 1 + np.random.uniform(-self.contrast, self.contrast)
        saturation = 1 + np.random.uniform(-self.saturation, self.saturation)
        shift = np.random.uniform(-self.brightness, self.brightness)
        # towards the mean of the three channels, then scaled: one 3x3 matrix and an offset
        grey = np.full((3, 3), 1 / 3)
        matrix = contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
        affine = np.concatenate([matrix, np.full((3, 1), shift)], 1)
        for entry in results["frames"]:
            stacked = entry["img"].reshape(-1, *entry["img"].shape[2:])
            entry["img"] = cv2.transform(stacked, affine).reshape(entry["img"].shape)
        return results


@TRANSFORMS.register_module()
class PhotometricDistortionPerImage(BaseTransform):
    """SSD's photometric distortion (Liu et al., 2016) as BEVFormer and DETR3D train with, drawn for every image.

    Brightness, contrast (first or last), saturation and hue, order of channels: each with probability 1/2. The result is float32 and
    not clipped.

    Args:
        brightness: largest shift on the 0..255 scale.
        contrast, saturation: factors are drawn from 1 - x .. 1 + x.
        hue: largest turn, degrees.
    """

    moves_pixels = False

    def __init__(
        self, brightness: float = 32.0, contrast: float = 0.5, saturation: float = 0.5, hue: float = 18.0
    ) -> None:
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def transform(self, results: Item) -> Item:
        """Distort ``img``, which becomes float32."""
        for entry in results["frames"]:
            entry["img"] = np.stack([self._distorted(image.astype(np.float32)) for image in entry["img"]])
        return results

    def _distorted(self, image: np.ndarray) -> np.ndarray:
        # The order of draws is the published code's, so that one seed gives both the same images.
        if _coin():
            image += np.random.uniform(-self.brightness, self.brightness)
        contrast_first = _coin()
        if contrast_first:
            image = self._contrasted(image)
        # saturation is the same in RGB and BGR, hue is mirrored; its turn is drawn from both sides alike
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        if _coin():
            hsv[..., 1] = hsv[..., 1] * np.random.uniform(1 - self.saturation, 1 + self.saturation)
        if _coin():
            hsv[..., 0] = (hsv[..., 0] + np.random.uniform(-self.hue, self.hue)) % 360
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        if not contrast_first:
            image = self._contrasted(image)
        return image[..., np.random.permutation(3)] if _coin() else image

    def _contrasted(self, image: np.ndarray) -> np.ndarray:
        if _coin():
            image *= np.random.uniform(1 - self.contrast, 1 + self.contrast)
        return image


def _coin() -> bool:
    return bool(np.random.randint(2))


def annotated(frame: Frame, pc_range: Sequence[float] | None = None, min_points: int = 1) -> np.ndarray:
    """Which boxes of a frame train a detector, bool (n,).

    Args:
        pc_range: (x0, y0, z0, x1, y1, z1) metres; centres outside in x or y are left out.
        min_points: LiDAR plus radar points that a box needs (nuScenes counts only such boxes).
    """
    keep = frame.num_lidar_pts + frame.num_radar_pts >= min_points
    if pc_range is not None:
        centres = frame.boxes[:, :2]
        keep = keep & ((centres >= np.array(pc_range[:2])) & (centres <= np.array(pc_range[3:5]))).all(1)
    return keep


@TRANSFORMS.register_module()
class LoadBoxes(BaseTransform):
    """True boxes of the last frame that have enough points and lie inside the BEV range; arguments of :func:`annotated`."""

    moves_pixels = False

    def __init__(self, pc_range: list[float], min_points: int = 1) -> None:
        self.pc_range, self.min_points = pc_range, min_points

    def transform(self, results: Item) -> Item:
        """Sets ``boxes`` (n, 9) float32 with velocities 0 where unknown, and ``labels`` (n,)."""
        frame = results["frames"][-1]["frame"]
        keep = annotated(frame, self.pc_range, self.min_points)
        results["boxes"], results["labels"] = np.nan_to_num(frame.boxes[keep]), frame.labels[keep]
        return results


@TRANSFORMS.register_module()
class PackFrames(BaseTransform):
    """Resize and stack the queue's images and gather metainfo.

    Gives ``inputs.img`` (Q, V, 3, H, W), uint8, or of a wider type where resized or augmented in floating point, and a
    Det3DDataSample with ``token``, ``frames`` (per frame: token, scene_token, timestamp, lidar2img, lidar2cam, img_hw, can_bus,
    has_history, and view_hw (V, 2) where images differ in size) and, where loaded, ``gt_instances_3d`` and ``expert``.

    Args:
        compact: two bytes a value in place of float32, see :mod:`pipeline.data.pixels`.
    """

    moves_pixels = False

    def __init__(self, compact: bool = False) -> None:
        self.compact = compact

    def transform(self, results: Item) -> Item:
        """Pack."""
        images, metas = [], []
        for entry in results["frames"]:
            img, frame = entry["img"], entry["frame"]
            if entry["scale"] != 1:
                img = resized(img, resized_hw(img.shape[1:3], entry["scale"])[::-1], self.compact)
            packed = torch.from_numpy(np.ascontiguousarray(img.transpose(0, 3, 1, 2)))
            images.append(halved(packed) if self.compact else packed)
            metas.append(
                {
                    "token": frame.token,
                    "scene_token": frame.scene_token,
                    "timestamp": frame.timestamp,
                    "lidar2img": entry["lidar2img"].astype(np.float32),
                    "lidar2cam": frame.lidar2cam,
                    "img_hw": img.shape[1:3],
                    "can_bus": entry["can_bus"].astype(np.float32),
                    "has_history": entry["has_history"],
                }
            )
            if (frame.image_sizes != frame.image_sizes[0]).any():
                metas[-1]["view_hw"] = own_hw(frame.image_sizes, entry["scale"])
        sample = Det3DDataSample(metainfo={"token": results["token"], "frames": metas})
        if "boxes" in results:
            boxes = LiDARInstance3DBoxes(torch.from_numpy(results["boxes"]), box_dim=9, origin=(0.5, 0.5, 0.5))
            sample.gt_instances_3d = InstanceData(bboxes_3d=boxes, labels_3d=torch.from_numpy(results["labels"]))
        if "expert" in results:
            sample.set_metainfo({"expert": results["expert"]})
        return {"inputs": {"img": torch.stack(images)}, "data_samples": sample}


def refuse_pixel_moving(steps: list[dict]) -> None:
    """Check that transforms, among which the expert's targets are loaded, leave every pixel in place.

    Raises:
        FD3DError: a transform moves pixels, or does not say whether it does.
    """
    for step in steps:
        kind = TRANSFORMS.get(step["type"])
        if getattr(kind, "moves_pixels", True):
            raise FD3DError(
                f"{step['type']} moves pixels (or does not declare moves_pixels = False), so the expert's targets would "
                "be wrong; remove it from the student's augmentations"
            )
