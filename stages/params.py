"""params.yaml as settings objects; an unknown or contradictory setting fails here, before any work."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import FD3DError


def read_params(path: Path, section: str) -> dict[str, Any]:
    """One section of a parameters file.

    Raises:
        FD3DError: the file or the section is missing, or it is no YAML.
    """
    if not path.is_file():
        raise FD3DError(f"{path} does not exist; run from the project's root or give --params")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise FD3DError(f"{path} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not isinstance(content.get(section), dict):
        raise FD3DError(f"{path} has no section '{section}'")
    return content[section]
