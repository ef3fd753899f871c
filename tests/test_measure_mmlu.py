"""MMLU through the real lm-evaluation-harness, with a tiny random Llama and small folders of questions."""

from __future__ import annotations

import copy
import csv
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qbench import demo
from qbench.config import MMLUConfig, Reading
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.errors import QbenchError
from qbench.measure import mmlu
from qbench.measure.base import Context
from qbench.measure.lm_eval import harness
from qbench.measure.lm_eval.mmlu_data import find_subjects, known_subjects, load_tasks, read_questions, task_manager
from qbench.records.rows import AccuracyRow, Row
from tests.support import stock
from tests.support.data import MMLU, needs_mmlu

Record = tuple[str, str, str, str, str, str]

AWKWARD: list[Record] = [
    ('Who said "Nevermore", and why?', "a, b", 'the "raven"', "NA", "None", "B"),
    ("  Two lines:\n  one, two \n", " leading", "trailing ", "", "null", "D"),
    ("Größe in µm – 汉字 🙂?", "1", "2.50", "007", "1e3", "C"),
    ("{{ question }} {% raw %}", "{{1+1}}", "\\n", "'", "a\tb", "A"),
]
SUBJECTS = ("anatomy", "made_up_world", "zoology")
ENGINES: tuple[Reading, ...] = ("prefix", "stock")


def record(subject: str, number: int) -> Record:
    return (
        f"Question {number} on {subject}?" + " word" * (number % 7),
        "one",
        "two",
        "three",
        "four",
        "ABCD"[number % 4],
    )


