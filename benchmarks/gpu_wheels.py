"""The wheels of gpu-requirements.txt in a folder, without what a GPU machine does not need of them: `make gpu-wheels`.

    python benchmarks/gpu_wheels.py FOLDER

bitsandbytes keeps its library for CUDA 13, lm-evaluation-harness the tasks of MMLU. Needs pip, in a Python of that
machine's version; nothing else.
"""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("gpu-requirements.txt")
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
"""The versions that qbench is tested with: a newer gptqmodel may want a newer torch than that machine's."""
BUDGET_BYTES = 25 << 20

DROPPED = {
    "bitsandbytes": r"bitsandbytes/libbitsandbytes_(?!cuda130\.so|cpu\.so)",
    "lm_eval": r"lm_eval/tasks/(?!mmlu/default/|mmlu/[^/]+$)[^/]+/",
}
"""By distribution, the files that stay behind."""


def trim(wheel: Path, dropped: str) -> None:
    """Take the files that match out of a wheel and out of its RECORD."""
    pattern, smaller = re.compile(dropped), wheel.with_suffix(".partial")
    with (
        zipfile.ZipFile(wheel) as source,
        zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target,
    ):
        for entry in source.infolist():
            if pattern.match(entry.filename):
                continue
            content = source.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if not pattern.match(line)).encode()
            target.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)
    smaller.replace(wheel)


def main(folder: Path) -> int:
    """Collect and trim; 1 if they are more than the budget."""
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder)]
    subprocess.run([*pip, "-r", str(REQUIREMENTS), "-c", str(CONSTRAINTS)], check=True)
    for name, dropped in DROPPED.items():
        for wheel in folder.glob(f"{name}-*.whl"):
            trim(wheel, dropped)
    sizes = {wheel.name: wheel.stat().st_size for wheel in sorted(folder.glob("*.whl"))}
    for name, size in sizes.items():
        print(f"{size / 2**20:6.1f} MiB  {name}")
    total = sum(sizes.values())
    print(f"{total / 2**20:6.1f} MiB, of at most {BUDGET_BYTES / 2**20:.0f}")
    return int(total > BUDGET_BYTES)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
