"""A server's load as qbench measures it, beside GuideLLM on the same server. The goal is within 5 %.

Closed loops on llama.cpp's server, which runs a Llama of random weights with the demo model's tokenizer, large enough
that its time and not the client's counts. Both tools send prompts of random tokens, all of one length, and take turns.

    python -m venv guide && guide/bin/pip install guidellm==0.8.1
    python benchmarks/load_peers.py guide/bin/guidellm       # some ten minutes, on Linux with two cores or more

Requests/s, and medians of the time to first token and of a request's whole latency. Both leave out the requests of a
warm-up. GuideLLM also leaves out a cool-down; qbench keeps the load up until the last request that counts has ended.

The clients have the machine's last core, and the server the others: on the server's cores a client slows the answers
that it times. GuideLLM counts the requests that end within its window, qbench the part of each request's time that lies
in its own. Requests of a closed loop end together, so up to one round more or less falls into GuideLLM's window: one
part in `--rounds` of its requests/s.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import record
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from qbench import demo
from qbench.backends import gguf
from qbench.engine.server.prompts import Prompts
from qbench.model.load import LoadOptions
from qbench.records.run import read_run

START_S = 120
ANSWERED = 0.9


def make_model(folder: Path, layers: int, hidden_size: int) -> None:
    """Random weights in float16 with the demo model's tokenizer."""
    shutil.copytree(demo.MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    own = LlamaConfig.from_pretrained(demo.MODEL_DIR)
    size = {"hidden_size": hidden_size, "intermediate_size": 11 * hidden_size // 4, "num_hidden_layers": layers}
    heads = {"num_attention_heads": hidden_size // 64, "num_key_value_heads": hidden_size // 256, "head_dim": 64}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**own.to_dict(), **size, **heads})).half().save_pretrained(folder)


@contextmanager
def serving(model: Path, folder: Path, slots: int, context: int) -> Iterator[str]:
    """llama.cpp's server with the model in Q4_0, on all cores but the last; its address. The clients have the last."""
    options = LoadOptions(model, torch.device("cpu"), torch.float32, folder / "work")
    gguf.quantize(options, gguf.GGUF(quant="Q4_0"), None, folder / "gguf")
    (file,) = (folder / "gguf").glob("*.gguf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    this = psutil.Process()
    *cores, last = this.cpu_affinity()
    if not cores:
        sys.exit("a core for the server and one for its clients are needed")
    command = [sys.executable, "-m", "qbench.compat.xllamacpp", file, f"--port={port}"]
    command += [f"--parallel={slots}", f"--context={context}", f"--threads={len(cores)}"]
    this.cpu_affinity(cores)
    server = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    this.cpu_affinity([last])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/health")
        yield url
    finally:
        server.terminate()
        server.wait(30)


def wait_for(address: str) -> None:
    """Until it answers with 200."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            if httpx.get(address).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    sys.exit(f"{address} did not answer within {START_S} s")


def ours(
    url: str, model: Path, options: argparse.Namespace, concurrency: int, folder: Path, seed: int
) -> dict[str, float]:
    """A level by `qbench run`."""
    requests = options.rounds * concurrency
    config = {
        "name": "peers",
        "model": {"path": str(model)},
        "device": "cpu",
        "seed": seed,
        "backends": [{"kind": "server", "url": url}],
        "measure": {
            "memory": {"seq_len": options.prompt},
            "load": {
                "concurrencies": [concurrency],
                "prompt_tokens": options.prompt,
                "output_tokens": options.new,
                "requests_per_level": requests,
                "duration_s": 600,
            },
        },
    }
    file = folder / "peers.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "qbench", "run", file, "--results", folder, "--fresh", "--yes"]
    run_or_exit(command)
    (row,) = read_run(folder / "peers").load
    # Random weights write pieces of characters, of which a server may have nothing to send.
    if row.answered < ANSWERED * requests:
        sys.exit(f"qbench: {row.answered} of {requests} requests were answered: {row.errors}")
    return {"requests_per_s": row.requests_per_s or 0, "ttft_s": row.ttft_p50_s or 0, "latency_s": row.e2e_p50_s or 0}


def theirs(
    url: str, prompts: Iterator[str], options: argparse.Namespace, concurrency: int, folder: Path
) -> dict[str, float]:
    """The same by GuideLLM."""
    count = (options.rounds + 2) * concurrency
    lines = [json.dumps({"prompt": next(prompts), "output_tokens_count": options.new}) for _ in range(count)]
    data = folder / "prompts.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    spared = {"mode": "requests", "value": concurrency}
    spec = {
        "backend": {"kind": "openai_http", "target": url, "request_format": "/v1/completions"},
        "profile": {"kind": "concurrent", "streams": [concurrency], "warmup": spared, "cooldown": spared},
        "constraints": [{"kind": "max_requests", "count": count}],
        "tokenizer": {"kind": "huggingface_auto", "model": str(demo.MODEL_DIR)},
        "data": [{"kind": "json_file", "path": str(data)}],
        "outputs": [{"kind": "json", "path": str(folder / "guidellm.json")}],
    }
    scenario = folder / "guidellm.yaml"
    scenario.write_text(yaml.safe_dump({"spec": spec}), encoding="utf-8")
    run_or_exit([options.guidellm, "run", "--config", scenario, "--disable-console"])
    (level,) = json.loads((folder / "guidellm.json").read_text(encoding="utf-8"))["benchmarks"]
    answered = level["metrics"]
    return {
        "requests_per_s": answered["requests_per_second"]["successful"]["mean"],
        "ttft_s": answered["time_to_first_token_ms"]["successful"]["median"] / 1000,
        "latency_s": answered["request_latency"]["successful"]["median"],
    }


def run_or_exit(command: list[Any]) -> None:
    """Run it; its output is shown where it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def texts(model: Path, tokens: int) -> Iterator[str]:
    """Prompts of so many random tokens, without end."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    written, random = Prompts(tokenizer, len(tokenizer), as_ids=False), np.random.default_rng(1)
    while True:
        yield str(written(random.integers(len(tokenizer), size=tokens).tolist()))


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("guidellm", type=Path, help="its command, in an environment of its own")
    parser.add_argument("--concurrencies", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=16, help="requests that count, for each that runs at a time")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--new", type=int, default=32, help="tokens")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the table")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        folder, slots = Path(work), max(options.concurrencies)
        model = folder / "model"
        make_model(model, options.layers, options.hidden_size)
        prompts = texts(model, options.prompt)
        with serving(model, folder, slots, 2 * (options.prompt + options.new)) as url:
            for concurrency in options.concurrencies:
                turns = [
                    (
                        ours(url, model, options, concurrency, folder, seed),
                        theirs(url, prompts, options, concurrency, folder),
                    )
                    for seed in range(options.turns)
                ]
                for what in turns[0][0]:
                    own, other = (statistics.median(turn[who][what] for turn in turns) for who in (0, 1))
                    ratio = statistics.median(turn[0][what] / turn[1][what] for turn in turns)
                    row = {"concurrency": concurrency, "figure": what, "qbench": own, "guidellm": other}
                    rows.append({**row, "ratio": ratio})
    record.keep(options.out, {"load_peers": rows}, script="load_peers")


if __name__ == "__main__":
    main()
