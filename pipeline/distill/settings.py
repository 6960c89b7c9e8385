"""Settings of distillation: one dataclass per method, the one source of the method's defaults."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from pipeline.errors import FD3DError
from pipeline.focal.rule import FocalRule
from pipeline.settings import from_mapping

from .geometry_settings import GeometrySettings

AREAS = ("queries", "annotations", "everywhere")
HEADS = ("frozen", "trainable")
PLAIN, FD3D = "plain", "fd3d"
"""Names of the method that distils nothing, and of the paper's method."""


@dataclass(frozen=True)
class PlainSettings:
    """Settings of a training without distillation."""

    section: ClassVar[str] = "methods.plain"
    inherit: tuple[str, ...] = ()
    """Modules of the student that start from the expert's weights."""


@dataclass(frozen=True)
class MethodSettings:
    """Settings of every distiller; the names of weights begin with ``w_``."""

    section: ClassVar[str] = FD3D
    """Name of these settings in messages."""
    compares_maps: ClassVar[bool] = False
    """Whether the method compares whole maps, which only a store of layout ``dense`` includes."""
    inherit: tuple[str, ...] = ("pts_bbox_head",)
    """Modules of the student that start from the expert's weights; default: the head, as in the authors' release."""
    levels: tuple[int, ...] | None = None
    """Pyramid levels to distil; default: all."""
    expert: str = "cached"
    """Source of the expert's targets: ``cached`` reads the store's frames, ``online`` runs the expert in the training step."""
    every: int = 1
    """Updates from one that distils to the next. The losses of such an update are multiplied by it, so that over the training they
    weigh the same, and the updates between cost what plain ones do (lazy regularisation, Karras et al., CVPR 2020)."""
    history: str | None = None
    """Frames that an online expert sees: ``scene``, all from the scene's start as in stage 1, or the student's ``queue``."""

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
        self._at_least("every", 1)
        for name in ("levels", "layers"):
            numbers = getattr(self, name, None)
            if numbers is None:
                continue
            if not numbers or len(set(numbers)) != len(numbers) or any(number < 0 for number in numbers):
                raise FD3DError(
                    f"{self.section}.{name} is {list(numbers)}; give different numbers from 0 on, or null for all"
                )
        for name in (f.name for f in fields(self) if f.name.startswith("w_")):
            self._at_least(name, 0)

    @property
    def least_scores(self) -> dict[str, float]:
        """Settings, with their values, that a stored score must reach for a query to count; empty where no score matters."""
        return {}

    def _at_least(self, name: str, least: float) -> None:
        if getattr(self, name) < least:
            wanted = "must not be negative" if least == 0 else f"must be at least {least}"
            raise FD3DError(f"{self.section}.{name} is {getattr(self, name)}; it {wanted}")

    def _positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) <= 0:
                raise FD3DError(f"{self.section}.{name} is {getattr(self, name)}; it must be positive")

    def _share(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise FD3DError(f"{self.section}.{name} is {getattr(self, name)}; it must be in 0..1")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Settings from plain values.

        Raises:
            FD3DError: an unknown name, or a value of a wrong type or out of range.
        """
        made: Self = from_mapping(cls, values, cls.section)
        return made


@dataclass(frozen=True)
class DistillSettings(MethodSettings):
    """Settings of FD3D's losses: weights, masks and trust in queries."""

    section = "distill"
    w_pv: float = 1.0
    """Weight of perspective-view masked generation, summed over levels."""
    w_bev: float = 1.0
    """Weight of BEV masked generation, where expert and student have a BEV map."""
    w_fine: float = 1.0
    """Weight of fine-grained distillation, where the store includes the queries' readings and the student has the map
    that is read."""
    w_mixed: float = field(default=0.0, metadata={"counts_with": ("w_mixed",)})  # see pipeline.study.hashes.deciding
    """Weight of the student's detection loss on mixed pyramids: the expert's features inside the areas, the student's own
    elsewhere. The student's head then learns to read both; for students of this project."""
    mixed_limit: float = field(default=0.0, metadata={"counts_with": ("w_mixed", "w_pv", "mixed_limit")})
    """Mixing pauses, from update 200 on, while the generators leave more than this share of the expert's pyramid unexplained, as
    with an expert whose features are noisy. 0, or a ``w_pv`` of 0, which trains no generators: it never pauses."""
    mask_ratio: float = 0.5
    """Share of blocks hidden inside the areas before generation."""
    block: int = 2
    """Side of a hidden block, cells."""
    trust_threshold: float = 0.1
    """Score below which a query has no weight."""
    trust_power: float = 1.0
    """Exponent of a query's score in the query's weight."""
    size_power: float = 0.0
    """Exponent of the number of an area's cells by which a query's weight in a cell is divided: 0 counts cells alike, so that
    lorries outweigh pedestrians, 1 counts objects alike."""
    layers: tuple[int, ...] | None = None
    """Decoder layers of the fine-grained loss; default: all."""
    areas: str = "queries"
    """Areas of the masked generation losses: ``queries`` takes the areas of the expert's queries, weighted by trust. From a
    dense store, ``annotations`` takes the areas of annotated boxes and ``everywhere`` all cells, with equal weight."""
    residual: bool = False
    """Whether restoring and generators start as the identity and learn a residual: the student's own maps are drawn to the
    expert's, which suits modules that start from the expert's weights."""
    head: str = "frozen"
    """Source of the queries: ``frozen`` takes the expert's, ``trainable`` takes those of a head that learns to detect on the
    expert's dense BEV map."""
    w_head: float = 1.0
    """Weight of a trainable head's detection loss."""
    rule: FocalRule = field(default_factory=FocalRule)
    """Rule of the areas, as tight as the store's rule or tighter."""
    geometry: GeometrySettings = field(default_factory=GeometrySettings)
    """What annotations correct of the expert's geometry."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("trust_power", "size_power"):
            self._at_least(name, 0)
        self._share("mixed_limit", "mask_ratio", "trust_threshold")
        for name, known in (("areas", AREAS), ("head", HEADS)):
            if getattr(self, name) not in known:
                raise FD3DError(f"distill.{name} is '{getattr(self, name)}'; use {' or '.join(known)}")
        for name, value, default in (("head", self.head, "frozen"), ("areas", self.areas, "queries")):
            if self.geometry.asks and value != default:
                raise FD3DError(
                    f"distill.geometry corrects the expert's own queries, but distill.{name} is {value}; set one of the two "
                    "back to its default"
                )
        self._at_least("block", 1)

    @property
    def least_scores(self) -> dict[str, float]:
        """See :class:`MethodSettings`; other areas and a trainable head do without the stored scores."""
        if self.areas != "queries" or self.head != "frozen":
            return {}
        return {"distill.trust_threshold": self.trust_threshold, "distill.rule.min_score": self.rule.min_score}

    @property
    def dense(self) -> str | None:
        """The setting that needs a store of layout ``dense``, with its value, or None."""
        if self.areas != "queries":
            return f"distill.areas is {self.areas}"
        return "distill.head is trainable" if self.head == "trainable" else None


@dataclass(frozen=True)
class FitNetsSettings(MethodSettings):
    """Settings of L2 on whole maps (Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015).

    The paper trains hints in a stage of their own and has no weight beside a detection loss. Here targets are standardised per
    channel, so the error starts near 1 per map. Each weighted term starts at about half of the detection loss (16).
    """

    section = "methods.fitnets"
    compares_maps = True
    w_pv: float = 2.0
    """Weight of the pyramid's error, summed over levels."""
    w_bev: float = 8.0
    """Weight of the BEV map's error."""


@dataclass(frozen=True)
class CWDSettings(MethodSettings):
    """Settings of channel-wise distillation (Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021).

    Temperature and weight per level as in the authors' code for the FPN of RetinaNet (pppppM/mmdetection-distiller,
    cwd_retina_*). The divergence is a mean over channels and images and takes standardised targets, so both values are
    kept, for the BEV map too.
    """

    section = "methods.cwd"
    compares_maps = True
    w_pv: float = 5.0
    """Weight of the pyramid's divergence, summed over levels."""
    w_bev: float = 5.0
    """Weight of the BEV map's divergence."""
    tau: float = 1.0
    """Temperature of the softmax over positions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("tau")


@dataclass(frozen=True)
class MGDSettings(MethodSettings):
    """Settings of Masked Generative Distillation on whole maps (Yang et al., ECCV 2022), with the masked share of its detectors.

    The published weight, 2e-5 on a sum over cells and channels of raw features, means nothing on other maps. As in later
    uses of the method, weights bring each term near the detection loss: with standardised targets and a mean error, to half
    of the loss (16) at the start.
    """

    section = "methods.mgd"
    compares_maps = True
    w_pv: float = 2.0
    """Weight of the pyramid's error, summed over levels."""
    w_bev: float = 8.0
    """Weight of the BEV map's error."""
    mask_ratio: float = 0.65
    """Share of pixels hidden, the same ones in all channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._share("mask_ratio")


@dataclass(frozen=True)
class FGDSettings(MethodSettings):
    """Settings of FGD (Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022).

    Temperature and the four weights are the authors' for RetinaNet (yzd-v/FGD; their FCOS configs have 0.8 and 1.6 times the
    weights). The terms are sums over 256 channels there and over fewer here, and on standardised targets still start near half
    of the detection loss on each side; so the weights are kept.
    """

    section = "methods.fgd"
    compares_maps = True
    w_pv: float = 1.0
    """Weight of the pyramid's terms, summed over levels."""
    w_bev: float = 1.0
    """Weight of the BEV map's terms."""
    w_foreground: float = 0.001
    """Weight inside annotated boxes (alpha)."""
    w_background: float = 0.0005
    """Weight outside of annotated boxes (beta)."""
    w_attention: float = 0.001
    """Weight of the attention masks' difference (gamma)."""
    w_relation: float = 0.000005
    """Weight of the global context's difference (lambda)."""
    temperature: float = 0.5
    """Temperature of the attention masks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("temperature")


@dataclass(frozen=True)
class HeatmapSettings(MethodSettings):
    """Settings of the HeatmapDistiller of FD3D's authors, the only distiller in their code (Zeng et al., CVPR 2023).

    All values are as released.

    The release draws Gaussians on 128x128 cells of 0.8 m and resizes them to the map of 200x200 cells. Here the cell in
    metres is kept, whatever the range and the expert's map are, so that a Gaussian is as large beside an object as in the
    release (100x100 cells on the embedded world).
    """

    section = "methods.heatmap"
    compares_maps = True
    w_pv: float = 0.25
    """Weight of each level's cross-entropy, on raw features."""
    w_bev: float = 0.1
    """Weight of the BEV map's error."""
    tau: float = 2.0
    """Temperature of the softmax over positions."""
    cell: float = 0.8
    """Cell of the grid that Gaussians are drawn on, metres; the release has 128 such cells over 102.4 m."""
    min_overlap: float = 0.1
    """Overlap of two boxes whose centres lie a radius apart (CornerNet, Law and Deng, 2018)."""
    min_radius: int = 2
    """Smallest radius of a Gaussian, cells of the grid."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("tau", "cell", "min_overlap")


@dataclass(frozen=True)
class ResponseSettings(MethodSettings):
    """Settings of response distillation, our form of DETRDistill (Chang et al., ICCV 2023) and KD-DETR (Wang et al., CVPR 2024).

    Weights are those of the detection loss on the same quantities (DETR3D: 2.0 and 0.25).
    """

    section = "methods.response"
    w_cls: float = 2.0
    """Weight of the classification loss, also in the matching cost."""
    w_box: float = 0.25
    """Weight of the box loss, also in the matching cost."""
    beta: float = 2.0
    """Focusing power of the quality focal loss (Li et al., NeurIPS 2020)."""
    min_score: float = 0.1
    """Score below which an expert's box is no target."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_score < 1:
            raise FD3DError(f"{self.section}.min_score is {self.min_score}; it is a score in (0, 1)")
        self._at_least("beta", 0)

    @property
    def least_scores(self) -> dict[str, float]:
        """See :class:`MethodSettings`."""
        return {"methods.response.min_score": self.min_score}


METHODS: dict[str, type[MethodSettings]] = {
    "cwd": CWDSettings,
    FD3D: DistillSettings,
    "fgd": FGDSettings,
    "fitnets": FitNetsSettings,
    "heatmap": HeatmapSettings,
    "mgd": MGDSettings,
    "response": ResponseSettings,
}
"""Settings by method; each method has a file of the same name in ``pipeline/distill/methods``."""
