"""Makes the data that `cairn demo` ships: checks bAbI files of its tasks and packs them, so that you can repeat it.

    FOLDER/qa1_train.txt[.xz|.gz] ... ──> every question through the demo's rules, train and test stories compared
                                      ──> src/cairn/assets/demo/babi/qa1_train.txt.xz ... and SHA256SUMS (of the text)

The files are the text of the official generator (facebookarchive/bAbI-tasks), unchanged; packing is the only
difference. SHA256SUMS is over the unpacked text, because xz versions may pack the same text differently.

Usage: python tools/make_demo_data.py FOLDER [--out DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
from pathlib import Path

from cairn.errors import CairnError, DataError
from cairn.evaluation.tasks.babi import BabiQuestion, read_babi
from cairn.evaluation.tasks.babi_stages import STAGE_TASKS, stage_example
from cairn.evaluation.textfiles import open_text
from cairn.files import atomic_file, write_text

OUT = Path(__file__).resolve().parents[1] / "src" / "cairn" / "assets" / "demo" / "babi"


def find(folder: Path, task: str, split: str) -> Path:
    """Returns the file of a task, packed or plain.

    Raises:
        DataError: there is none.
    """
    for ending in (".txt.xz", ".txt.gz", ".txt"):
        path = folder / f"{task}_{split}{ending}"
        if path.exists():
            return path
    raise DataError("no such bAbI file", value=f"{task}_{split}", allowed=f".txt, .txt.gz or .txt.xz in {folder}")


def stories(questions: list[BabiQuestion]) -> set[tuple[str, ...]]:
    """Returns every story as its sentences before its last question."""
    longest = {question.story_id: question.sentences for question in questions}  # a later question sees more
    return set(longest.values())


def main() -> None:
    """Checks and packs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    sums = []
    for task in STAGE_TASKS:
        seen: dict[str, set[tuple[str, ...]]] = {}
        for split in ("train", "test"):
            source = find(chosen.folder, task, split)
            questions = read_babi(source)
            for question in questions:
                stage_example(question)  # raises where the rules and the gold differ
            seen[split] = stories(questions)
            with open_text(source) as lines:
                text = "".join(lines).encode()
            target = chosen.out / f"{task}_{split}.txt.xz"
            with atomic_file(target) as temporary:
                temporary.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
            sums.append(f"{hashlib.sha256(text).hexdigest()}  {task}_{split}.txt")
            print(f"{target.name}: {len(questions):,} questions, {target.stat().st_size / 1024:.0f} KiB", flush=True)
        both = seen["train"] & seen["test"]
        if both:
            raise DataError(f"{task}: a story is in train and test", value=next(iter(both)))
    write_text(chosen.out / "SHA256SUMS", "\n".join(sums) + "\n")


if __name__ == "__main__":
    try:
        main()
    except CairnError as error:
        raise SystemExit(f"error: {error}") from None
