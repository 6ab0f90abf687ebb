"""The harness's tasks on a small model: lm-eval's own backend agrees, and bad data is refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grown import WORDS, Ground
from ontogeny.errors import EvaluationError, OntogenyError
from ontogeny.evaluation.catalog import load_task, resolve
from ontogeny.evaluation.score import Answer, NeoXScorer, Request
from ontogeny.evaluation.tasks import NotFiniteError, UnansweredError
from ontogeny.model import hf
from ontogeny.model.init import initial_model
from ontogeny.model.neox import NeoX
from ontogeny.results import Item, Score
from ontogeny.scores import Place
from ontogeny.shape import Shape
from ontogeny.tokens.vocabulary import TOKENIZER, TOKENIZER_CONFIG, Vocabulary, open_vocabulary

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow  # importing lm-eval takes seconds

PLACE = Place("tiny", 8, 512, "2x32", 1)
SHAPE = Shape(num_layers=2, hidden_size=32, num_heads=2, vocab_size=384, context_length=288)


def sentence(random: np.random.RandomState, length: int) -> str:
    return " ".join(WORDS[index] for index in random.randint(0, len(WORDS), length))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def piqa(number: int, seed: int) -> list[dict[str, Any]]:
    random = np.random.RandomState(seed)
    return [
        {
            "goal": f"{place}: {sentence(random, 4)}",
            "sol1": sentence(random, 3),
            "sol2": sentence(random, 5),
            "label": int(random.randint(2)),
        }
        for place in range(number)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder of benchmark data, in the harness's own columns."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.RandomState(3)
    write(folder / "piqa/validation.jsonl", piqa(12, 1))
    write(folder / "piqa/train.jsonl", piqa(9, 2))
    texts = [{"text": sentence(random, 9)} for _ in range(10)]
    write(folder / "lambada_openai/test.jsonl", texts)
    rows = [
        {
            "sentence": f"The stone, {place}, sees _ and {sentence(random, 3)}.",
            "option1": "the river",
            "option2": "a house",
            "answer": str(1 + place % 2),
        }
        for place in range(8)
    ]
    write(folder / "winogrande/validation.jsonl", rows)
    pairs = [{"sent_more": sentence(random, 5), "sent_less": sentence(random, 5)} for _ in range(6)]
    write(folder / "crows_pairs_english/test.jsonl", pairs)
    questions = [
        {"question": sentence(random, 3), "answer": {"aliases": [sentence(random, 1)]}}
        for _ in range(4)
    ]
    write(folder / "triviaqa/validation.jsonl", questions)
    write(
        folder / "social_iqa/validation.jsonl",
        [{"context": "a river", "question": "who sees?", "label": "2"}
         | {f"answer{letter}": sentence(random, 2) for letter in "ABC"} for _ in range(4)],
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def model() -> NeoX:
    model = initial_model(SHAPE, "small-wang", 0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


@pytest.fixture(scope="module")
def vocabulary(ground: Ground) -> Vocabulary:
    return open_vocabulary(ground.vocabulary)


@pytest.fixture(scope="module")
def scorer(model: NeoX, vocabulary: Vocabulary) -> NeoXScorer:
    return NeoXScorer(model, vocabulary, torch.float32)


@pytest.fixture(scope="module")
def theirs(model: NeoX, ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same model behind lm-eval's own backend, by way of its exported files."""
    folder = tmp_path_factory.mktemp("exported")
    hf.save(model, folder)
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        (folder / name).write_text((ground.vocabulary / name).read_text())
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    return huggingface.HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)


def load(data: Path, name: str, shots: int = 0, limit: int | None = None) -> Any:
    (ref,) = resolve([name], [shots], pack=None, data=[str(data)], limit=limit)
    return load_task(ref)


def by_metric(scores: list[Score]) -> dict[str, Score]:
    return {score.metric: score for score in scores}


