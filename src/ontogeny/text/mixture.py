"""The mixture: how often each document appears, so that the components have their weights.

In: how many bytes each component has, and the weights, or how often each goes round (its epochs).
Out: the copies of every document: whole epochs for all, and one more for the documents that come
first by their digests, as many as fill the rest. The preset is table 1 of the Pile's paper (Gao et
al. 2020, arXiv 2101.00027): 825.18 GiB that make 1254.20 GiB. The names are those in the Pile's
`meta.pile_set_name`. Not here: in which order copies are trained on (`ontogeny.order`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from ontogeny.config import nearest
from ontogeny.errors import ConfigError

WEIGHTS = "[text.weights]"
LARGEST = 1e300  # of the weights, whose sum is then a number too

# How often each component goes round in the mixed corpus.
PILE_EPOCHS = {
    "Pile-CC": 1.0,
    "PubMed Central": 2.0,
    "Books3": 1.5,
    "OpenWebText2": 2.0,
    "ArXiv": 2.0,
    "Github": 1.0,
    "FreeLaw": 1.5,
    "StackExchange": 2.0,
    "USPTO Backgrounds": 2.0,
    "PubMed Abstracts": 2.0,
    "Gutenberg (PG-19)": 2.5,
    "OpenSubtitles": 1.5,
    "Wikipedia (en)": 3.0,
    "DM Mathematics": 2.0,
    "Ubuntu IRC": 2.0,
    "BookCorpus2": 1.5,
    "EuroParl": 2.0,
    "HackerNews": 2.0,
    "YoutubeSubtitles": 2.0,
    "PhilPapers": 2.0,
    "NIH ExPorter": 2.0,
    "Enron Emails": 2.0,
}


def pile_epochs(sources: Collection[str]) -> dict[str, float]:
    """How often the sources of a corpus go round in the Pile, of which it may be a part.

    Raises ConfigError for a source that is no component of it.
    """
    _refuse_unknown(sources, PILE_EPOCHS, "is no component of the Pile")
    return {source: PILE_EPOCHS[source] for source in sources}


def weighted_epochs(weights: Mapping[str, float], num_bytes: Mapping[str, int]) -> dict[str, float]:
    """How often each source goes round, so that as many bytes in all have the weights.

    Weights are shares of the bytes, up to a common factor; 0 leaves a source out. Raises
    ConfigError unless exactly the sources of `num_bytes` have a weight.
    """
    _refuse_unknown(num_bytes, weights, "has documents but no weight", "give it one, or 0")
    _refuse_unknown(weights, num_bytes, "has a weight but no document")
    for name, weight in weights.items():
        if not 0 <= weight <= LARGEST:
            raise ConfigError(
                f"not a weight of {name!r}",
                where=WEIGHTS,
                expected=f"0 to {LARGEST}",
                found=weight,
            )
    whole, total = math.fsum(weights.values()), sum(num_bytes.values())
    if not whole:
        raise ConfigError("the mixture is empty", where=WEIGHTS, expected="a weight above 0")
    return {name: weights[name] / whole * total / size for name, size in num_bytes.items()}


def copies(keys: np.ndarray, num_bytes: np.ndarray, epochs: float) -> np.ndarray:
    """How often each document of a source appears when it goes round so often: int64 [documents].

    `keys` of the texts, uint64 [documents, 2], and their bytes, int64. What goes beyond whole
    epochs is filled with the documents of the lowest keys, while they fit; of equal keys the
    earlier. So a larger number of epochs never takes a copy away.
    """
    whole = math.floor(epochs)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ends = np.cumsum(num_bytes[order])
    room = math.floor((epochs - whole) * int(num_bytes.sum()))
    counts = np.full(len(order), whole, np.int64)
    counts[order[: np.searchsorted(ends, room, side="right")]] += 1
    return counts


def _refuse_unknown(
    names: Collection[str], known: Collection[str], problem: str, fix: str | None = None
) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(
                f"source {name!r} {problem}",
                where=WEIGHTS,
                expected=f"one of {', '.join(sorted(known))}",
                fix=nearest(name, known) or fix,
            )
