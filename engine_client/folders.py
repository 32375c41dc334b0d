"""Where downloaded files go: below the folder that was asked for, whatever an agent has named them."""

from pathlib import Path, PurePosixPath

from engine_client.models import Artifact


def place(folder: Path | str, artifact: Artifact, content: bytes) -> Path:
    """Store a file below the folder and return its path. Raises ValueError for a name that leads out of it."""
    root = Path(folder).resolve()
    parts = PurePosixPath(artifact.name).parts
    target = root.joinpath(*parts).resolve()
    if not target.is_relative_to(root) or target == root:
        raise ValueError(f"The artifact's name leads out of the folder: {artifact.name!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target
