"""A server of OpenAI's HTTP API as a cell: one that runs, by its URL, or one that a command starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from qbench import DISTRIBUTION
from qbench.backends.gguf.options import FILE, GGUF
from qbench.config import Backend
from qbench.config.backends import Engine
from qbench.config.target import Target
from qbench.errors import QbenchError, UnavailableError
from qbench.model import ggml
from qbench.model.ggml import DataFreeQuant

if TYPE_CHECKING:
    from qbench.engine.base import About
    from qbench.engine.server.client import Endpoint
    from qbench.engine.server.engine import ServerEngine
    from qbench.engine.server.facts import ServerFacts
    from qbench.engine.server.process import ServerProcess
    from qbench.model.calibration import Calibration
    from qbench.model.load import LoadOptions

HOST = "127.0.0.1"


class Server(Backend):
    """Whatever serves the run's model behind OpenAI's `/v1/completions`."""

    title: ClassVar[str] = "a server of OpenAI's API: vLLM, SGLang, llama.cpp, …"
    devices: ClassVar[str] = "what the server runs on"
    install: ClassVar[str] = f"pip install '{DISTRIBUTION}[server]'"
    libraries: ClassVar[tuple[str, ...]] = ("qbench", "transformers", "tokenizers", "httpx")
    modules: ClassVar[tuple[str, ...]] = ("transformers", "httpx")
    quantization: ClassVar[tuple[str, ...]] = ("gguf",)
    engine: ClassVar[Engine] = "server"
    color: ClassVar[str | None] = "#35978f"
    kind: Literal["server"] = "server"
    url: str | None = Field(default=None, description="of a server that runs, e.g. http://127.0.0.1:8000")
    command: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="starts one: program and arguments, with {port}, {model} (the model's folder) and {gguf} filled in",
    )
    model: str | None = Field(default=None, description="name asked of the server; the first that it serves")
    api_key_env: str | None = Field(default=None, description="name of the environment variable with its key")
    gguf: DataFreeQuant | None = Field(
        default=None, description="the quantization of the GGUF file that {gguf} stands for"
    )
    start_timeout_s: float = Field(default=300.0, gt=0, allow_inf_nan=False, description="for `command` to be ready")
    request_timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False, description="for one request")
    file: Path | None = Field(default=None, description="a GGUF file for {gguf} instead of one that is made")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.username or parts.password:
            raise ValueError("holds a password; name a variable with `api_key_env:`")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is no address of a server; give one like http://127.0.0.1:8000")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not (value.isidentifier() and value.isascii()):
            raise ValueError("is no name of an environment variable; give the name, and the key in the environment")
        return value

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.url is None) == (self.command is None):
            found = "neither" if self.url is None else "both"
            raise ValueError(f"give exactly one of url and command (found {found})")
        arguments = " ".join(self.command or ())
        if self.command and "{port}" not in arguments:
            raise ValueError("command: has no {port}; the server has to listen where it is asked")
        wanted, given = "{gguf}" in arguments, self.gguf is not None or self.file is not None
        if wanted and not given:
            raise ValueError("command: has {gguf}; say which with `gguf:`, e.g. Q8_0, or `file:`")
        if given and not wanted:
            raise ValueError("gguf and file: are for a command with {gguf}")
        return self

    @property
    def weight_bits(self) -> int | None:
        """Of the GGUF file; what other servers hold, they do not say."""
        return ggml.bits(self.gguf) if self.gguf else None

    @property
    def is_reference(self) -> bool:
        """Never: a server scores no windows, and what it holds is only its word."""
        return False

    @property
    def makes_checkpoint(self) -> bool:
        return self.gguf is not None and self.file is None

    def with_checkpoint(self, folder: Path) -> Self:
        return self.model_copy(update={"file": folder / FILE})

    def resolved(self) -> Self:
        if self.file and not self.file.expanduser().is_file():
            raise QbenchError(f"backends.{self.label}.file: no file {self.file}")
        return self

    def refusal(self, target: Target) -> str | None:
        if self.api_key_env and not os.environ.get(self.api_key_env, "").strip():
            return f"api_key_env: the variable {self.api_key_env} is not set; export it before the run"
        return None

    def check_model(self, content: Mapping[str, Any]) -> None:
        """Refuse a model that cannot be written as GGUF, where a file is to be made."""
        if self.makes_checkpoint:
            self.as_gguf().check_model(content)

    def as_gguf(self) -> GGUF:
        """The options by which the file is made."""
        return GGUF(label=self.label, quant=self.gguf)


CONFIG = Server


def quantize(options: LoadOptions, config: Server, calibration: Calibration | None, out: Path) -> float:
    """Write the GGUF file that the command gets; return the seconds spent quantizing.

    Raises:
        UnavailableError: what writes such files is not installed.
        QbenchError: see `qbench.backends.gguf.convert.convert`.
    """
    from qbench.backends import gguf

    try:
        return gguf.quantize(options, config.as_gguf(), calibration, out)
    except ImportError as error:
        raise UnavailableError(
            f"backends.{config.label}.gguf: the file cannot be written ({error}); `{GGUF.install}` installs what it "
            "needs, or give one as `file:`"
        ) from error


def load(options: LoadOptions, config: Server, calibration: Calibration | None) -> ServerEngine:
    """Start the server if it is a command's, wait for it, and find out what it can do.

    Raises:
        UnavailableError: there is no such program.
        QbenchError: the command ended, nothing answered in time, the key was refused, or the server serves another
            model or does not do what is needed (see `qbench.engine.server.engine.ServerEngine.probe`).
    """
    from qbench.engine.server.client import Endpoint
    from qbench.engine.server.facts import wait_until_ready
    from qbench.engine.server.process import ServerProcess, fill_in, free_port

    if config.makes_checkpoint:
        quantize(options, config, calibration, options.work)
        config = config.with_checkpoint(options.work)
    if config.url:
        return _connect(options, config, Endpoint(config.url, "", config.api_key_env), None)
    port = free_port()
    endpoint = Endpoint(f"http://{HOST}:{port}", "", config.api_key_env)
    values = {"port": str(port), "model": str(options.folder), "gguf": str(config.file and config.file.expanduser())}
    what = f"backends.{config.label}.command"
    process = ServerProcess(fill_in(config.command or (), values), what, endpoint.hide)
    try:
        wait_until_ready(endpoint, what, config.start_timeout_s, process.check)
        return _connect(options, config, endpoint, process)
    except BaseException:
        process.close()
        raise


def _connect(options: LoadOptions, config: Server, endpoint: Endpoint, process: ServerProcess | None) -> ServerEngine:
    """An engine of a server that is ready."""
    from qbench.engine.server.engine import ServerEngine
    from qbench.engine.server.facts import ask
    from qbench.model.find import read_config
    from qbench.model.load import load_tokenizer

    what = f"backends.{config.label}"
    facts = ask(endpoint, config.model, what)
    content, tokenizer = read_config(options.folder), load_tokenizer(options)
    if facts.vocab_size not in (None, content["vocab_size"]):
        raise QbenchError(
            f"{what}: {facts.model} at {endpoint.root} has {facts.vocab_size} tokens, and the run's model "
            f"{content['vocab_size']}: another model is behind it"
        )
    engine = ServerEngine(
        replace(endpoint, model=facts.model),
        _about(facts, content, tokenizer, options, endpoint),
        tokenizer,
        timeout_s=config.request_timeout_s,
        process=process,
    )
    try:
        engine.probe()
    except BaseException:
        engine.close()
        raise
    return engine


def _about(
    facts: ServerFacts, content: Mapping[str, Any], tokenizer: Any, options: LoadOptions, endpoint: Endpoint
) -> About:
    """What is known of the model behind a server: nothing of its weights."""
    from qbench.engine.base import About
    from qbench.engine.text import context_of
    from qbench.model.find import context_length

    limits = (context_length(content), facts.context)
    positions = min((limit for limit in limits if limit), default=None)
    # A request to look at a prompt's log-probabilities generates a token, too, and the prompt holds the last answer.
    contexts = (context_length(content), facts.context and facts.context - 2)
    return About(
        kernel=facts.kernel,
        dtype=None,
        device=str(options.device) if endpoint.local else None,
        weight_bytes=None,
        effective_bits_per_weight=None,
        vocab_size=content["vocab_size"],
        quantized_layers=None,
        expected_layers=None,
        lm_head_bits=None,
        max_position_embeddings=positions,
        context=min((limit for limit in contexts if limit), default=None) or context_of(tokenizer),
        bos_token_id=getattr(tokenizer, "bos_token_id", None),
        eos_token_id=getattr(tokenizer, "eos_token_id", None),
    )
