"""Detection classes of a data set's categories: nuScenes' own mapping, with entries of the profile's ``data.classes``."""

from collections.abc import Collection, Mapping

from pipeline.data import CATEGORIES
from pipeline.data.source import check_classes
from pipeline.errors import FD3DError

_UNMAPPED = "unmapped"  # no category of the devkit's, so its boxes count for no class


def _devkit_class(category: str) -> str | None:
    from nuscenes.eval.detection.utils import category_to_detection_name  # seconds, and every index is read without it

    name: str | None = category_to_detection_name(category)
    return name


class Categories:
    """Mapping from categories to detection classes.

    Args:
        given: class by category, over nuScenes' mapping; None for a category that is no class.

    Raises:
        FD3DError: a class is none of ``CLASSES``.
    """

    def __init__(self, given: Mapping[str, str | None]) -> None:
        check_classes(given)
        self.given = dict(given)

    def class_of(self, category: str) -> str | None:
        """Detection class of a category, None where the category is none."""
        if category in self.given:
            return self.given[category]
        return _devkit_class(category)

    def devkit_name(self, category: str) -> str:
        """Category that the devkit maps to the same class. Categories whose class is the devkit's own keep their names: racks of bicycles,
        which are no class, still take the bicycles in them from the evaluation."""
        name = self.class_of(category)
        if name == _devkit_class(category):
            return category
        return _UNMAPPED if name is None else CATEGORIES[name]

    def check(self, known: Collection[str], where: object) -> None:
        """Refuse entries for categories that a data set lacks.

        Args:
            known: category names of the data set.
            where: the data set in messages.

        Raises:
            FD3DError: naming the category.
        """
        if unknown := [category for category in self.given if category not in known]:
            raise FD3DError(
                f"data.classes has '{unknown[0]}', no category of {where}; there are {', '.join(sorted(known))}"
            )

    def check_any(self, known: Collection[str], where: object) -> None:
        """Refuse a data set of which no category is a class.

        Args:
            known, where: as of :meth:`check`.

        Raises:
            FD3DError: naming the categories.
        """
        if known and all(self.class_of(category) is None for category in known):
            raise FD3DError(
                f"no category of {where} is mapped to a class: {', '.join(sorted(known))}; map them under data.classes"
            )
