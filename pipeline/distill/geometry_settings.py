"""Settings of FD3D that corrects where the expert's objects are."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.errors import FD3DError, SettingError
from pipeline.focal.rule import FocalRule

_RAY = {"counts_with": ("ray_along",)}  # see pipeline.study.hashes.deciding
_MATCH = {"counts_with": ("match",)}


@dataclass(frozen=True)
class GeometrySettings:
    """Settings ``distill.geometry``: what annotations tell of where the expert's objects are.

    A wrong depth moves no pixel, so these settings change the BEV and the fine-grained term. These terms are multiplied by the
    share of the trust that the settings leave.
    """

    section: ClassVar[str] = "distill.geometry"
    agreement_power: float = 0.0
    """Exponent of a query's agreement with the annotations (:func:`~pipeline.distill.losses.agreement`) in the query's
    weight. 0 ignores the annotations."""
    match: bool = False
    """Whether queries are matched to annotations along the ray (:func:`~pipeline.distill.geometry.match_along_rays`)."""
    across: float = 2.0
    """Distance across the ray beyond which query and annotation are two objects, metres."""
    log_range: float = 0.5
    """Absolute logarithm of the ratio of two ranges beyond which query and annotation are two objects."""
    log_size: float = field(default=0.7, metadata=_MATCH)
    """The same for the ratio of two sides: 0.7 is a factor of two in length, width or height. Classes may differ, as a car and a
    small truck do, and sizes are what cameras see well."""
    unmatched: float = 0.0
    """Factor on the trust of a query without an annotation, most often the expert's false positive; 0 drops such a query."""
    ray_along: float = field(default=0.0, metadata=_RAY)
    """Standard deviation, along the ray, of the trust in a matched query, as a share of its annotation's range
    (:func:`~pipeline.distill.geometry.ray_trust`): 0.2 leaves 61 % of the trust to a box that is 20 % too far. 0 trusts all matched
    queries by their scores alone."""
    ray_across: float = field(default=1.0, metadata=_RAY)
    """Standard deviation of this trust across the ray, metres; read with ``ray_along`` only."""
    reanchor: bool = False
    """Whether what the expert has at a matched query's box is the target at the annotated box: BEV cells and positions that
    queries read (:class:`~pipeline.distill.geometry.Anchors`)."""
    pyramid: bool = False
    """Whether a matched query's area on the pyramid is that of the annotated box; the query's trust there stays."""
    w_relation: float = 0.0
    """Weight of the relations inside objects (:func:`~pipeline.distill.losses.relation_loss`)."""

    def __post_init__(self) -> None:
        for name in ("agreement_power", "ray_along", "w_relation"):
            if getattr(self, name) < 0:
                raise SettingError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("across", "log_range", "log_size", "ray_across"):
            if getattr(self, name) <= 0:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.unmatched <= 1:
            raise SettingError(f"unmatched is {self.unmatched}; it must be in 0..1")
        for name in ("ray_along", "reanchor", "pyramid", "w_relation"):
            if getattr(self, name) and not self.match:
                raise SettingError(f"{name} is {getattr(self, name)}, but match is false; set match to true")
        if self.ray_along and self.agreement_power:
            raise SettingError(
                f"ray_along is {self.ray_along} and agreement_power is {self.agreement_power}; both weigh by agreement with the "
                "annotations: set one of the two to 0"
            )

    @property
    def asks(self) -> bool:
        """Whether any setting reads the annotations."""
        return self.match or self.agreement_power > 0

    def check_reach(self, wanted: FocalRule, stored: FocalRule, cell: float) -> None:
        """Refuse a store whose areas on the BEV map end before the cells that moved places are interpolated from.

        Args:
            wanted: rule of the losses' areas.
            stored: rule of the areas that the store covers.
            cell: side of the BEV map's cells, metres; the longer one.

        Raises:
            FD3DError: naming the margin that is needed.
        """
        reads = {"reanchor": (self.reanchor, wanted.bev_margin + cell), "w_relation": (self.w_relation, cell)}
        for name, (asked, exact) in reads.items():
            if not asked or stored.bev_margin >= exact:
                continue
            needed = math.ceil(exact * 1000 - 1e-6) / 1000  # the margin as it is told must be enough
            other = "tighten distill.rule.bev_margin" if name == "reanchor" else "set w_relation to 0"
            raise FD3DError(
                f"distill.geometry.{name} reads a cell beyond the areas, so the store's margin must be {needed:g} m, but it is "
                f"{stored.bev_margin:g}; dump with focal.bev_margin: {needed:g}, or {other}"
            )