def evaluated(task: Any, lm: Any) -> tuple[dict[str, float], list[Any]]:
    """Metrics and answers that lm-eval's own evaluator finds with a model."""
    import lm_eval

    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=lm, tasks=[task.task], task_manager=manager, bootstrap_iters=0
    )
    name = task.spec.name
    metrics = {
        key.partition(",")[0]: value
        for key, value in found["results"][name].items()
        if "," in key and "stderr" not in key
    }
    samples = sorted(found["samples"][name], key=lambda sample: int(sample["doc_id"]))
    return metrics, [sample["resps"] for sample in samples]


# Options after one context (with 8 examples too long a one), before one ending, or on their own; a
# last word; a text.
@pytest.mark.parametrize(
    ("name", "shots"),
    [("piqa", 0), ("piqa", 8), ("lambada_openai", 2), ("winogrande", 2),
     ("crows_pairs_english", 0), ("triviaqa", 1)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # of lm-eval and transformers
def test_lm_evals_own_backend_agrees(
    data: Path, scorer: NeoXScorer, theirs: Any, name: str, shots: int
) -> None:
    from ontogeny.evaluation.harness import OntogenyLM

    task = load(data, name, shots)
    scores, items = task.measure(scorer, PLACE)
    asked = [instance.args for instance in task.task.instances]
    expected, answers = evaluated(task, theirs)
    assert [instance.args for instance in task.task.instances] == asked
    ours, our_answers = evaluated(task, OntogenyLM(scorer))
    assert len(items) == len(answers) == len(our_answers) > 0
    for measured in (ours, {name: row.value for name, row in by_metric(scores).items()}):
        for metric, value in expected.items():
            assert measured[metric] == pytest.approx(value, rel=2e-4), metric
    for one, other in zip(answers, our_answers, strict=True):
        for (answer,), (our_answer,) in zip(one, other, strict=True):
            if isinstance(answer, str):
                assert our_answer == answer
            else:
                assert our_answer[0] == pytest.approx(float(answer[0]), abs=2e-4)
                assert our_answer[1] == bool(answer[1])


def test_rows_say_what_the_answers_say(data: Path, scorer: NeoXScorer) -> None:
    task = load(data, "piqa")
    scores, items = task.measure(scorer, PLACE)
    rows = rows_of(data / "piqa/validation.jsonl")
    for row, item in zip(rows, items, strict=True):
        context = scorer.vocabulary.encode(f"Question: {row['goal']}\nAnswer:")
        options = [f" {row['sol1']}", f" {row['sol2']}"]
        requests = [
            Request(tuple(context), tuple(scorer.vocabulary.encode(option))) for option in options
        ]
        found = [answer.log_likelihood for answer in scorer.answer(requests)]
        right, wrong = found[row["label"]], found[1 - row["label"]]
        assert item.gold == row["label"]
        assert item.chosen == int(np.argmax(found))
        assert item.log_likelihood == pytest.approx(right, abs=1e-4)
        assert item.margin == pytest.approx(right - wrong, abs=1e-4)
        assert item.num_bytes == len(options[row["label"]].encode())
    measured = by_metric(scores)
    assert list(measured) == ["acc", "acc_norm", "log_likelihood", "margin", "bits_per_byte"]
    labels = [row["label"] for row in rows]
    majority = max(labels.count(0), labels.count(1)) / len(labels)
    assert (measured["acc"].chance, measured["acc"].majority) == (0.5, majority)
    assert measured["acc"].value == np.mean([item.metrics["acc"] for item in items])
    assert measured["acc"].low <= measured["acc"].value <= measured["acc"].high
    assert {(row.n, row.shots, row.step, row.differs) for row in scores} == {(12, 0, 8, "")}


def test_perplexity_is_of_the_last_words(data: Path, scorer: NeoXScorer) -> None:
    scores, items = load(data, "lambada_openai").measure(scorer, PLACE)
    row = by_metric(scores)["perplexity"]
    values = np.array([item.log_likelihood for item in items])
    assert row.value == pytest.approx(math.exp(-values.mean()))
    assert row.low < row.value < row.high
    assert {(item.gold, item.chosen, item.margin) for item in items} == {(None, None, None)}
    assert {score.chance for score in scores} == {None}


def test_examples_are_never_the_item(data: Path) -> None:
    texts = [row["text"] for row in rows_of(data / "lambada_openai/test.jsonl")]
    task = load(data, "lambada_openai", 9)  # all others: leaving out is no luck
    for text, instance in zip(texts, task.task.instances, strict=True):
        *examples, asked = instance.args[0].split("\n\n")
        assert asked + instance.args[1] == text
        examples = [example.replace("  ", " ") for example in examples]  # lm-eval puts two
        assert sorted(examples) == sorted(other for other in texts if other != text)
    assert task.spec.differs == "worked examples are other items of the same file"
    for place, instance in enumerate(load(data, "winogrande", 7).task.instances):
        examples = instance.args[0].split("\n\n")
        numbers = [int(example.split(", ")[1]) for example in examples]
        assert numbers[-1] == place // 2
        assert sorted(numbers) == list(range(8))


def test_examples_are_of_the_training_split_where_it_is(data: Path) -> None:
    goals = {row["goal"] for row in rows_of(data / "piqa/train.jsonl")}
    task = load(data, "piqa", 3)
    for instance in task.task.instances:
        *examples, _ = instance.args[0].split("\n\n")
        assert {line.split("\n")[0].removeprefix("Question: ") for line in examples} <= goals
    assert task.spec.differs == ""


def test_long_prompts_are_cut_on_their_left_and_counted(data: Path, scorer: NeoXScorer) -> None:
    task = load(data, "piqa", 8)
    scores, _ = task.measure(scorer, PLACE)
    lengths = [
        len(scorer.vocabulary.encode("".join(instance.args))) for instance in task.task.instances
    ]
    num_cut = sum(length > scorer.context_length + 1 for length in lengths)
    assert num_cut > 0
    assert f"{num_cut} of 24 prompts cut to the model's length" in scores[0].differs


def test_the_digest_is_of_what_is_asked(data: Path, tmp_path: Path) -> None:
    rows = rows_of(data / "piqa/validation.jsonl")
    base = load(data, "piqa").spec
    spaced = tmp_path / "spaced/piqa/validation.jsonl"
    write(spaced, rows)
    spaced.write_text(spaced.read_text() + "\n")
    again = load(tmp_path / "spaced", "piqa").spec
    assert (again.digest == base.digest, again.data == base.data) == (True, False)
    rows[3]["label"] = 1 - rows[3]["label"]
    write(tmp_path / "label/piqa/validation.jsonl", rows)
    specs = [base, load(tmp_path / "label", "piqa").spec, load(data, "piqa", 1).spec]
    specs += [load(data, "piqa", limit=11).spec, load(data, "social_iqa").spec]
    assert len({spec.digest for spec in specs}) == 5
    assert specs[3].differs == "the first 11 items"
    assert specs[4].chance == pytest.approx(1 / 3)
    assert specs[4].majority is None  # always the second, so no more than where it is put


class Counting(Vocabulary):
    """A vocabulary that counts the texts it encodes."""

    counted: list[str]

    def encode(self, text: str) -> list[int]:
        self.counted.append(text)
        return super().encode(text)


def test_a_second_checkpoint_tokenises_nothing(
    data: Path, model: NeoX, vocabulary: Vocabulary, capfd: pytest.CaptureFixture[str]
) -> None:
    counting = Counting(vocabulary.definition)
    object.__setattr__(counting, "counted", [])
    task = load(data, "winogrande", 1)
    first = task.measure(NeoXScorer(model, counting, torch.float32), PLACE)
    assert (num := len(counting.counted)) > 0
    second = task.measure(NeoXScorer(model, counting, torch.float32), PLACE)
    assert (second, len(counting.counted)) == (first, num)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


class Mute:
    """A scorer that is no model of ours, and gives no numbers to long questions."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.context_length = vocabulary, 512

    def answer(self, requests: list[Request], *, greedy: bool = False) -> list[Answer]:
        longest = max(len(request.context) for request in requests)
        return [
            Answer(math.nan if len(request.context) == longest else -1.0, greedy)
            for request in requests
        ]


def test_an_answer_that_is_no_number_is_named(data: Path, vocabulary: Vocabulary) -> None:
    with pytest.raises(NotFiniteError, match=r"item \d+ of piqa: an answer is no number"):
        load(data, "piqa").measure(Mute(vocabulary), PLACE)


def test_only_our_models_generate(data: Path, vocabulary: Vocabulary, model: NeoX) -> None:
    task = load(data, "triviaqa")
    with pytest.raises(
        EvaluationError, match="triviaqa: the task asks for text that cannot be generated"
    ):
        task.measure(Mute(vocabulary), PLACE)


def test_an_answer_longer_than_the_model(data: Path, vocabulary: Vocabulary) -> None:
    mute = Mute(vocabulary)
    mute.context_length = 4
    with pytest.raises(
        UnansweredError, match=r"piqa: an answer that does not fit .* 1 to 4 tokens"
    ):
        load(data, "piqa").measure(mute, PLACE)


def test_generated_text_makes_rows(data: Path, scorer: NeoXScorer) -> None:
    scores, items = load(data, "triviaqa").measure(scorer, PLACE)
    assert [score.metric for score in scores] == ["exact_match"]
    assert all(isinstance(item, Item) and item.metrics.keys() == {"exact_match"} for item in items)


def test_generated_text_that_is_measured_as_a_whole(tmp_path: Path, scorer: NeoXScorer) -> None:
    pair = {"translation": {"en": "a river", "ro": "un river"}}
    write(tmp_path / "wmt16-en-ro/test.jsonl", [pair] * 2)
    scores, items = load(tmp_path, "wmt16-en-ro").measure(scorer, PLACE)
    assert [(row.metric, row.n) for row in scores] == [("bleu", 2), ("ter", 2), ("chrf", 2)]
    assert [item.metrics for item in items] == [{}, {}]


GOOD = {"goal": "g", "sol1": "a", "sol2": "b", "label": 0}
MADE_BY_HAND = {
    "broken": ('{"goal": "g"', "validation.jsonl: not as it should be laid out", "line 1"),
    "empty": ("", "validation.jsonl: has no items", ""),
    "no objects": ("[1, 2]\n", "not a list of objects", ""),
    "too deep": ("[" * 10**5, "validation.jsonl: not as it should be laid out", "RecursionError"),
    "not text": ("\udcff", "not as it should be laid out", ""),
    "other columns": ('{"question": "q", "label": 0}\n', "can make no items of this data", "goal"),
    "no gold": (json.dumps(GOOD | {"label": -1}), "can make no items", "is option -1 of 2"),
    "an unlabelled item": (json.dumps(GOOD | {"label": None}), "can make no items", ""),
}


@pytest.mark.parametrize("case", MADE_BY_HAND)
def test_data_that_is_no_items(tmp_path: Path, case: str) -> None:
    text, *said = MADE_BY_HAND[case]
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa/validation.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(EvaluationError) as refused:
        load(tmp_path, "piqa")
    assert all(words in str(refused.value) for words in said)
    assert "\n" not in str(refused.value)


def test_fewer_items_than_examples(tmp_path: Path) -> None:
    write(tmp_path / "piqa/validation.jsonl", piqa(3, 0))
    with pytest.raises(EvaluationError, match=r"can make no items.*or ask for fewer --shots"):
        load(tmp_path, "piqa", 5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("piqa", r"piqa: no validation items are at hand; expected piqa/validation.jsonl or piqa/"
         r"piqa_validation.jsonl or .*arrow; found none .*try: ontogeny evaluate --fetch-data"),
        ("lambada_openai", r"no test items .*try: put it there \(lambada_test.jsonl of the repo"),
    ],
)  # fmt: skip
def test_data_that_is_missing(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        load(tmp_path, name)


def ask(names: list[str], shots: list[int], data: list[str]) -> None:
    for ref in resolve(names, shots, pack=None, data=data):
        load_task(ref)


def refused(names: list[str], shots: list[int], data: list[str] | None = None) -> str:
    with pytest.raises(OntogenyError) as error:
        ask(names, shots, data or [])
    return str(error.value)


def test_what_cannot_be_asked() -> None:
    assert "--shots: worked examples cannot be fewer than none" in refused(["piqa"], [0, -1])
    assert "blimp_causative takes no worked examples" in refused(["blimp_causative"], [5])
    assert "no such folder of benchmark data" in refused(["piqa"], [0], ["/nowhere"])
    assert "one or the other" in refused(["piqa"], [0], ["hub", "/"])
    assert "a suite's held-out text, and none is given" in refused(["last-word"], [0])
    said = refused(["lambada_openia"], [0])
    assert "lambada_openia: no such task" in said
    assert "try: lambada_openai" in said
    assert "try: last-word" in refused(["last-wrod"], [0])


def test_groups_and_what_takes_no_examples() -> None:
    found = resolve(["paper", "blimp", "piqa", "last-word"], [0, 5], pack=None)
    names = [(ref.name, ref.shots) for ref in found]
    assert len(names) == len(set(names)) == 8 * 2 + 67 + 1
    assert ("last-word", 0) in names
    assert {shots for name, shots in names if name.startswith("blimp")} == {0}


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    ours = [f"ontogeny.evaluation.{name}" for name in ("harness", "benchmarks")]
    for name in [name for name in sys.modules if name.startswith("lm_eval.") or name in ours]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert 'try: pip install "ontogeny[eval]"' in refused(["piqa"], [0], [str(data)])


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as one data set of two files needs."""

    folder: Path

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def give(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", f'"{len(body)}"')
        self.send_header("X-Error-Code", "" if status == 200 else "EntryNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        names = ["train.jsonl", "validation.jsonl"]
        path = self.path.partition("?")[0]
        file = self.folder / path.rpartition("/")[2]
        if "/tree/" in path:
            listed = [
                {"type": "file", "path": name, "oid": "b" * 40}
                | {"size": (self.folder / name).stat().st_size}
                for name in names
            ]
            self.give(json.dumps(listed).encode())
        elif path.startswith("/api/datasets/baber/piqa"):
            about = {"id": "baber/piqa", "sha": "a" * 40, "private": False, "tags": []}
            counts = {"downloads": 0, "likes": 0, "siblings": [{"rfilename": n} for n in names]}
            self.give(json.dumps(about | counts).encode())
        elif "/resolve/" in path and file.name in names:
            self.give(file.read_bytes())
        else:
            self.give(b"", 404)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub(data: Path) -> Iterator[str]:
    handler = type("Handler", (Hub,), {"folder": data / "piqa"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


FROM_THE_HUB = """
from ontogeny.errors import EvaluationError
from ontogeny.evaluation.catalog import load_task, resolve
for ref in resolve(["piqa"], [0, 3], pack=None, data=["hub"]):
    try:
        print(load_task(ref).spec.digest)
    except EvaluationError as error:
        print(error)
"""


def ask_hub(address: str, home: Path, **more: str) -> list[str]:
    """What a process prints that loads a task from a hub, whose address is read at import."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home)} | more
    environment["NO_PROXY"] = "127.0.0.1"
    command = [sys.executable, "-W", "error", "-c", FROM_THE_HUB]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_the_hub_gives_the_same_task(data: Path, hub: str, tmp_path: Path) -> None:
    found = ask_hub(hub, tmp_path)
    assert found == [load(data, "piqa", shots).spec.digest for shots in (0, 3)]


def test_no_hub_is_no_task(tmp_path: Path) -> None:
    for line in ask_hub("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1"):
        assert line.startswith("piqa: ")
        assert "look whether the hub can be reached, or --data FOLDER" in line
