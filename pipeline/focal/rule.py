"""Rule of the focal areas: the queries that count, and the margins around their boxes."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from pipeline.errors import FD3DError, SettingError

if TYPE_CHECKING:  # commands refuse before the seconds that this import takes
    from torch import Tensor


@dataclass(frozen=True)
class FocalRule:
    """Rule that turns queries into areas. Stage 1 stores by one rule, and stage 2 may use a tighter one."""

    num_queries: int = 60
    """Number of best queries kept per frame."""
    min_score: float = 0.05
    """Score of the best class below which a query spans no area."""
    bev_margin: float = 1.0
    """Margin on every side of a box's footprint, metres."""
    pv_margin: float = 0.15
    """Margin on every side of a projected box, as a share of the box's width and height."""

    def __post_init__(self) -> None:
        if self.num_queries < 1:
            raise SettingError(f"num_queries is {self.num_queries}; it must be at least 1")
        if not 0 <= self.min_score < 1:
            raise SettingError(f"min_score is {self.min_score}; it is a score in [0, 1)")
        for name in ("bev_margin", "pv_margin"):
            if getattr(self, name) < 0:
                raise SettingError(f"{name} is {getattr(self, name)}; it must not be negative")

    def counts(self, score: "Tensor") -> "Tensor":
        """Queries that span areas, bool in the shape of their scores: those of at least ``min_score``, and above 0, since a detector
        with fewer detections than queries fills up with scores of 0."""
        return (score >= self.min_score) & (score > 0)

    def to_dict(self) -> dict[str, float | int]:
        """Plain values for a manifest."""
        return asdict(self)

    def of_store(self, layout: str) -> "FocalRule":
        """Rule of the areas that a store made by this rule covers: a store of layout ``dense`` covers every margin and score."""
        return self if layout == "focal" else FocalRule(self.num_queries, 0.0, float("inf"), float("inf"))

    def for_trial(self) -> "FocalRule":
        """Rule for a detector whose scores mean nothing, as with random weights: the areas of the queries kept, whatever their score."""
        return replace(self, min_score=0.0)

    def check_covers(self, wanted: "FocalRule") -> None:
        """Refuse a rule that needs cells which a store made by this rule lacks.

        Raises:
            FD3DError: naming the setting, its value and what the store covers.
        """
        for name, larger in (("num_queries", True), ("min_score", False), ("bev_margin", True), ("pv_margin", True)):
            have, want = getattr(self, name), getattr(wanted, name)
            if (want > have) if larger else (want < have):
                limit = "at most" if larger else "at least"
                raise FD3DError(
                    f"distill.rule.{name} is {want}, but the store covers {limit} {have}; tighten it or dump again"
                )
