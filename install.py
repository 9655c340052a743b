"""Makes .venv and installs Cairn in it, with no CUDA packages where there is no GPU.

    constraints.txt -> which torch -> [pip's own sources] -> [PyTorch's CPU wheels] -> cairn-lm[EXTRAS] -> check

Usage: python3 install.py [EXTRAS]        (standard library only; `make` calls it)

On Linux the torch of the default index is the CUDA build: about 3 GB that a machine without a GPU cannot use.
Its CPU build has the version label `+cpu`, so asking for exactly that version can never bring CUDA in.
Environment: TORCH_INDEX=URL takes the CPU build from another index, ALLOW_CUDA=1 installs the default build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's documented address of its CPU wheels
STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"[install {time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def stop(text: str) -> None:
    sys.exit(f"install: error: {text}")


def pip(*arguments: str, quiet: bool = False) -> bool:
    """Runs pip of the virtual environment; returns whether it succeeded."""
    sink = subprocess.DEVNULL if quiet else None
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=sink, stderr=sink).returncode == 0


def has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True)
    return listed.returncode == 0 and "GPU" in listed.stdout


def make_venv() -> None:
    if PYTHON.exists() and pip("--version", quiet=True):
        return
    say(f"making {VENV.name} with Python {sys.version.split()[0]}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if made.returncode != 0:
        stop(
            "python -m venv failed. Next: install the venv module of your Python (Debian, Ubuntu: python3-venv).\n"
            + (made.stdout + made.stderr).strip()
        )


def install_cpu_torch() -> None:
    """Installs the CPU build of torch on Linux without a GPU; elsewhere the default build is right."""
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if pinned is None:
        stop("constraints.txt has no line torch==VERSION")
        return
    if not sys.platform.startswith("linux") or os.environ.get("ALLOW_CUDA") == "1":
        return
    if has_gpu():
        say("an NVIDIA GPU is here: the CUDA build of torch comes with the other packages")
        return
    wanted = f"torch=={pinned[1]}+cpu"
    probe = "import importlib.metadata as m, sys; sys.exit(m.version('torch') != sys.argv[1])"
    if subprocess.run([PYTHON, "-c", probe, wanted[7:]], stderr=subprocess.DEVNULL).returncode == 0:
        return
    say(f"no GPU: installing {wanted}")
    index = os.environ.get("TORCH_INDEX")
    if index is None and pip("install", "--no-deps", wanted, quiet=True):
        return
    if not pip("install", "--no-deps", "--index-url", index or CPU_INDEX, wanted):
        stop(
            f"{wanted} was not found at {index or CPU_INDEX}. Next: set TORCH_INDEX=URL to an index that has it, "
            "or ALLOW_CUDA=1 for the default build (about 3 GB of CUDA packages)"
        )


def check() -> None:
    """Imports what was installed, and says which CUDA packages came along."""
    code = (
        "import importlib.metadata as m, torch, cairn\n"
        "names = {d.metadata['Name'].lower() for d in m.distributions()}\n"
        "cuda = sorted(n for n in names if n.startswith(('nvidia-', 'cuda-')))\n"
        "print(f'cairn {cairn.__version__}, torch {torch.__version__}, {len(cuda)} CUDA packages')"
    )
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    if done.returncode != 0:
        stop("the installed packages cannot be imported. Next: make clean, and the same command again\n" + done.stderr)
    say("ready: " + done.stdout.strip())


def main(extras: str) -> None:
    if tuple(sys.version_info) < (3, 11):
        stop(f"Python {sys.version.split()[0]} is too old. Allowed: 3.11 or newer. Next: make PYTHON=python3.12 ...")
    make_venv()
    install_cpu_torch()
    target = f".[{extras}]" if extras else "."
    say(f"installing Cairn ({target}) with the versions in constraints.txt")
    if not pip("install", "--constraint", "constraints.txt", "--editable", target):
        stop("pip could not install the packages above. Next: read its last lines; the same command goes on from here")
    check()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
