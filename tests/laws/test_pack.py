"""The embedded pack: each token scored once, pairs that differ as their rule says, even chances."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ontogeny.artifact import Artifact, open_artifact, writing
from ontogeny.digest import digest_file
from ontogeny.errors import DataError, EvaluationError
from ontogeny.evaluation.pack import TASKS, PackTask, build_pack, open_task
from ontogeny.evaluation.score import NeoXScorer
from ontogeny.evaluation.sentences import (
    NEAR,
    OTHER_FORM,
    PASSAGE_WORDS,
    Question,
    Text,
    agreements,
    balanced,
    next_sentences,
)
from ontogeny.evaluation.tasks import NotFiniteError
from ontogeny.model.init import initial_model
from ontogeny.model.neox import NeoX
from ontogeny.results import Score
from ontogeny.scores import Place
from ontogeny.shape import Shape
from ontogeny.suite import EvaluationSettings
from ontogeny.text.documents import Document
from ontogeny.tokens.encode import encode
from ontogeny.tokens.store import DocumentStore, open_store
from ontogeny.tokens.vocabulary import END_OF_DOCUMENT, Vocabulary, train_vocabulary

CONTEXT = 96
SENTENCE = "the owl saw how rain fell on old stones and thought of winter élan as ships went by"
WORDS = SENTENCE.split()
VERBS = ("is", "are", "has", "have", "was", "were", "does", "do")
ENDS = (". ", "! ", "? ", '."  ', ".\n", ".\n\n", ", 1914. ", "; ", ") ", ".\u2028")
PLACE = Place("m", 8, 99, "1m", 1000)
ALL = EvaluationSettings(
    held_out_tokens=10**6,
    last_word_items=10**4,
    next_sentence_items=10**4,
    agreement_items=10**4,
    word_order_items=10**4,
)


def prose(seed: int, num_sentences: int) -> str:
    """Sentences of 3 to 50 words, some with a verb, some of which end in what is no word."""
    random = np.random.RandomState(seed)
    sentences = []
    for _ in range(num_sentences):
        words = list(random.choice(WORDS, random.randint(3, 50 if random.rand() < 0.3 else 16)))
        words[random.randint(1, len(words))] = random.choice(VERBS)
        sentences.append(" ".join(words).capitalize() + random.choice(ENDS))
    return "".join(sentences)


TEXTS = {f"doc{number}": prose(number, 10 + 9 * number) for number in range(9)}
TEXTS["short"] = "Too short."


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return train_vocabulary(iter(TEXTS.values()), 320)


def store_of(texts: dict[str, str], vocabulary: Vocabulary, folder: Path) -> DocumentStore:
    documents = [
        Document(name, text, f"source{number % 3}")
        for number, (name, text) in enumerate(texts.items())
    ]
    encode(documents, vocabulary, folder, config={}, inputs={})
    return open_store(folder)


@pytest.fixture(scope="module")
def store(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> DocumentStore:
    return store_of(TEXTS, vocabulary, tmp_path_factory.mktemp("held") / "store")


@pytest.fixture(scope="module")
def pack(
    store: DocumentStore, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """Every question that the texts have."""
    folder = tmp_path_factory.mktemp("pack") / "tasks"
    return build_pack(store, vocabulary, CONTEXT, ALL, folder, {"store": store.artifact})


def small_model() -> NeoX:
    shape = Shape(
        num_layers=1, hidden_size=16, num_heads=2, vocab_size=384, context_length=CONTEXT
    )  # fmt: skip
    return initial_model(shape, "small-wang", 0)


@pytest.fixture(scope="module")
def scorer(vocabulary: Vocabulary) -> NeoXScorer:
    return NeoXScorer(small_model(), vocabulary, torch.float32)


def task_of(
    store: DocumentStore, vocabulary: Vocabulary, folder: Path, name: str, **changes: int
) -> PackTask:
    """A task of a pack made with settings that differ from those above."""
    settings = ALL.model_copy(update=changes)
    build_pack(store, vocabulary, CONTEXT, settings, folder, {})
    return open_task(folder, name)


def naive(scorer: NeoXScorer, context: str, option: str) -> float:
    """The log-likelihood of one option by its own forward passes, in pieces if it is long."""
    ids = [scorer.vocabulary.eod, *scorer.vocabulary.encode(context + option)]
    first = 1 + len(scorer.vocabulary.encode(context))
    if not context:
        pieces = [ids[at : at + CONTEXT + 1] for at in range(0, len(ids) - 1, CONTEXT)]
    else:
        pieces = [ids]
    total = 0.0
    for piece in pieces:
        with torch.no_grad():
            scores = F.log_softmax(scorer.model(torch.tensor([piece]))[0].double(), dim=-1)
        total += sum(float(scores[at - 1, piece[at]]) for at in range(first, len(piece)))
    return total


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_every_token_is_scored_once(pack: Artifact, vocabulary: Vocabulary) -> None:
    task = open_task(pack.path, "held-out")
    assert [question.id for question in task.questions] == list(TEXTS)
    for question, pieces in zip(task.questions, task.requests(vocabulary), strict=True):
        assert question.options == (TEXTS[question.id],)
        ids = vocabulary.encode(TEXTS[question.id])
        assert [token for one in pieces for token in one.target] == ids
        before = [one.context for one in pieces]
        assert before[0] == (vocabulary.eod,)
        assert before[1:] == [(one.target[-1],) for one in pieces[:-1]]
        assert all(one.num_inputs == CONTEXT for one in pieces[:-1])
        assert question.source == f"source{list(TEXTS).index(question.id) % 3}"


@pytest.mark.parametrize("num_tokens", [1, 900, 3000, 9000])
def test_each_source_has_its_share(
    store: DocumentStore, vocabulary: Vocabulary, tmp_path: Path, num_tokens: int
) -> None:
    task = task_of(store, vocabulary, tmp_path / "t", "held-out", held_out_tokens=num_tokens)
    expected, used = [], {f"source{number}": 0 for number in range(3)}
    for number, (name, text) in enumerate(TEXTS.items()):
        source, size = f"source{number % 3}", len(vocabulary.encode(text)) + 1
        if not used[source] or used[source] + size <= num_tokens // 3:
            used[source] += size
            expected.append(name)
    assert [question.id for question in task.questions] == expected
    assert {question.source for question in task.questions} == used.keys()


def test_bits_per_byte_by_definition(pack: Artifact, scorer: NeoXScorer) -> None:
    scores, items = open_task(pack.path, "held-out").measure(scorer, PLACE)
    bits = {name: -naive(scorer, "", text) / math.log(2) for name, text in TEXTS.items()}
    sizes = {name: len(text.encode()) for name, text in TEXTS.items()}
    assert {item.item: item.num_bytes for item in items} == sizes
    found = {item.item: -item.log_likelihood / math.log(2) for item in items}
    assert found == pytest.approx(bits, rel=1e-5)
    assert all(item.task == f"held-out/source{n % 3}" for n, item in enumerate(items))

    def of(number: int | None) -> float:
        names = list(TEXTS) if number is None else list(TEXTS)[number::3]
        return sum(bits[name] for name in names) / sum(sizes[name] for name in names)

    rows = [score for score in scores if score.metric == "bits_per_byte"]
    assert {score.task: score.value for score in rows} == pytest.approx(
        {"held-out": of(None), **{f"held-out/source{number}": of(number) for number in range(3)}},
        rel=1e-5,
    )
    assert {score.task: score.n for score in rows} == {
        "held-out": 10, "held-out/source0": 4, "held-out/source1": 3, "held-out/source2": 3,
    }  # fmt: skip
    check_places(scores)


def check_places(scores: list[Score]) -> None:
    for score in scores:
        assert (score.member, score.step, score.tokens, score.shots) == ("m", 8, 99, 0)
        assert score.low <= score.value <= score.high


def test_a_model_with_another_vocabulary_reads_the_same_text(
    pack: Artifact, scorer: NeoXScorer
) -> None:
    other = NeoXScorer(scorer.model, train_vocabulary(iter(TEXTS.values()), 384), torch.float32)
    for name in ("held-out", "next-sentence"):
        task = open_task(pack.path, name)
        _, items = task.measure(scorer, PLACE)
        _, others = task.measure(other, PLACE)
        assert [one.num_bytes for one in items] == [one.num_bytes for one in others]
        assert [one.log_likelihood for one in items] != [one.log_likelihood for one in others]


def test_last_words_end_their_sentences(pack: Artifact) -> None:
    questions = open_task(pack.path, "last-word").questions
    assert len(questions) > 20
    ends: dict[str, list[tuple[int, int]]] = {}
    for question in questions:
        (word,) = question.options
        name = question.id.rpartition(":")[0]
        text, whole = squeezed(TEXTS[name]), question.context + word
        start = text.find(whole, ends.setdefault(name, [(0, 0)])[-1][1])
        assert start >= 0, "a passage of the document, after the ones before it"
        stop = start + len(whole)
        assert text[stop] in ".!?"
        assert start == 0 or text[start - 1] == " "
        assert len(whole.split()) in PASSAGE_WORDS
        assert re.fullmatch(r" [A-Za-z]{3,}", word)
        ends[name].append((start, stop))
    for places in ends.values():
        assert all(before[1] <= after[0] for before, after in pairwise(places))


def test_next_sentences_follow_theirs(pack: Artifact) -> None:
    questions = open_task(pack.path, "next-sentence").questions
    assert len(questions) > 20
    texts = [Text(name, f"source{n % 3}", text) for n, (name, text) in enumerate(TEXTS.items())]
    rights = {(question.source, question.options[0]) for question in next_sentences(texts)}
    for question in questions:
        text = squeezed(TEXTS[question.id.rpartition(":")[0]])
        assert question.context + question.options[question.gold] in text
        assert question.context[-1] in ".!?\"')"
        assert len(question.context.split()) >= 12
        assert len({*question.options}) == 4
        sizes = [len(option.encode()) for option in question.options]
        assert max(sizes) < NEAR * min(sizes)
        assert not any(option.strip() in question.context for option in question.options)
        wrong = {*question.options} - {question.options[question.gold]}
        # What is wrong here is right elsewhere, so nothing but the context tells.
        assert all((question.source, option) in rights for option in wrong)


def test_pairs_differ_as_their_rule_says(pack: Artifact) -> None:
    for question in open_task(pack.path, "agreement").questions:
        right, wrong = sides(question)
        changed = [place for place in range(len(right)) if right[place] != wrong[place]]
        assert len(changed) == 1
        assert wrong[changed[0]] == OTHER_FORM[right[changed[0]]]
    for question in open_task(pack.path, "word-order").questions:
        right, wrong = sides(question)
        first, second = (place for place in range(len(right)) if right[place] != wrong[place])
        assert 0 < first == second - 1 < len(right) - 2
        assert (right[first], right[second]) == (wrong[second], wrong[first])


def sides(question: Question) -> tuple[list[str], list[str]]:
    """The words of the right sentence, which is in the text, and of the wrong one."""
    assert question.context == ""
    right, wrong = question.options[question.gold], question.options[1 - question.gold]
    assert right in squeezed(TEXTS[question.id.rpartition(":")[0]])
    assert len(right.split()) == len(wrong.split())
    return right.split(), wrong.split()


VERDICTS = {
    "The ships of the king are old now.": ["are"],
    "Every one of us has seen that day.": ["has"],
    "She does what we do not like and they are glad.": ["does", "do", "are"],
    "He said that you are welcome there.": [],
    "You have seen what you were looking for.": [],
    "They may have seen that we do have time.": ["do"],
    "He wanted to do well and to have friends.": [],
    "They don't have any and he can't do anything.": [],
    "Where is the old road to the sea?": [],
    "If she was there it was late.": [],
    "He spoke as if the owl were wise.": [],
    "The owl was wise, if she was there.": ["was"],
    "Would that it were so with him.": [],
    "The ships were late and the owl was not.": ["were", "was"],
    "The stones, are wet here too.": [],
    "Is this what he is saying here.": ["is"],
    "Here there is.": [],
    "The value of x[0] is what they want.": [],
}


@pytest.mark.parametrize("sentence", VERDICTS)
def test_only_verbs_that_agree_are_exchanged(sentence: str) -> None:
    found = []
    for question in agreements(Text("t", "s", f"{sentence}\n")):
        right, wrong = (option.split() for option in question.options)
        found += [one for one, other in zip(right, wrong, strict=True) if one != other]
    assert found == VERDICTS[sentence]


def test_no_form_of_a_verb_is_right_more_often_than_its_other(pack: Artifact) -> None:
    questions = open_task(pack.path, "agreement").questions
    forms = Counter(
        one
        for right, wrong in map(sides, questions)
        for one, other in zip(right, wrong, strict=True)
        if one != other
    )
    assert sum(forms.values()) > 20
    assert all(forms[form] == forms[OTHER_FORM[form]] for form in forms)
    every = [one for name in TEXTS for one in agreements(Text(name, "s", TEXTS[name]))]
    assert len(questions) <= len([*balanced(every)]) < len(every)


@pytest.mark.parametrize("name", TASKS)
def test_ids_are_unique_and_right_places_even(pack: Artifact, name: str) -> None:
    task = open_task(pack.path, name)
    assert len({question.id for question in task.questions}) == len(task.questions)
    places = Counter(question.gold for question in task.questions)
    assert max(places.values()) - min(places.values()) <= 1
    assert len(places) == len(task.questions[0].options)
    answers = Counter(
        question.gold if len(question.options) > 1 else question.options[0]
        for question in task.questions
    )
    share = answers.most_common(1)[0][1] / len(task.questions)
    chances = {"next-sentence": 0.25, "agreement": 0.5, "word-order": 0.5}
    assert task.spec.chance == chances.get(name)
    assert task.spec.majority == (None if name == "held-out" else share)
    assert pack.facts[name]["num_items"] == len(task.questions)
    assert task.spec.data == digest_file(pack.path / f"{name}.jsonl")
    assert (task.spec.name, task.spec.shots, task.spec.harness) == (name, 0, "ontogeny 1")


def test_the_length_of_a_sentence_does_not_tell_whether_it_follows(pack: Artifact) -> None:
    ranks = Counter(
        sorted(question.options, key=len).index(question.options[question.gold])
        for question in open_task(pack.path, "next-sentence").questions
    )
    expected = sum(ranks.values()) / 4
    assert all(abs(ranks[rank] - expected) < 3 * math.sqrt(expected * 0.75) for rank in range(4))


@pytest.mark.parametrize("name", ["last-word", "next-sentence", "agreement", "word-order"])
def test_choices_are_those_of_one_option_at_a_time(
    store: DocumentStore, vocabulary: Vocabulary, scorer: NeoXScorer, tmp_path: Path, name: str
) -> None:
    few = {f"{name.replace('-', '_')}_items": 8}
    task = task_of(store, vocabulary, tmp_path / "few", name, **few)
    scores, items = task.measure(scorer, PLACE)
    for question, item in zip(task.questions, items, strict=True):
        found = [naive(scorer, question.context, option) for option in question.options]
        right = found[question.gold]
        rates = [
            value / len(option.encode())
            for value, option in zip(found, question.options, strict=True)
        ]
        assert item.log_likelihood == pytest.approx(right, rel=1e-5)
        if len(found) > 1:
            others = found[: question.gold] + found[question.gold + 1 :]
            assert item.margin == pytest.approx(right - max(others), abs=1e-3)
            assert item.metrics["acc"] == float(max(found) == right)
        assert item.metrics.get("acc_norm", 0.0) in (0.0, float(max(rates) == rates[question.gold]))
    kinds = {"last-word": ["acc"], "next-sentence": ["acc", "acc_norm", "margin"]}
    own = {"log_likelihood", "bits_per_byte", *kinds.get(name, ["acc", "margin"])}
    assert {score.metric for score in scores} == own
    assert {score.n for score in scores} == {8}
    check_places(scores)


def test_the_greedy_word_is_right(pack: Artifact, vocabulary: Vocabulary) -> None:
    """Of a model that always says one token, right are the last words that are this token."""
    task = open_task(pack.path, "last-word")
    targets = [request.target for (request,) in task.requests(vocabulary)]
    (said,), _ = Counter(target for target in targets if len(target) == 1).most_common(1)[0]
    model = small_model()
    with torch.no_grad():
        model.final_layer_norm.weight.zero_()
        model.final_layer_norm.bias.fill_(1.0)
        model.embed_out.weight[said] = 1.0
    scores, items = task.measure(NeoXScorer(model, vocabulary, torch.float32), PLACE)
    assert [item.metrics["acc"] for item in items] == [float(one == (said,)) for one in targets]
    assert scores[0].metric == "acc"
    assert scores[0].value == targets.count((said,)) / len(targets) > 0


def test_questions_are_what_a_model_reads(pack: Artifact, vocabulary: Vocabulary) -> None:
    for name in TASKS[1:]:
        task = open_task(pack.path, name)
        asked = iter(task.requests(vocabulary))
        for question in task.questions:
            for option in question.options:
                (request,) = next(asked)
                assert list(request.context) == [
                    vocabulary.eod, *vocabulary.encode(question.context),
                ]  # fmt: skip
                assert list(request.target) == vocabulary.encode(option)
                assert request.num_inputs <= CONTEXT


def wide_vocabulary() -> Vocabulary:
    """One whose tokens may reach over spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS.values(), trainer)
    return Vocabulary(tokenizer.to_str())


