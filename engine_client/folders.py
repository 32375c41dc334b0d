"""Where downloaded files go: below the folder that was asked for, whatever an agent has named them."""

import hashlib
from pathlib import Path, PurePosixPath

from engine_client.errors import EngineError
from engine_client.models import Artifact


def place(folder: Path | str, artifact: Artifact, content: bytes) -> Path:
    """Store a file below the folder and return its path.

    Raises ValueError for a name that leads out of the folder, EngineError for bytes that changed on their way.
    """
    root = Path(folder).resolve()
    parts = PurePosixPath(artifact.name).parts
    target = root.joinpath(*parts).resolve()
    if not target.is_relative_to(root) or target == root:
        raise ValueError(f"The artifact's name leads out of the folder: {artifact.name!r}")
    if hashlib.sha256(content).hexdigest() != artifact.sha256:
        raise EngineError(f"{artifact.name} is not what was stored: download it again")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target
