import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.records.redact import LINE_BYTES, MARGIN_BYTES, Redactor
from tests.support.runs import config, interpreter
from tests.support.runs import run_in_workers as run

TOKEN = "hf_" + "aB3" * 10


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, which is reached over a link."""
    (tmp_path / "disk" / "me").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    return tmp_path / "home" / "me"


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "AWS_SECRET", "db_password", "PASSWORD_OF_MINE"]
)
def test_values_of_secret_variables_are_no_text_of_a_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, 'open "sesame"')
    redactor = Redactor.here()
    assert redactor.text('login with open "sesame" failed') == "login with *** failed"
    assert redactor.text('{"password": "open \\"sesame\\""}') == '{"password": "***"}'


def test_short_values_and_other_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_TOKEN", "true")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallelism")
    assert Redactor.here().text("true parallelism") == "true parallelism"


def test_a_key_of_several_lines_is_hidden_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_KEY", "first-line-of-it\nsecond-line-of-it\nend")
    assert Redactor.here().text("key: first-line-of-it\n  second-line-of-it") == "key: ***\n  ***"


def test_hub_tokens_are_known_by_their_form_and_from_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("kept-by-hf-auth-login\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    text = f"Bearer {TOKEN}, or kept-by-hf-auth-login; hf_hub_download stays"
    assert Redactor.here().text(text) == "Bearer ***, or ***; hf_hub_download stays"


def test_a_home_folder_is_a_tilde_by_both_of_its_names_and_only_as_a_whole(home: Path) -> None:
    redact = Redactor.here().text
    for folder in (home, home.resolve()):
        assert redact(f"in {folder}/models/x, '{folder}', file://{folder}.") == "in ~/models/x, '~', file://~."
        for other in (f"{folder}2/x", f"{folder}-old", f"{folder}.bak", f"/backup{folder}"):
            assert redact(other) == other


def test_a_home_that_is_the_root_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert Redactor.here().text("/usr/lib / x") == "/usr/lib / x"


def test_numbers_and_keys_of_a_json_value_stay() -> None:
    redactor = Redactor({"12345678"}, set())
    value = {"12345678": [12345678, 0.12345678, None, True], "text": ("a 12345678",)}
    assert redactor.value(value) == {"12345678": [12345678, 0.12345678, None, True], "text": ["a ***"]}


@given(data=st.binary(max_size=60))
def test_bytes_that_hold_no_secret_stay_as_they_are(data: bytes) -> None:
    assert Redactor(set(), {"/home/me"}).encoded(data) == data


@settings(deadline=None, max_examples=50)
@given(before=st.integers(MARGIN_BYTES - 40, MARGIN_BYTES + 5), secret=st.sampled_from([TOKEN, "Geheimniskrämerei"]))
def test_a_line_without_end_is_never_cut_in_a_secret(before: int, secret: str) -> None:
    redactor = Redactor({"Geheimniskrämerei"}, set())
    data = b"x" * (LINE_BYTES - before) + secret.encode() + b" " * before
    cut = redactor.complete(data)
    assert 0 < cut < len(data)
    assert redactor.encoded(data[:cut]) + redactor.encoded(data[cut:]) == redactor.encoded(data)


LEAK = (
    "import os, sys, qbench.run.worker as worker; "
    "print('log:', os.environ['HF_TOKEN'], os.path.expanduser('~/model')); "
    "sys.argv = sys.argv[2:]; worker.main()"
)
"""A worker that prints what it should not."""

FAIL = (
    "import os, sys, qbench.run.cell as cell, qbench.run.worker as worker; "
    "raised = RuntimeError('401 for ' + os.environ['HF_TOKEN'] + ' in ' + os.path.expanduser('~/model')); "
    "cell.Cell._load = lambda self: (_ for _ in ()).throw(raised); "
    "sys.argv = sys.argv[2:]; worker.main()"
)
"""A worker whose libraries raise what they should not."""


def test_no_file_of_a_run_names_a_token_or_the_home_folder(
    home: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (home / "model").symlink_to(tiny_llama)
    pythons = [interpreter(home, f'exec {sys.executable} -c "{script}" "$@"') for script in (LEAK, FAIL)]
    backends = [{"kind": "fp16", "python": pythons[0]}, {"kind": "int4", "python": pythons[1]}]
    folder, ok, watcher = run(config(home / "model", backends), home / "results")
    assert not ok
    rows = {row.label: row for row in watcher.finished}
    assert (rows["fp16"].status, rows["int4"].status) == ("ok", "error")
    assert rows["int4"].error == "RuntimeError: 401 for *** in ~/model"
    assert "log: *** ~/model\n" in (folder / "logs" / "fp16.log").read_text()
    assert '"path": "~/model"' in (folder / "run.json").read_text()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        for secret in (TOKEN, str(home), str(home.resolve())):
            assert secret.encode() not in content, path


def test_a_run_in_the_home_folder_goes_on_as_the_same_run(
    home: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says ~, the configuration the path in full."""
    (home / "model").symlink_to(tiny_llama)
    settings = config(home / "model", [{"kind": "fp16", "python": interpreter(home, "exit 3")}])
    assert [run(settings, home / "results")[2].finished[0].status for _ in range(2)] == ["crashed", "crashed"]