def test_words_that_grow_together_with_their_context_are_left_out(
    pack: Artifact, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    wide = wide_vocabulary()
    store = store_of(TEXTS, wide, tmp_path / "wide")
    few = {"next_sentence_items": 0, "word_order_items": 0}
    task = task_of(store, wide, tmp_path / "tasks", "last-word", **few)
    for question in task.questions:
        context, word = wide.encode(question.context), wide.encode(question.options[0])
        assert wide.encode(question.context + question.options[0]) == context + word
    assert 0 < len(task.questions) < len(open_task(pack.path, "last-word").questions)


def test_documents_take_turns(
    pack: Artifact, store: DocumentStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    every = open_task(pack.path, "last-word").questions
    for count in (1, 5, 12):
        task = task_of(store, vocabulary, tmp_path / f"{count}", "last-word", last_word_items=count)
        assert task.questions == every[:count]
    turns = Counter(question.id.rpartition(":")[0] for question in every)
    firsts = [question.id.rpartition(":")[0] for question in every[: len(turns)]]
    assert firsts == [name for name in TEXTS if name in turns]


def test_the_same_text_gives_the_same_bytes(
    pack: Artifact, store: DocumentStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    again = build_pack(
        store, vocabulary, CONTEXT, ALL, tmp_path / "again", {"store": store.artifact}
    )
    assert again.digest == pack.digest
    lines = (pack.path / "agreement.jsonl").read_text().splitlines()
    assert json.loads(lines[0]).keys() == {"id", "source", "context", "options", "gold"}
    other = store_of({**TEXTS, "short": "So short."}, vocabulary, tmp_path / "store")
    task = task_of(other, vocabulary, tmp_path / "other", "held-out")
    assert task.spec.digest != open_task(pack.path, "held-out").spec.digest
    same = open_task(tmp_path / "other", "agreement").spec
    assert same == open_task(pack.path, "agreement").spec


def build(texts: Sequence[str], vocabulary: Vocabulary, folder: Path, **changes: int) -> Path:
    store = store_of({f"d{n}": text for n, text in enumerate(texts)}, vocabulary, folder / "store")
    settings = ALL.model_copy(update=changes)
    return build_pack(store, vocabulary, CONTEXT, settings, folder / "tasks", {}).path


def test_text_without_questions_is_refused_at_once(vocabulary: Vocabulary, tmp_path: Path) -> None:
    texts = ["Too short.", "def f(x): return {x}\n" * 9, " ".join(WORDS * 3)]
    with pytest.raises(EvaluationError) as caught:
        build(texts, vocabulary, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'store'}: the held-out text has no question for last-word, next-sentence, "
        "agreement, word-order; expected plain English sentences that fit 96 tokens; try: hold out "
        "more text, or leave them out: --set evaluation.last_word_items=0 --set "
        "evaluation.next_sentence_items=0 --set evaluation.agreement_items=0 --set "
        "evaluation.word_order_items=0"
    )
    assert not (tmp_path / "tasks").exists()


OFF = {
    "last_word_items": 0,
    "next_sentence_items": 0,
    "agreement_items": 0,
    "word_order_items": 0,
}


def test_a_task_that_is_switched_off_or_unknown(vocabulary: Vocabulary, tmp_path: Path) -> None:
    folder = build(["Too short."], vocabulary, tmp_path, **OFF)
    assert [*open_artifact(folder).facts] == ["held-out"]
    with pytest.raises(EvaluationError) as caught:
        open_task(folder, "word-order")
    assert str(caught.value) == (
        f"{folder}: the pack has no task 'word-order'; expected one of held-out; "
        "try: --set evaluation.word_order_items=100"
    )
    with pytest.raises(EvaluationError, match=r"no task 'piqa'; expected one of held-out$"):
        open_task(folder, "piqa")


def test_an_altered_task_is_refused(vocabulary: Vocabulary, tmp_path: Path) -> None:
    folder = build(["Too short."], vocabulary, tmp_path, **OFF)
    file = folder / "held-out.jsonl"
    file.write_text(file.read_text().replace("short", "shirt"))
    with pytest.raises(DataError, match=r"held-out\.jsonl: other bytes; expected sha256"):
        open_task(folder, "held-out")
    file.write_text("")
    with pytest.raises(DataError, match="truncated or altered file"):
        open_task(folder, "held-out")


@pytest.mark.parametrize("line", ["[]", "{", '{"id": "a"}', '"text"'])
def test_a_task_that_is_none_is_refused(tmp_path: Path, line: str) -> None:
    facts = {"digest": "0", "chance": None, "majority": None}
    config = {"rules": "other 1", "context_length": 8}
    with writing(tmp_path / "t", "tasks", config=config, inputs={}) as draft:
        draft.facts["held-out"] = facts
        (draft.folder / "held-out.jsonl").write_text(line + "\n")
    with pytest.raises(EvaluationError, match=r"held-out\.jsonl: not a task of this version"):
        open_task(tmp_path / "t", "held-out")


def test_an_answer_that_is_no_number_names_its_item(pack: Artifact, vocabulary: Vocabulary) -> None:
    model = small_model()
    with torch.no_grad():
        model.embed_out.weight[7] = float("nan")
    broken = NeoXScorer(model, vocabulary, torch.float32)
    task = open_task(pack.path, "word-order")
    with pytest.raises(NotFiniteError) as caught:
        task.measure(broken, PLACE)
    assert str(caught.value).startswith(f"item {task.questions[0].id} of word-order: ")


def test_special_tokens_spelled_out_and_odd_ends_of_line(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    text = f"One line.\u2028Another\x85 one.\r\nA third{END_OF_DOCUMENT} one."
    folder = build([text], vocabulary, tmp_path, **OFF)
    (question,) = open_task(folder, "held-out").questions
    assert question.options == (text.replace(END_OF_DOCUMENT, ""),)
