"""A conversation as a file: JSON with everything, Markdown to read. What a blind turn still hides is in neither."""

from __future__ import annotations

import json
import re
from typing import Any

from qbench.serve.store import SIDES, Conversation, Side
from qbench.serve.turns import shown
from qbench.text import human_bytes

VOTES = {"a": "A was preferred", "b": "B was preferred", "tie": "no difference"}


def first_difference(first: str, second: str) -> int | None:
    """Characters that two texts begin with in common; None if they are the same."""
    if first == second:
        return None
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def as_json(conversation: Conversation) -> str:
    """Every turn, those that were asked again or edited marked `replaced`."""
    turns = [
        {**shown(turn), "first_difference": first_difference(*(turn.answers[side].text for side in SIDES))}
        for turn in conversation.turns
    ]
    about = {"title": conversation.title, "model": conversation.model, "created": conversation.created}
    return json.dumps({**about, "turns": turns}, indent=2, ensure_ascii=False) + "\n"


def as_markdown(conversation: Conversation) -> str:
    """The turns that count, answers as they came."""
    lines = [f"# {conversation.title}", "", f"{conversation.model}, {conversation.created}", ""]
    for number, turn in enumerate((turn for turn in conversation.turns if not turn.replaced), start=1):
        told = shown(turn)
        settings = ", ".join(f"{name} {value}" for name, value in turn.settings.items() if name != "system")
        lines += [f"## {number}", "", f"{turn.mode}, {settings}" + (", blind" if turn.blind else ""), ""]
        if system := turn.settings.get("system"):
            lines += ["System prompt:", "", *_fenced(system)]
        lines += ["Prompt:", "", *_fenced(turn.prompt)]
        for side in SIDES:
            lines += [f"### {_heading(side, told['answers'][side])}", "", *_fenced(turn.answers[side].text)]
        place = first_difference(*(turn.answers[side].text for side in SIDES))
        lines += ["The answers are the same." if place is None else f"They differ after {place:,} characters."]
        lines += [f"Vote: {VOTES[turn.choice]}.", ""] if turn.choice else [""]
    return "\n".join(lines)


def _heading(side: Side, answer: dict[str, Any]) -> str:
    """`A: int4, 43 tokens, 212.4 tokens/s, 6.20 MiB of weights`."""
    words = [answer["backend"]] if answer.get("backend") else []
    if "tokens" in answer:
        words.append(f"{answer['tokens']:,} tokens")
    if answer.get("decode_tokens_per_s"):
        words.append(f"{answer['decode_tokens_per_s']:.1f} tokens/s")
    if answer.get("weight_bytes"):
        words.append(f"{human_bytes(answer['weight_bytes'])} of weights")
    if answer["state"] != "done":
        words.append(answer.get("error") or answer["state"])
    return f"{side.upper()}: {', '.join(words)}" if words else side.upper()


def _fenced(text: str) -> list[str]:
    """In a fence that nothing in the text closes."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", text, fence, ""]
