"""Settings of FD3D that corrects where the expert's objects are."""

from dataclasses import dataclass
from typing import ClassVar

from pipeline.errors import SettingError


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
    unmatched: float = 0.0
    """Factor on the trust of a query without an annotation, most often the expert's false positive; 0 drops such a query."""
    reanchor: bool = False
    """Whether what the expert has at a matched query's box is the target at the annotated box: BEV cells and positions that
    queries read (:class:`~pipeline.distill.geometry.Anchors`)."""
    pyramid: bool = False
    """Whether a matched query's area on the pyramid is that of the annotated box; the query's trust there stays."""
    w_relation: float = 0.0
    """Weight of the relations inside objects (:func:`~pipeline.distill.losses.relation_loss`)."""

    def __post_init__(self) -> None:
        for name in ("agreement_power", "w_relation"):
            if getattr(self, name) < 0:
                raise SettingError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("across", "log_range"):
            if getattr(self, name) <= 0:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.unmatched <= 1:
            raise SettingError(f"unmatched is {self.unmatched}; it must be in 0..1")
        for name in ("reanchor", "pyramid", "w_relation"):
            if getattr(self, name) and not self.match:
                raise SettingError(f"{name} is {getattr(self, name)}, but match is false; set match to true")

    @property
    def asks(self) -> bool:
        """Whether any setting reads the annotations."""
        return self.match or self.agreement_power > 0
