"""The client of servers: what it makes of streams, and of servers that do something wrong."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from qbench.engine.server.client import Completion, Endpoint, complete, open_client
from qbench.engine.server.session import ServerSession, token_times
from qbench.errors import QbenchError, describe_fault
from tests.support.fault_server import FaultServer, serving

KEY = "sk-a-key-that-nobody-may-see"
PROMPT = [1, 2, 3]


def ask(endpoint: Endpoint, tokens: int = 8, *, at_once: int = 1, timeout_s: float = 10) -> list[Completion]:
    async def all_at_once() -> list[Completion]:
        async with open_client(endpoint) as client:
            requests = [complete(client, endpoint, PROMPT, tokens, timeout_s=timeout_s) for _ in range(at_once)]
            return await asyncio.gather(*requests)

    return asyncio.run(all_at_once())


def one(fault: str, *, timeout_s: float = 10) -> Completion:
    with serving(fault) as server:
        return ask(Endpoint(server.url, "m"), timeout_s=timeout_s)[0]


def test_every_event_has_its_time_and_the_count_is_the_servers() -> None:
    with serving("slow") as server:
        answers = ask(Endpoint(f"{server.url}/v1/", "m"), at_once=20)
    for answer in answers:
        assert (answer.error, answer.text, answer.tokens, answer.prompt_tokens) == (None, "abcdefgh", 8, 3)
        assert len(answer.token_s) == 8
        gaps = np.diff([answer.sent_s, *answer.token_s])
        assert (gaps > 0).all()
        assert gaps.sum() >= 8 * 0.05  # the server waits so long before each
        assert answer.sent_s < answer.token_s[0] <= answer.token_s[-1] <= answer.end_s
        assert 0 < answer.client_delay_s < answer.end_s - answer.sent_s


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("hang", "timeout", "no answer within 0.3 s"),
        ("http_500", "http_500", "CUDA out of memory"),
        ("closed", "closed", "in the middle of an answer, after 3 pieces"),
        ("wrong_usage", "wrong_counts", "generated 56 tokens: 8 were asked for, 8 came"),
        ("bad_json", "bad_json", "not what OpenAI's API says"),
        ("no_stream", "no_stream", "does not stream"),
    ],
)
def test_a_fault_is_an_error_of_its_kind_and_never_raised(fault: str, kind: str, words: str) -> None:
    answer = one(fault, timeout_s=0.3 if fault == "hang" else 10)
    assert answer.error == kind
    assert words in answer.detail


def test_what_is_no_server_at_all_does_not_answer() -> None:
    with serving() as server:
        url = server.url
    assert ask(Endpoint(url, "m"))[0].error == "connect"


def test_a_key_is_sent_and_appears_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", KEY)
    with serving("unauthorized") as server:
        endpoint = Endpoint(server.url, "m", "MINE")
        answer = ask(endpoint)[0]
    assert answer.error == "http_401"
    assert "bad key Bearer ***" in answer.detail
    assert KEY not in repr((answer, endpoint))
    monkeypatch.delenv("MINE")
    with pytest.raises(QbenchError, match="the variable MINE is not set"):
        ask(endpoint)


def session(server: FaultServer) -> ServerSession:
    endpoint = Endpoint(server.url, "m")

    def send(prompts: object, new_tokens: int) -> list[Completion]:
        return ask(endpoint, new_tokens, at_once=2)

    return ServerSession(lambda ids: ids, send, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("early", "stopped after 4 of 8 tokens"),
        ("wrong_prompt", "counts 9 tokens in a prompt of 3"),
        ("cached", "had 3 of a prompt's 3 tokens in its cache"),
        ("closed", "in the middle of an answer"),
    ],
)
def test_a_generation_that_is_not_what_was_asked_for_gives_no_figures(fault: str, words: str) -> None:
    with serving(fault) as server, pytest.raises(QbenchError, match=words):
        session(server).generate(np.array([PROMPT, PROMPT]), 8)


def test_a_server_without_memory_is_out_of_memory() -> None:
    with serving("http_500") as server, pytest.raises(QbenchError) as error:
        session(server).generate(np.array([PROMPT, PROMPT]), 8)
    assert describe_fault(error.value)[0] == "oom"


def test_events_are_counted_where_usage_is_missing() -> None:
    with serving("no_usage") as server:
        assert len(session(server).generate(np.array([PROMPT, PROMPT]), 8).step_s) == 7
        server.fault = "pairs"
        assert len(session(server).generate(np.array([PROMPT, PROMPT]), 8).step_s) == 7  # by usage


def test_times_of_a_generation_are_those_of_the_tokens() -> None:
    """Worked out by hand: two requests, three tokens each, the second one later."""
    early = Completion(0.0, token_s=[10.0, 11.0, 12.0], tokens=3, prompt_tokens=3, text="abc", finish="length")
    late = Completion(0.0, token_s=[10.5, 12.5, 13.5], tokens=3, prompt_tokens=3, text="abc", finish="length")
    found = ServerSession(lambda ids: ids, lambda prompts, new: [early, late], None).generate(  # type: ignore[arg-type]
        np.array([PROMPT, PROMPT]), 3
    )
    assert found.step_s == (2.5, 1.0)  # from the first token of any to the last of all
    assert found.itl_s == (1.0, 1.0, 2.0, 1.0)
    assert found.texts == ("abc", "abc")


def test_tokens_of_an_event_with_several_lie_between_events() -> None:
    assert token_times([1.0, 2.0, 4.0], 3).tolist() == [1.0, 2.0, 4.0]
    assert token_times([1.0, 2.0, 4.0], 5).tolist() == [1.0, 1.5, 2.0, 3.0, 4.0]
