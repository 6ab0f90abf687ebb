"""Layer files of GPT-NeoX's own trainer, merged over tensor-parallel ranks into one model.

`global_stepN/layer_XX-model_YY-model_states.pt` holds, for rank YY, position XX of its list of
layers: 00 the embedding, 02 to L+1 the blocks, L+3 the last norm, L+4 the output projection (01
and L+2 have no parameters). Merged as gpt-neox v1.0, tools/convert_to_hf.py, does and in the dtype
of the files: halves of matrices joined; the biases that every rank adds before the sum over ranks
summed; norms, which every rank holds whole, averaged. Not here: states of runs without a pipeline
(`mp_rank_*.pt`), and the optimizer's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ontogeny.errors import CheckpointError
from ontogeny.model import hf
from ontogeny.model.pickled import read_pickled

LAYER_FILE = re.compile(r"layer_(\d\d|[1-9]\d\d)-model_(\d\d|[1-9]\d\d)-model_states\.pt")
BY_COLUMNS = ("attention.dense.weight", "mlp.dense_4h_to_h.weight")
SUMMED = ("attention.dense.bias", "mlp.dense_4h_to_h.bias")
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")
RENAMED = {"word_embeddings": "embed_in", "norm": "final_layer_norm", "final_linear": "embed_out"}
EMBEDDING = "gpt_neox.embed_in.weight"
FREQUENCIES = "attention.rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class Layers:
    """A merged model: its tensors by their names in our files, and what they were merged from.

    `rotary_size` dimensions of each head rotate; 0 where the files do not say.
    """

    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    num_layers: int
    num_ranks: int
    rotary_size: int
    vocab_size: int
    hidden_size: int


def has_layers(folder: Path) -> bool:
    """Whether a folder holds layer files."""
    return folder.is_dir() and any(LAYER_FILE.fullmatch(path.name) for path in folder.iterdir())


def read_layers(folder: Path, *, average_norms: bool = False) -> Layers:
    """Read and merge the layer files of a checkpoint.

    Raises CheckpointError for files that are missing, damaged or not of one checkpoint. Ranks
    compute equal norms; unequal ones are refused unless `average_norms` asks for their mean.
    """
    ranks = _ranks_by_layer(folder)
    num_layers = _count_blocks(folder, ranks.keys())
    tensors: dict[str, Tensor] = {}
    rotary_size = 0
    for layer, paths in ranks.items():
        parts = [read_pickled(path) for path in paths]
        _check_parts(parts, paths)
        for key in parts[0]:
            if key == FREQUENCIES:
                rotary_size = 2 * parts[0][key].numel()
                continue
            pieces = [part[key] for part in parts]
            if not average_norms:
                _check_norms(key, pieces, paths[0])
            tensors[_file_name(layer, key)] = _merged(key, pieces, paths[0])
    files = tuple(path for paths in ranks.values() for path in paths)
    embedding = tensors.get(EMBEDDING)
    if embedding is None or embedding.dim() != 2:
        raise CheckpointError(f"no matrix {EMBEDDING}", where=files[0])
    return Layers(tensors, files, num_layers, len(ranks[0]), rotary_size, *embedding.shape)


def _ranks_by_layer(folder: Path) -> dict[int, list[Path]]:
    """The files of every layer, in the order of ranks. Raises CheckpointError if one is missing."""
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = LAYER_FILE.fullmatch(path.name)
        if match:
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    if not found:
        raise CheckpointError(
            "no layer files", where=folder, expected="layer_00-model_00-model_states.pt and so on"
        )
    num_ranks = 1 + max(rank for paths in found.values() for rank in paths)
    ranks = {}
    for layer, paths in sorted(found.items()):
        for rank in range(num_ranks):
            if rank not in paths:
                raise _missing(folder, layer, rank, f"{num_ranks} ranks of every layer")
        ranks[layer] = [paths[rank] for rank in range(num_ranks)]
    return ranks


def _count_blocks(folder: Path, layers: Set[int]) -> int:
    """How many blocks the model has; raises CheckpointError unless all its layers are there."""
    num_blocks = min(range(1, max(3, *layers)), key=lambda blocks: len(_positions(blocks) ^ layers))
    for layer in sorted(_positions(num_blocks) ^ layers):
        if layer not in layers:
            raise _missing(folder, layer, 0, "embedding, blocks, last norm and output projection")
        raise CheckpointError(
            f"layer {layer} has no place in a model of {num_blocks} blocks",
            where=folder,
            fix="keep the files of one checkpoint in a folder",
        )
    return num_blocks


def _positions(num_blocks: int) -> set[int]:
    return {0, *range(2, num_blocks + 2), num_blocks + 3, num_blocks + 4}


def _check_parts(parts: list[dict[str, Tensor]], paths: list[Path]) -> None:
    """Raise CheckpointError unless all ranks of a layer hold equal names, shapes and dtypes."""
    kinds = [{key: (list(t.shape), t.dtype) for key, t in part.items()} for part in parts]
    for kind, path in zip(kinds, paths, strict=True):
        for key in sorted(kinds[0].keys() | kind.keys()):
            if kind.get(key) != kinds[0].get(key):
                raise CheckpointError(
                    f"{key} is not as in {paths[0].name}",
                    where=path,
                    expected=kinds[0].get(key, "nothing"),
                    found=kind.get(key, "nothing"),
                    fix="take all ranks from one checkpoint",
                )


def _check_norms(key: str, pieces: list[Tensor], where: Path) -> None:
    if key.startswith(NORMS) and not all(torch.equal(pieces[0], piece) for piece in pieces):
        off = max(float((piece - pieces[0]).abs().max()) for piece in pieces)
        raise CheckpointError(
            f"ranks disagree about {key} by up to {off:.2g}",
            where=where,
            expected="equal norms on every rank of one checkpoint",
            fix="take all ranks from one checkpoint, or give --average-norms",
        )


def _file_name(layer: int, key: str) -> str:
    """What our files call a tensor of a layer."""
    module, _, kind = key.rpartition(".")
    name = f"{RENAMED[module]}.{kind}" if module in RENAMED else f"layers.{layer - 2}.{key}"
    return hf.to_file_name(name)


def _merged(key: str, pieces: list[Tensor], where: Path) -> Tensor:
    """One tensor of its parts; sums and means are formed in the dtype of the parts."""
    try:
        if key.startswith(NORMS) or key in SUMMED:
            total = sum(pieces, torch.zeros_like(pieces[0]))
            return total if key in SUMMED else total / len(pieces)
        return torch.cat(pieces, dim=1 if key in BY_COLUMNS else 0)
    except (RuntimeError, IndexError) as error:
        raise CheckpointError(f"{key} cannot be merged ({error})", where=where) from error


def _missing(folder: Path, layer: int, rank: int, expected: str) -> CheckpointError:
    return CheckpointError(
        f"missing layer_{layer:02}-model_{rank:02}-model_states.pt", where=folder, expected=expected
    )
