"""What a user can set about distillation."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from pipeline.errors import FD3DError
from pipeline.focal.rule import FocalRule
from pipeline.settings import from_mapping

AREAS = ("queries", "annotations", "everywhere")
HEADS = ("frozen", "trainable")


@dataclass(frozen=True)
class MethodSettings:
    """What every distiller has; weights are those settings whose names begin with ``w_``."""

    section: ClassVar[str] = "distill"
    """What messages call these settings."""
    levels: tuple[int, ...] | None = None
    """Pyramid levels distilled; all by default."""
    expert: str = "cached"
    """``cached`` reads the store's frames, ``online`` runs the expert in the training step."""
    history: str | None = None
    """What an online expert sees: ``scene``, all frames from the scene's start as in stage 1, or the student's ``queue``."""

    def __post_init__(self) -> None:
        if self.expert not in ("cached", "online"):
            raise FD3DError(f"{self.section}.expert is '{self.expert}'; use cached or online")
        if self.expert == "cached" and self.history is not None:
            raise FD3DError(
                f"{self.section}.history is '{self.history}' but {self.section}.expert is cached; leave history out, or "
                "set expert to online"
            )
        if self.expert == "online" and self.history not in ("scene", "queue"):
            raise FD3DError(
                f"{self.section}.expert is online but {self.section}.history is {self.history!r}; use scene or queue"
            )
        for name in (f.name for f in fields(self) if f.name.startswith("w_")):
            if getattr(self, name) < 0:
                raise FD3DError(f"{self.section}.{name} is {getattr(self, name)}; it must not be negative")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From plain values.

        Raises:
            FD3DError: an unknown name, or a value out of range.
        """
        return from_mapping(cls, values, cls.section)


@dataclass(frozen=True)
class DistillSettings(MethodSettings):
    """FD3D's losses: weights, masks and how far queries are trusted."""

    w_pv: float = 1.0
    """Weight of perspective-view masked generation, summed over levels."""
    w_bev: float = 1.0
    """Weight of BEV masked generation, where expert and student have a BEV map."""
    w_fine: float = 1.0
    """Weight of fine-grained distillation, where the store has what queries read and the student the map they read."""
    mask_ratio: float = 0.5
    """Share of blocks hidden inside the areas before generation."""
    block: int = 2
    """Side of a hidden block, cells."""
    trust_threshold: float = 0.1
    """Queries with a lower score have no say."""
    trust_power: float = 1.0
    """Say of a query is its score to this power."""
    agreement_power: float = 0.0
    """Say of a query is multiplied by its agreement with the annotations (:func:`~pipeline.distill.losses.agreement`) to this power,
    and the losses by the share of the trust that is left; 0 does not ask the annotations."""
    size_power: float = 0.0
    """Say of a query in a cell of its area is divided by the area's cells to this power: 0 counts cells alike, so that lorries outweigh
    pedestrians, 1 objects alike."""
    layers: tuple[int, ...] | None = None
    """Decoder layers of the fine-grained loss; all by default."""
    areas: str = "queries"
    """What spans the areas of the masked generation losses: the expert's ``queries`` by their trust, or, all trusted alike
    and from a dense store, the ``annotations`` or all cells (``everywhere``)."""
    residual: bool = False
    """Restoring and generators start as the identity and learn what is to be added: the student's own maps are drawn to the
    expert's, which suits modules that start from the expert's weights."""
    head: str = "frozen"
    """``frozen``: queries are the expert's. ``trainable``: those of a head that learns to detect on the expert's dense BEV map."""
    w_head: float = 1.0
    """Weight of a trainable head's detection loss."""
    rule: FocalRule = field(default_factory=FocalRule)
    """Areas; as tight as the store's or tighter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("trust_power", "agreement_power", "size_power"):
            if getattr(self, name) < 0:
                raise FD3DError(f"distill.{name} is {getattr(self, name)}; it must not be negative")
        for name in ("mask_ratio", "trust_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise FD3DError(f"distill.{name} is {getattr(self, name)}; it must be in 0..1")
        for name, known in (("areas", AREAS), ("head", HEADS)):
            if getattr(self, name) not in known:
                raise FD3DError(f"distill.{name} is '{getattr(self, name)}'; use {' or '.join(known)}")
        if self.agreement_power and self.head == "trainable":
            raise FD3DError(
                "distill.agreement_power asks whether the expert's own queries are right, but distill.head is trainable; set one of "
                "them back"
            )
        if self.block < 1:
            raise FD3DError(f"distill.block is {self.block}; it must be at least 1")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From plain values, ``rule`` a mapping.

        Raises:
            FD3DError: an unknown name, or a value out of range.
        """
        return from_mapping(cls, values, "distill", {"rule": lambda v: from_mapping(FocalRule, v, "distill.rule")})