def write(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(records)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """anatomy is one of MMLU's subjects, the others are not."""
    root = tmp_path / "mmlu"
    for size, subject in zip((6, 5, 1), SUBJECTS, strict=True):
        awkward = AWKWARD if subject != "zoology" else []
        write(root / "test" / f"{subject}_test.csv", awkward + [record(subject, i) for i in range(size)])
        write(root / "dev" / f"{subject}_dev.csv", [record(f"{subject} dev", i) for i in range(4)] + AWKWARD)
    return root


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with the answer letters as single tokens, and without a padding token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(["Answer: A B C D\n\nQuestion word multiple choice answers about"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def loaded(tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        initializer_range=0.3,  # large, so that the answers differ
        tie_word_embeddings=True,
    )
    return LoadedModel(
        model=LlamaForCausalLM(shape).eval(),
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        dtype=torch.float32,
        kernel="test",
        linear_bytes=1,
        linear_weights=1,
    )


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> NoReturn:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class Recorder:
    """A Context that keeps what it is given."""

    def __init__(self, answers: Path) -> None:
        self.rows: list[AccuracyRow] = []
        self.progress: list[tuple[str, int, int]] = []
        self.path = answers / "cell.parquet"
        self.context = Context(
            identity={"run": "r", "model": "m", "backend": "int4", "label": "cell"},
            emit=self._keep,
            progress=lambda what, done, total: self.progress.append((what, done, total)),
            seed=0,
            answers=answers,
        )

    def _keep(self, row: Row) -> None:
        assert isinstance(row, AccuracyRow)
        self.rows.append(row)


@pytest.fixture
def evaluate(loaded: LoadedModel, folder: Path, tmp_path: Path) -> Callable[..., Recorder]:
    def run(**options: Any) -> Recorder:
        recorder = Recorder(tmp_path / "answers")
        mmlu.measure(TorchEngine(loaded), MMLUConfig(data=str(folder), **options), recorder.context)
        return recorder

    return run


def shot(fields: Record, answer: bool) -> str:
    question, a, b, c, d, letter = fields
    return f"{question.strip()}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:" + (f" {letter}\n\n" if answer else "")


def expected_prompt(folder: Path, subject: str, fields: Record, shots: int = 5) -> str:
    """MMLU's prompt, built by hand."""
    with (folder / "dev" / f"{subject}_dev.csv").open(encoding="utf-8", newline="") as file:
        dev = list(csv.reader(file))
    head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    return head + "".join(shot(tuple(row), True) for row in dev[:shots]) + shot(fields, False)  # type: ignore[arg-type]


def questions(folder: Path, subject: str) -> list[Record]:
    with (folder / "test" / f"{subject}_test.csv").open(encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)]  # type: ignore[misc]


@torch.no_grad()
def letter_logprobs(loaded: LoadedModel, prompt: str) -> list[float]:
    """One plain forward of one prompt."""
    assert loaded.tokenizer is not None
    encode = loaded.tokenizer.encode
    logits = loaded.model(torch.tensor([encode(prompt)])).logits[0, -1]
    letters = [encode(f" {letter}", add_special_tokens=False) for letter in "ABCD"]
    assert all(len(tokens) == 1 for tokens in letters)
    return [float(torch.log_softmax(logits, -1)[tokens[0]]) for tokens in letters]


def test_the_reading_keeps_every_character(folder: Path) -> None:
    rows = read_questions(folder / "test" / "anatomy_test.csv", "anatomy")
    kept = [(row["question"], *row["choices"], "ABCD"[row["answer"]]) for row in rows]
    assert kept == AWKWARD + [record("anatomy", i) for i in range(6)]
    assert {row["subject"] for row in rows} == {"anatomy"}


@pytest.mark.parametrize("shots", [5, 0])
def test_the_model_sees_the_prompts_of_mmlu(
    evaluate: Callable[..., Recorder], loaded: LoadedModel, folder: Path, shots: int
) -> None:
    seen: list[list[int]] = []
    forward = loaded.model.forward

    def spy(input_ids: torch.Tensor, **options: Any) -> Any:
        seen.extend(row.tolist() for row in input_ids)
        return forward(input_ids, **options)

    loaded.model.forward = spy
    evaluate(num_fewshot=shots, batch_size=1, engine="stock")
    assert loaded.tokenizer is not None
    expected = [expected_prompt(folder, s, fields, shots) for s in SUBJECTS for fields in questions(folder, s)]
    assert sorted(seen) == sorted(loaded.tokenizer.encode(prompt) for prompt in expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_accuracy_and_answers_equal_a_plain_computation(
    evaluate: Callable[..., Recorder], loaded: LoadedModel, folder: Path, engine: str
) -> None:
    done = evaluate(batch_size=4, engine=engine)
    answers = pd.read_parquet(done.path)
    assert [row.subject for row in done.rows] == list(SUBJECTS)
    for row in done.rows:
        asked = questions(folder, row.subject)
        logprobs = [letter_logprobs(loaded, expected_prompt(folder, row.subject, fields)) for fields in asked]
        predicted = [max(range(4), key=four.__getitem__) for four in logprobs]
        gold = ["ABCD".index(fields[5]) for fields in asked]
        correct = sum(p == g for p, g in zip(predicted, gold, strict=True))
        mine = answers[answers["subject"] == row.subject]
        assert (row.n, row.correct) == (len(asked), correct)
        assert row.accuracy == pytest.approx(correct / len(asked))
        assert mine["question_id"].tolist() == list(range(len(asked)))
        assert (mine["predicted"].tolist(), mine["gold"].tolist()) == (predicted, gold)
        written = mine[[f"logprob_{letter}" for letter in "abcd"]].to_numpy()
        torch.testing.assert_close(torch.tensor(written), torch.tensor(logprobs).double(), atol=1e-4, rtol=0)
    assert answers["predicted"].nunique() > 1, "a model that always gives one letter would test nothing"
    assert not list(done.path.parent.glob(".*")), "a temporary file is left"


def test_a_row_has_every_column(evaluate: Callable[..., Recorder]) -> None:
    anatomy, _, zoology = evaluate().rows
    assert (anatomy.task, anatomy.num_fewshot, anatomy.partial, anatomy.label) == ("mmlu", 5, False, "cell")
    p = anatomy.accuracy
    assert anatomy.stderr == pytest.approx((p * (1 - p) / (anatomy.n - 1)) ** 0.5)
    assert (zoology.n, zoology.stderr) == (1, None), "one question has no standard error"
    assert zoology.wall_s is not None
    assert anatomy.wall_s == zoology.wall_s > 0


def test_every_row_says_how_many_tokens_the_whole_task_took(
    evaluate: Callable[..., Recorder], loaded: LoadedModel, folder: Path
) -> None:
    assert loaded.tokenizer is not None
    prompts = [expected_prompt(folder, s, fields) for s in SUBJECTS for fields in questions(folder, s)]
    read = sum(len(loaded.tokenizer.encode(prompt)) for prompt in prompts)
    prefix, stock = ({(row.forward_tokens, row.stock_tokens) for row in evaluate(engine=e).rows} for e in ENGINES)
    assert stock == {(read, read)}
    ((less, same),) = prefix
    assert same == read
    assert less is not None
    assert less < 0.5 * read


@pytest.mark.parametrize("engine", ENGINES)
def test_the_logprobs_are_those_of_the_unmodified_wrapper(
    evaluate: Callable[..., Recorder], loaded: LoadedModel, folder: Path, engine: str
) -> None:
    answers = pd.read_parquet(evaluate(batch_size=3, engine=engine).path)
    tasks = load_tasks(MMLUConfig(data=str(folder)))
    plain = HFLM(pretrained=loaded.model, tokenizer=copy.deepcopy(loaded.tokenizer), batch_size=3)
    samples = stock.evaluate(model=plain, tasks=tasks, num_fewshot=5, task_manager=task_manager())["samples"]
    expected = [[p for p, _ in s["filtered_resps"]] for name in sorted(samples) for s in samples[name]]
    mine = answers[[f"logprob_{letter}" for letter in "abcd"]].to_numpy()
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(expected).double(), atol=1e-5, rtol=0)


def test_the_hub_and_a_folder_give_the_same_requests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_hub(path: str, name: str) -> datasets.DatasetDict:
        assert path == "cais/mmlu"
        columns: dict[str, list[Any]] = {"question": [], "subject": [], "choices": [], "answer": []}
        splits = {split: copy.deepcopy(columns) for split in ("test", "dev")}
        for split, rows in splits.items():
            for question, *choices, letter in csv.reader((folder / split / f"{name}_{split}.csv").open(newline="")):
                for column, value in zip(rows, (question, name, choices, "ABCD".index(letter)), strict=True):
                    rows[column].append(value)
        return datasets.DatasetDict({split: datasets.Dataset.from_dict(rows) for split, rows in splits.items()})

    local = load_tasks(MMLUConfig(data=str(folder), subjects=("anatomy",)))
    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    hub = load_tasks(MMLUConfig(subjects=("anatomy",)))
    for task in (*local, *hub):
        task.set_config("num_fewshot", 5)
        task.build_all_requests()
    assert [i.args for i in local[0].instances] == [i.args for i in hub[0].instances]
    changed = {"custom_dataset", "dataset_kwargs", "metadata"}
    configs = [{k: v for k, v in task.dump_config().items() if k not in changed} for task in (local[0], hub[0])]
    assert configs[0] == configs[1], "only where the rows come from may differ"


def test_without_data_the_whole_group_is_taken_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_hub(path: str, name: str) -> datasets.DatasetDict:
        rows = [{"question": "q", "subject": name, "choices": list("wxyz"), "answer": 0}] * 5
        return datasets.DatasetDict(dict.fromkeys(("test", "dev"), datasets.Dataset.from_list(rows)))

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    tasks = load_tasks(MMLUConfig())
    assert [task.task_name for task in tasks] == [f"mmlu_{subject}" for subject in known_subjects()]
    assert len(tasks) == 57


def test_a_hub_that_cannot_be_reached_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_arguments: object, **_options: object) -> NoReturn:
        raise ConnectionError("Couldn't reach 'cais/mmlu' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(QbenchError, match=r"Couldn't reach.*measure\.mmlu\.data.*test/<subject>_test\.csv"):
        load_tasks(MMLUConfig())


@pytest.mark.parametrize("options", [{"limit": 2}, {"subjects": ("zoology", "anatomy")}])
def test_limit_and_subjects_mark_rows_partial(evaluate: Callable[..., Recorder], options: dict[str, Any]) -> None:
    done = evaluate(**options)
    assert all(row.partial for row in done.rows)
    counts = {row.subject: row.n for row in done.rows}
    limited = {"anatomy": 2, "made_up_world": 2, "zoology": 1}
    assert counts == (limited if "limit" in options else {"anatomy": 10, "zoology": 1})
    assert done.progress[-1] == ("mmlu", sum(counts.values()), sum(counts.values()))
    assert len(pd.read_parquet(done.path)) == sum(counts.values())


def test_the_batch_size_does_not_change_answers(evaluate: Callable[..., Recorder]) -> None:
    one, many = (pd.read_parquet(evaluate(batch_size=size).path) for size in (1, 7))
    pd.testing.assert_frame_equal(one, many, check_exact=False, atol=1e-4)
    assert one["predicted"].tolist() == many["predicted"].tolist()


def test_progress_rises_to_the_total(evaluate: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "REPORT_EVERY_S", 0.0)
    progress = evaluate(batch_size=2).progress
    assert progress == [("mmlu", done, 20) for done in range(21)]


def test_progress_is_not_reported_for_every_question(evaluate: Callable[..., Recorder]) -> None:
    progress = evaluate().progress
    assert (progress[0], progress[-1]) == (("mmlu", 0, 20), ("mmlu", 20, 20))
    assert len(progress) < 20


def test_model_and_tokenizer_are_left_as_they_were(evaluate: Callable[..., Recorder], loaded: LoadedModel) -> None:
    def state() -> list[tuple[str, int, torch.dtype]]:
        named = loaded.model.named_parameters(remove_duplicate=False)
        return [(name, tensor.data_ptr(), tensor.dtype) for name, tensor in named]

    before = state()
    evaluate(limit=1)
    assert state() == before
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.pad_token is None, "the wrapper's padding token must not leak"


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_is_an_error_and_leaves_nothing_behind(
    loaded: LoadedModel, folder: Path, tmp_path: Path, engine: Reading
) -> None:
    with torch.no_grad():
        loaded.model.model.norm.weight.fill_(float("nan"))
    recorder = Recorder(tmp_path / "answers")
    config = MMLUConfig(data=str(folder), subjects=("made_up_world",), engine=engine)
    with pytest.raises(QbenchError, match="mmlu, first in mmlu_made_up_world: the model's logits are NaN"):
        mmlu.measure(TorchEngine(loaded), config, recorder.context)
    assert not recorder.rows
    assert not recorder.path.exists()


def test_prompts_that_do_not_fit_are_counted(
    evaluate: Callable[..., Recorder], loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    loaded.model.config.max_position_embeddings = 64
    evaluate(limit=1)
    assert "3 of 3 prompts exceed the model's 64 tokens" in caplog.text


@pytest.mark.parametrize("engine", ENGINES)
def test_letters_of_two_tokens_are_scored_whole(
    folder: Path, loaded: LoadedModel, tmp_path: Path, engine: Reading
) -> None:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    single_bytes = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="!")
    recorder = Recorder(tmp_path / "answers")
    model = LoadedModel(
        model=loaded.model, tokenizer=single_bytes, device=loaded.device, dtype=loaded.dtype, kernel="test",
        linear_bytes=1, linear_weights=1,
    )  # fmt: skip
    config = MMLUConfig(data=str(folder), subjects=("zoology",), num_fewshot=1, engine=engine)
    mmlu.measure(TorchEngine(model), config, recorder.context)
    prompt = expected_prompt(folder, "zoology", questions(folder, "zoology")[0], shots=1)
    tokens = single_bytes.encode(prompt + " B")
    with torch.no_grad():
        logprobs = torch.log_softmax(loaded.model(torch.tensor([tokens])).logits[0], -1)
    expected = logprobs[-3, tokens[-2]] + logprobs[-2, tokens[-1]]
    assert pd.read_parquet(recorder.path)["logprob_b"][0] == pytest.approx(float(expected), abs=1e-4)


def test_a_model_without_tokenizer_is_refused(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    bare = LoadedModel(
        model=loaded.model, tokenizer=None, device=loaded.device, dtype=loaded.dtype, kernel="test",
        linear_bytes=1, linear_weights=1,
    )  # fmt: skip
    with pytest.raises(QbenchError, match="no tokenizer"):
        mmlu.measure(TorchEngine(bare), MMLUConfig(data=str(folder)), Recorder(tmp_path).context)


def remove_dev(root: Path) -> None:
    (root / "dev" / "zoology_dev.csv").unlink()


def no_csv(root: Path) -> None:
    for path in root.glob("test/*.csv"):
        path.unlink()


def append(line: bytes) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        with (root / "test" / "made_up_world_test.csv").open("ab") as file:
            file.write(line)

    return damage


def empty(root: Path) -> None:
    (root / "test" / "zoology_test.csv").write_bytes(b"")


def three_shots(root: Path) -> None:
    write(root / "dev" / "zoology_dev.csv", AWKWARD[:3])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_dev, r"zoology_dev\.csv: No such file"),
        (no_csv, r"mmlu: no test/\*_test\.csv here; measure\.mmlu\.data takes a folder"),
        # Nine records, one of which spans three lines.
        (append(b"q,a,b,c,A\n"), r"made_up_world_test\.csv, line 12: 5 columns instead of 6"),
        (append(b"q,a,b,c,d,A\nq,a,b,c,d,E\n"), r"made_up_world_test\.csv, line 13: the answer is 'E'"),
        (append(b"q,a,b,c,d,\n"), r"line 12: the answer is ''"),
        (append(b"q,a,b,c,d,AB\n"), r"line 12: the answer is 'AB'"),
        (append(b"q\xff,a,b,c,d,A\n"), r"made_up_world_test\.csv, line \d+ or later: not a CSV in UTF-8"),
        (empty, r"zoology_test\.csv: no questions"),
        (three_shots, r"zoology: 3 dev questions, fewer than measure\.mmlu\.num_fewshot \(5\)"),
    ],
)
def test_a_folder_that_is_not_in_the_layout(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(QbenchError, match=message):
        load_tasks(MMLUConfig(data=str(folder)))


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match=r"nowhere: no test/\*_test\.csv"):
        load_tasks(MMLUConfig(data=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("subject", "hint"),
    [("zoologie", "did you mean zoology?"), ("xyz", "there are anatomy, made_up_world, zoology")],
)
def test_an_unknown_subject_has_a_suggestion(folder: Path, subject: str, hint: str) -> None:
    with pytest.raises(QbenchError) as error:
        load_tasks(MMLUConfig(data=str(folder), subjects=("anatomy", subject)))
    assert str(error.value) == f"measure.mmlu.subjects: no subject '{subject}'; {hint}"


def test_an_unknown_subject_of_the_hub_is_found_before_it_is_asked() -> None:
    with pytest.raises(QbenchError, match="no subject 'anatomie'; did you mean anatomy"):
        load_tasks(MMLUConfig(subjects=("anatomie",)))


def test_demo_is_the_folder_of_the_demo_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MMLU_DIR", folder)
    tasks = load_tasks(MMLUConfig(data="demo"))
    assert [task.task_name for task in tasks] == [f"mmlu_{subject}" for subject in SUBJECTS]


@needs_mmlu
@pytest.mark.parametrize(("split", "count"), [("test", 14042), ("dev", 285)])
def test_the_published_files_are_read_whole(split: str, count: int) -> None:
    assert find_subjects(MMLU) == known_subjects()
    read = [row for s in known_subjects() for row in read_questions(MMLU / split / f"{s}_{split}.csv", s)]
    assert len(read) == count
