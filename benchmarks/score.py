"""Scoring speed: ours beside lm-eval's own `hf` backend, same checkpoint, same items, in turns.

A checkpoint of random weights at a published size is written once and read by both; requests reach
both as token ids. `piqa` has two options an item, `lambada` one last word, `few-shot` is `piqa`
behind five worked examples drawn for each item and `header` behind the same five for all; these two
take a fifth of the items. Lengths are drawn as they are in the data sets with Pythia's vocabulary;
`--data DIR --tokenizer FILE` takes the real ones (DIR/piqa/piqa_validation.jsonl and
DIR/lambada/lambada_test.jsonl). The allocator is tuned for both.

    python benchmarks/score.py --items 500 --rounds 3 --threads 2

prints medians of items a second, the ratio to the peer's best batch size, tokens read and places
projected on the vocabulary, what share of the best matrix product found here that makes, and how
the answers differ. `--smollm FILE.gguf --data DIR` asks a trained model LAMBADA instead.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TUNED = "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184"
VOCABULARY, CONTEXT = 50304, 2048
SHOTS = 5
CASES = ("piqa", "lambada", "few-shot", "header")

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # a context, and what is to be scored after it
Item = tuple[Pair, ...]  # its options


@dataclass(frozen=True)
class Work:
    """What a contender computes: tokens read, with their padding, and places it has logits of."""

    tokens: int
    places: int


def drawn_items(case: str, count: int, random: np.random.RandomState) -> list[Item]:
    """Items of random tokens, as long as the real ones."""

    def ids(length: float) -> tuple[int, ...]:
        return tuple(random.randint(2, VOCABULARY - 27, max(1, int(length))).tolist())

    if case == "lambada":
        return [((ids(random.normal(80, 10)), ids(random.geometric(0.7))),) for _ in range(count)]
    items = []
    for _ in range(count):
        context = ids(max(5, random.normal(13.6, 3.5)))
        lengths = random.lognormal(np.log(16), 0.8, 2).clip(2, 230)
        alike = ids(0.35 * min(lengths))
        items.append(tuple((context, alike + ids(one - len(alike))) for one in lengths))
    return items


def real_items(case: str, count: int, folder: Path, tokenizer: Path) -> list[Item]:
    """The first items of a data set."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))

    def ids(text: str) -> tuple[int, ...]:
        return tuple(encoder.encode(text).ids)

    name = "lambada/lambada_test" if case == "lambada" else "piqa/piqa_validation"
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    if case == "lambada":
        cut = (json.loads(line)["text"].rpartition(" ") for line in lines)
        return [((ids(context), ids(f" {word}")),) for context, _, word in cut]
    rows = [json.loads(line) for line in lines]
    return [
        tuple((ids(f"Question: {row['goal']}\nAnswer:"), ids(f" {row[option]}"))
              for option in ("sol1", "sol2"))
        for row in rows
    ]  # fmt: skip


