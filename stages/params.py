"""params.yaml as settings objects; an unknown or contradictory setting fails here, before any work."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import FD3DError

DETECTOR = "detector.pth"
"""Name of a trained detector's checkpoint in its run's folder; its config lies beside it."""
CONFIG = "config.py"


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        FD3DError: it is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise FD3DError(f"{path} is no YAML: {str(error).splitlines()[0]}") from error


def read_params(path: Path, section: str, optional: bool = False) -> dict[str, Any]:
    """One section of a parameters file; an empty one when it is missing and ``optional``.

    Raises:
        FD3DError: the file or the section is missing, or it is no YAML.
    """
    if not path.is_file():
        raise FD3DError(f"{path} does not exist; run from the project's root or give --params")
    content = read_yaml(path)
    if optional and isinstance(content, dict) and section not in content:
        return {}
    if not isinstance(content, dict) or not isinstance(content.get(section), dict):
        raise FD3DError(f"{path} has no section '{section}'")
    return content[section]


def family_name(path: Path, name: str | None) -> str:
    """The name itself, or that of the profile's first family when None.

    Raises:
        FD3DError: there is no such family.
    """
    families = read_params(path, "families")
    if not families:
        raise FD3DError(f"{path} has no family; give one an expert and an apprentice")
    name = name or next(iter(families))
    if name not in families:
        raise FD3DError(f"{path} has no family '{name}'; it has {', '.join(families)}")
    return name


def read_family(path: Path, name: str | None) -> tuple[str, dict[str, Any]]:
    """A family of detectors, an ``expert`` and its ``apprentice``, by name; the first one when not named.

    Raises:
        FD3DError: there is no such family, or it lacks one of the two.
    """
    name, families = family_name(path, name), read_params(path, "families")
    for role in ("expert", "apprentice"):
        if not isinstance(families[name], dict) or "config" not in (families[name].get(role) or {}):
            raise FD3DError(f"{path}: families.{name}.{role} needs a config")
    return name, families[name]
