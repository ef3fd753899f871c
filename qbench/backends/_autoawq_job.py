"""AutoAWQ quantizes a model: run by an interpreter that has autoawq, with the path of a job.

Imports nothing of qbench, whose libraries are newer than those that AutoAWQ works with. Run it with `python -I`: beside
this file lie modules whose names hide those of libraries.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(job_file: str) -> None:
    """Write a checkpoint in the GEMM format, and the seconds spent quantizing into the file `result`."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    import torch
    from awq import AutoAWQForCausalLM

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    model = AutoAWQForCausalLM.from_pretrained(
        job["model"],
        torch_dtype=getattr(torch, job["dtype"]),
        device_map=job["device"],
        trust_remote_code=job["trust_remote_code"],
    )
    scheme = {"zero_point": True, "q_group_size": job["group_size"], "w_bit": 4, "version": "GEMM"}
    sequences = job["sequences"]
    started = time.perf_counter()
    model.quantize(
        None,
        quant_config=scheme,
        calib_data=sequences,
        max_calib_samples=len(sequences),
        max_calib_seq_len=len(sequences[0]),
    )
    seconds = time.perf_counter() - started
    model.save_quantized(job["out"])
    Path(job["result"]).write_text(json.dumps({"quantize_s": seconds}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
