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
from dataclasses import dataclass

import numpy as np

from ontogeny.config import nearest
from ontogeny.errors import ConfigError

WEIGHTS = "[text.weights]"


@dataclass(frozen=True, slots=True)
class PileComponent:
    """A row of the table: its size, its share of the bytes of the mixed corpus, its epochs."""

    gibibytes: float
    percent: float
    epochs: float


PILE = {
    "Pile-CC": PileComponent(227.12, 18.11, 1.0),
    "PubMed Central": PileComponent(90.27, 14.40, 2.0),
    "Books3": PileComponent(100.96, 12.07, 1.5),
    "OpenWebText2": PileComponent(62.77, 10.01, 2.0),
    "ArXiv": PileComponent(56.21, 8.96, 2.0),
    "Github": PileComponent(95.16, 7.59, 1.0),
    "FreeLaw": PileComponent(51.15, 6.12, 1.5),
    "StackExchange": PileComponent(32.20, 5.13, 2.0),
    "USPTO Backgrounds": PileComponent(22.90, 3.65, 2.0),
    "PubMed Abstracts": PileComponent(19.26, 3.07, 2.0),
    "Gutenberg (PG-19)": PileComponent(10.88, 2.17, 2.5),
    "OpenSubtitles": PileComponent(12.98, 1.55, 1.5),
    "Wikipedia (en)": PileComponent(6.38, 1.53, 3.0),
    "DM Mathematics": PileComponent(7.75, 1.24, 2.0),
    "Ubuntu IRC": PileComponent(5.52, 0.88, 2.0),
    "BookCorpus2": PileComponent(6.30, 0.75, 1.5),
    "EuroParl": PileComponent(4.59, 0.73, 2.0),
    "HackerNews": PileComponent(3.90, 0.62, 2.0),
    "YoutubeSubtitles": PileComponent(3.73, 0.60, 2.0),
    "PhilPapers": PileComponent(2.38, 0.38, 2.0),
    "NIH ExPorter": PileComponent(1.89, 0.30, 2.0),
    "Enron Emails": PileComponent(0.88, 0.14, 2.0),
}


def pile_epochs(sources: Collection[str]) -> dict[str, float]:
    """How often the sources of a corpus go round in the Pile, of which it may be a part.

    Raises ConfigError for a source that is no component of it.
    """
    _refuse_unknown(sources, PILE, "is no component of the Pile")
    return {source: PILE[source].epochs for source in sources}


def weighted_epochs(
    weights: Mapping[str, float], num_bytes: Mapping[str, int], total: int
) -> dict[str, float]:
    """How often each source goes round, so that `total` bytes have the weights.

    Weights are shares of the bytes, up to a common factor; 0 leaves a source out. Raises
    ConfigError unless exactly the sources of `num_bytes` have a weight.
    """
    present = {name: size for name, size in num_bytes.items() if size}
    _refuse_unknown(present, weights, "has documents but no weight", "give it one, or 0")
    _refuse_unknown(weights, present, "has a weight but no document")
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ConfigError(
                f"not a weight of {name!r}", where=WEIGHTS, expected="0 or more", found=weight
            )
    whole = math.fsum(weights.values())
    if not whole or total < 1:
        raise ConfigError(
            "the mixture is empty", where=WEIGHTS, expected="a weight and bytes above 0"
        )
    return {name: weights[name] / whole * total / size for name, size in present.items()}


def copies(digests: np.ndarray, num_bytes: np.ndarray, epochs: float) -> np.ndarray:
    """How often each document of a source appears when it goes round so often: int64 [documents].

    `digests` of the texts, uint8 [documents, 16], and their bytes, int64. What goes beyond whole
    epochs is filled with the documents of the lowest digests, while they fit; of equal digests the
    earlier. So a larger number of epochs never takes a copy away.
    """
    whole = math.floor(epochs)
    high, low = np.ascontiguousarray(digests).view(">u8").T
    order = np.lexsort((low, high))
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
