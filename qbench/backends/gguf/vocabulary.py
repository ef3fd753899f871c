"""A model's tokenizer as llama.cpp's: tokens with their kinds, merges or scores, special tokens, chat template.

Known are BPE over bytes (GPT-2, Llama 3, Qwen2) and BPE with byte fallback (Llama 2, Mistral), by what is in
`tokenizer.json`. A file without a vocabulary still runs here, where the model's own tokenizer reads all texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter, TokenType

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PRE_TOKENIZERS = {_WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORDS + r"\p{N}" + _REST: "qwen2"}
"""llama.cpp's names of rules, by the pattern in tokenizer.json that splits a text by them."""

GPT2 = "gpt-2"
"""The rules of tokenizers' own ByteLevel, and the nearest to patterns that llama.cpp has no name for."""

SPECIAL = ("bos", "eos", "unk", "pad", "sep")


def write(writer: GGUFWriter, tokenizer: Any, vocab_size: int, what: str) -> None:
    """Add the vocabulary to a file; none where there is no tokenizer, or one of a kind that llama.cpp lacks."""
    core = json.loads(tokenizer.backend_tokenizer.to_str()) if getattr(tokenizer, "is_fast", False) else {}
    model = core.get("model", {})
    if model.get("type") != "BPE":
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("llama" if model["byte_fallback"] else "gpt2")
    if not model["byte_fallback"]:
        writer.add_tokenizer_pre(pre_tokenizer(core))
    tokens, kinds = _tokens(core, vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    if model["byte_fallback"]:
        writer.add_token_scores(_scores(tokens, model["merges"]))
        writer.add_add_space_prefix(_adds_space(core))
    else:
        writer.add_token_merges(merges)
    for name in SPECIAL:
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    _add_beginning_and_end(writer, tokenizer)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def pre_tokenizer(core: Mapping[str, Any]) -> str:
    """llama.cpp's name of the rules that split a text before the merges."""
    found = core.get("pre_tokenizer") or {}
    parts = found.get("pretokenizers", [found])
    patterns = [part["pattern"].get("Regex", "") for part in parts if part.get("type") == "Split"]
    return next((PRE_TOKENIZERS[pattern] for pattern in patterns if pattern in PRE_TOKENIZERS), GPT2)


def _tokens(core: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """The tokens by number and their kinds; rows of the embedding that have none are filled up."""
    model = core["model"]
    by_number = {number: token for token, number in model["vocab"].items()}
    added = {token["id"]: token for token in core.get("added_tokens", ())}
    tokens: list[str] = []
    kinds: list[int] = []
    for number in range(vocab_size):
        if number in added:
            tokens.append(added[number]["content"])
            special = added[number]["special"]
            unknown = added[number]["content"] == model.get("unk_token")
            kinds.append(TokenType.UNKNOWN if unknown else TokenType.CONTROL if special else TokenType.USER_DEFINED)
        elif number in by_number:
            token = by_number[number]
            byte = model["byte_fallback"] and len(token) == 6 and token.startswith("<0x")
            tokens.append(token)
            kinds.append(TokenType.BYTE if byte else TokenType.NORMAL)
        else:
            tokens.append(f"[PAD{number}]")
            kinds.append(TokenType.UNUSED)
    return tokens, kinds


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """By which llama.cpp chooses the next merge: the earlier in the list, the higher. 0 for what no merge makes."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair if isinstance(pair, list) else pair.split(" ")), rank)
    return [-float(ranks.get(token, 0)) for token in tokens]


def _adds_space(core: Mapping[str, Any]) -> bool:
    """Whether a text is read as if it began with a space."""
    normalizer = core.get("normalizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), core.get("pre_tokenizer") or {}]
    return any(step.get("type") == "Prepend" or step.get("prepend_scheme") in ("first", "always") for step in steps)


def _add_beginning_and_end(writer: GGUFWriter, tokenizer: Any) -> None:
    """Whether a text gets a token before and behind it, as this tokenizer does by itself."""
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