def items_of(case: str, arguments: argparse.Namespace) -> list[Item]:
    """The items of a case; few-shot ones have others of their kind in front."""
    random = np.random.RandomState(7)
    shots = case in ("few-shot", "header")
    count = max(SHOTS + 1, arguments.items // 5) if shots else arguments.items
    base = "piqa" if shots else case
    if arguments.data:
        items = real_items(base, count, arguments.data, arguments.tokenizer)
    else:
        items = drawn_items(base, count, random)
    if not shots:
        return items
    texts = [sum(item[0], ()) for item in items]
    headed = []
    for number, item in enumerate(items):
        others = [text for place, text in enumerate(texts) if place != number]
        chosen = (
            random.choice(len(others), SHOTS, replace=False) if case == "few-shot" else range(5)
        )
        source = others if case == "few-shot" else texts
        header = sum((source[place] for place in chosen), ())
        headed.append(tuple((header + context, target) for context, target in item))
    return headed


Answers = list[tuple[float, bool]]
Contender = Callable[[Sequence[Pair]], Answers]


def ours(folder: Path, precision: str) -> Contender:
    """The package's scorer."""
    from ontogeny.evaluation.score import NeoXScorer, Request
    from ontogeny.model.hf import load
    from ontogeny.model.neox import DTYPES
    from ontogeny.tokens.vocabulary import load_vocabulary

    vocabulary = load_vocabulary(folder / "tokenizer.json")
    scorer = NeoXScorer(load(folder), vocabulary, DTYPES[precision])

    def ask(pairs: Sequence[Pair]) -> Answers:
        found = scorer.answer([Request(*pair) for pair in pairs], greedy=True)
        return [(one.log_likelihood, bool(one.is_greedy)) for one in found]

    return ask


def peer(folder: Path, precision: str, batch_sizes: Sequence[int]) -> dict[int, Contender]:
    """lm-eval's backend, by batch size."""
    from lm_eval.models.huggingface import HFLM

    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    model = HFLM(pretrained=str(folder), dtype=dtype, device="cpu", batch_size=1)

    def asker(size: int) -> Contender:
        def ask(pairs: Sequence[Pair]) -> Answers:
            model.batch_size_per_gpu = size
            asked = [(("", ""), list(context), list(target)) for context, target in pairs]
            return model._loglikelihood_tokens(asked, disable_tqdm=True)

        return ask

    return {size: asker(size) for size in batch_sizes}


def our_work(pairs: Sequence[Pair], width: int) -> Work:
    from ontogeny.evaluation.tries import lay_out

    whole = [context + target for context, target in pairs]
    past, rows = lay_out(whole, [len(context) for context, _ in pairs], width)
    tokens = sum(len(row.tokens) for row in rows)
    places = sum(len({place for _, place, _ in row.scored}) for row in rows)
    return Work(len(past) + tokens, places)


def peer_work(pairs: Sequence[Pair], size: int) -> Work:
    """Every place of every padded batch is projected."""
    lengths = sorted((len(context) + len(target) - 1 for context, target in pairs), reverse=True)
    tokens = sum(lengths[at] * len(lengths[at : at + size]) for at in range(0, len(lengths), size))
    return Work(tokens, tokens)


def ceiling(precision: str, clock: Callable[[], float]) -> float:
    """Operations a second of the best product found: a block's, and the vocabulary's."""
    import torch

    from ontogeny.evaluation.score import exact_products
    from ontogeny.model.neox import DTYPES

    best = 0.0
    for rows, depth, columns in ((2048, 512, 2048), (2048, 2048, 512), (512, 512, VOCABULARY)):
        x = torch.randn(rows, depth).to(DTYPES[precision])
        y = torch.randn(columns, depth).to(DTYPES[precision])
        out = torch.empty(rows, columns, dtype=x.dtype)
        with exact_products(x.dtype):
            for _ in range(6):
                began = clock()
                torch.mm(x, y.T, out=out)
                best = max(best, 2 * rows * depth * columns / (clock() - began))
    return best


def write_checkpoint(folder: Path, size: str) -> int:
    """A published size with random weights, far enough apart to prefer something; its width."""
    import torch

    from ontogeny.model.hf import save
    from ontogeny.model.init import initial_model
    from ontogeny.shape import SIZES, Shape
    from ontogeny.tokens.vocabulary import train_vocabulary

    row = SIZES[size]
    shape = Shape(num_layers=row.num_layers, hidden_size=row.hidden_size, num_heads=row.num_heads,
                  vocab_size=VOCABULARY, context_length=CONTEXT)  # fmt: skip
    model = initial_model(shape, row.init, 0)
    with torch.no_grad():
        model.embed_in.weight.mul_(3)
        model.embed_out.weight.mul_(3)
    save(model, folder)
    vocabulary = train_vocabulary(iter(["a b c"]), 258)  # asked of by neither: only to be there
    (folder / "tokenizer.json").write_text(vocabulary.definition, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"})
    )
    return row.hidden_size


def compare(
    case: str, precision: str, folder: Path, width: int, options: argparse.Namespace
) -> None:
    """One table: both, in turns, on the items of a case."""
    from ontogeny.shape import num_non_embedding

    items = items_of(case, options)
    pairs = [pair for item in items for pair in item]
    contenders: dict[str, Contender] = {"ours": ours(folder, precision)}
    work = {"ours": our_work(pairs, width)}
    for size, ask in peer(folder, precision, options.batch_sizes).items():
        contenders[f"lm-eval hf, {size}"] = ask
        work[f"lm-eval hf, {size}"] = peer_work(pairs, size)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    answers: dict[str, Answers] = {}
    for ask in contenders.values():
        ask(pairs[:8])
    for _ in range(options.rounds):
        for name, ask in contenders.items():
            began = options.clock()
            answers[name] = ask(pairs)
            seconds[name].append(options.clock() - began)
    speeds = {name: len(items) / statistics.median(taken) for name, taken in seconds.items()}
    best = max(speed for name, speed in speeds.items() if name != "ours")
    limit = ceiling(precision, options.clock)
    print(f"\n{case}, {precision}: {len(items)} items, ceiling {limit / 1e9:.0f} GFLOP/s")
    for name, speed in speeds.items():
        done = work[name]
        flops = 2 * (num_non_embedding(options.layers, width) * done.tokens
                     + width * VOCABULARY * done.places)  # fmt: skip
        share = flops * speed / len(items) / limit
        print(f"  {name:16} {speed:8.2f} items/s {speed / best:6.2f}  {done.tokens:8,} tokens"
              f" {done.places:8,} places  {share:4.0%} of the ceiling")  # fmt: skip
    told(items, answers["ours"], answers[f"lm-eval hf, {options.batch_sizes[0]}"])


def told(items: Sequence[Item], mine: Answers, theirs: Answers) -> None:
    """How the answers of both differ."""
    far = max(abs(a - b) for (a, _), (b, _) in zip(mine, theirs, strict=True))
    near = max(abs(a - b) / max(abs(b), 1e-9) for (a, _), (b, _) in zip(mine, theirs, strict=True))
    at, same = 0, 0
    for item in items:
        end = at + len(item)
        same += int(chosen(mine[at:end]) == chosen(theirs[at:end]))
        at = end
    greedy = sum(a == b for (_, a), (_, b) in zip(mine, theirs, strict=True))
    print(f"  largest difference {far:.1e} ({near:.1e} of it), same choice {same}/{len(items)},"
          f" same greedy test {greedy}/{len(mine)}")  # fmt: skip


def chosen(options: Answers) -> int:
    return max(range(len(options)), key=lambda place: options[place][0])


def ask_smollm(path: Path, items: int, data: Path) -> None:
    """The share of LAMBADA's last words that a trained model from elsewhere says."""
    from ontogeny.evaluation.foreign import open_foreign
    from ontogeny.evaluation.score import Request

    scorer = open_foreign(path, "fp32")
    lines = (data / "lambada/lambada_test.jsonl").read_text(encoding="utf-8").splitlines()[:items]
    requests = []
    for line in lines:
        context, _, word = json.loads(line)["text"].rpartition(" ")
        encode = scorer.vocabulary.encode
        requests.append(Request(tuple(encode(context)), tuple(encode(f" {word}"))))
    began = time.perf_counter()
    found = scorer.answer(requests, greedy=True)
    share = sum(bool(one.is_greedy) for one in found) / len(found)
    mean = sum(one.log_likelihood for one in found) / len(found)
    print(f"{len(found)} items: accuracy {share:.3f}, mean log-likelihood {mean:.3f},"
          f" {len(found) / (time.perf_counter() - began):.1f} items/s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default="70m")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--smollm", type=Path)
    parser.add_argument("--busy", action="store_true", help="one thread, by processor time")
    options = parser.parse_args()
    options.threads = 1 if options.busy else options.threads
    options.clock = time.process_time if options.busy else time.perf_counter
    tuned = {"GLIBC_TUNABLES": TUNED, "OMP_NUM_THREADS": str(options.threads)}
    if not tuned.items() <= os.environ.items():  # which are read when a process starts
        environment = {**os.environ, **tuned, "HF_HUB_OFFLINE": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    if options.smollm:
        ask_smollm(options.smollm, options.items, options.data)
        return
    with tempfile.TemporaryDirectory() as folder:
        width = write_checkpoint(Path(folder), options.size)
        options.layers = json.loads((Path(folder) / "config.json").read_text())["num_hidden_layers"]
        for case in options.cases:
            for precision in options.precisions:
                compare(case, precision, Path(folder), width, options)


if __name__ == "__main__":
    main()
