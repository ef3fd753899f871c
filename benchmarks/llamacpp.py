"""Our engine beside llama.cpp's own tools on one GGUF file: tokens/s, and perplexity. The goal is within 5 %.

`llama-batched-bench` and `llama-perplexity` come from llama.cpp built at the commit that llama-cpp-python has:

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xf llama_cpp_python-*.tar.gz
    cmake -B build llama_cpp_python-*/vendor/llama.cpp -DLLAMA_CURL=OFF
    cmake --build build --target llama-batched-bench llama-perplexity

Both are given the same threads, prompt and new tokens, and take turns. Ours also chooses each token, unlike the tool.
Perplexity follows the tool's protocol: the second half of each window, of the tokens that llama.cpp makes.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import record
import torch

from qbench import demo
from qbench.backends import gguf
from qbench.backends.gguf.export import tokenize
from qbench.engine.llama_cpp.context import CELLS, Model
from qbench.engine.llama_cpp.engine import LlamaCppEngine
from qbench.model.load import LoadOptions

ATTEMPTS = 4
"""The tools print from a thread of their own, which on a busy machine can lose its lines when they end."""


def tool_speed(options: argparse.Namespace, batch_size: int) -> tuple[float, float]:
    """Tokens/s of prefill and decode by llama-batched-bench."""
    cells = -(-(options.prompt + options.new) // CELLS) * CELLS
    command: list[object] = [
        *(options.tools / "llama-batched-bench", "-m", options.file, "-c", cells * batch_size),
        *("-npp", options.prompt, "-ntg", options.new, "-npl", batch_size),
        *("-t", options.threads, "-lm", "none", "--output-format", "jsonl"),
    ]
    row = json.loads(found_in(command, r"\{.*\}"))
    return row["speed_pp"], row["speed_tg"]


def found_in(command: list[object], pattern: str) -> str:
    """What matches, or the pattern's group, in what a command prints."""
    for _ in range(ATTEMPTS):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        found = re.search(pattern, done.stdout + done.stderr)
        if found:
            return found[found.re.groups]
    sys.exit(f"{command[0]} ended with {done.returncode} and without a result:\n{done.stdout}{done.stderr}")


def our_speed(engine: LlamaCppEngine, options: argparse.Namespace, batch_size: int) -> tuple[float, float]:
    """The same by our engine, warmed up as the tool is."""
    prompts = np.random.default_rng(0).integers(engine.about.vocab_size, size=(batch_size, options.prompt))
    session = engine.session(batch_size, options.prompt + options.new)
    session.generate(prompts[:, :16], 1)
    # As many steps as the tool: the first token comes from the prefill.
    found = session.generate(prompts, options.new + 1)
    session.close()
    return prompts.size / found.ttft_s, batch_size * options.new / sum(found.step_s)


def speeds(engine: LlamaCppEngine, options: argparse.Namespace) -> record.Rows:
    """A row for prefill and decode at each batch size: medians of the turns, and ours ÷ the tool's."""
    rows = []
    for batch_size in options.batch_sizes:
        turns = [
            (our_speed(engine, options, batch_size), tool_speed(options, batch_size)) for _ in range(options.turns)
        ]
        for number, phase in enumerate(("prefill", "decode")):
            ours, tool = (statistics.median(turn[who][number] for turn in turns) for who in (0, 1))
            ratio = statistics.median(turn[0][number] / turn[1][number] for turn in turns)
            rows.append({"phase": phase, "batch_size": batch_size, "ours": ours, "batched_bench": tool, "ratio": ratio})
    return rows


def perplexities(engine: LlamaCppEngine, options: argparse.Namespace) -> record.Rows:
    """One row: ours, llama-perplexity's, and ours ÷ the tool's."""
    text = options.text.read_text(encoding="utf-8")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        command: list[object] = [
            options.tools / "llama-perplexity",
            "-m",
            options.file,
            "-f",
            file.name,
            "-c",
            options.window,
        ]
        command += ["-t", options.threads, "--chunks", options.chunks]
        tool = float(found_in(command, r"Final estimate: PPL = ([\d.]+)"))
    ids = np.array(tokenize(Model(options.file, vocabulary_only=True), text))
    windows = ids[: len(ids) // options.window * options.window].reshape(-1, options.window)[: options.chunks]
    half = options.window // 2
    truth = [engine.score(window).truth[half:].astype(np.float64) for window in windows]
    ours = float(np.exp(-np.mean(truth)))
    return [{"windows": len(windows), "ours": ours, "llama_perplexity": tool, "ratio": ours / tool}]


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a GGUF file without a token before every text (BOS)")
    parser.add_argument("--tools", type=Path, required=True, help="folder of llama.cpp's tools, such as build/bin")
    parser.add_argument("--model", type=Path, default=demo.MODEL_DIR, help="the folder it was made of")
    parser.add_argument("--text", type=Path, default=Path(demo.__file__).parent / "heldout.txt")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--window", type=int, default=512, help="tokens")
    parser.add_argument("--chunks", type=int, default=8, help="windows")
    parser.add_argument("--out", type=Path, help="folder for the tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as work:
        loaded = LoadOptions(options.model, torch.device("cpu"), torch.float32, Path(work))
        engine = gguf.load(loaded, gguf.GGUF(file=options.file), None)
        tables = {"speed": speeds(engine, options), "perplexity": perplexities(engine, options)}
    record.keep(options.out, tables, script="llamacpp")


if __name__ == "__main__":
    main()
