"""Base models: from a name to checked weights.

    "embedded:base" ─┐
    folder ──────────┼─ resolve_base ─> base_folder ─> files whole? ─> load_base ─> (model, tokenizer)
    hub name ────────┘

transformers goes on with random numbers where a weight is missing, and with wrong rows where a tokenizer is another
model's: both are errors here. Torch and transformers are imported inside the functions: the command line stays fast.
"""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cairn.errors import CairnError, CheckpointError, TokenizerError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "base_folder",
    "check_model_files",
    "check_safetensors",
    "check_tokenizer",
    "first_line",
    "load_base",
    "load_tokenizer",
    "pick_device",
    "pick_dtype",
    "pick_precision",
    "resolve_base",
    "weight_files",
]

logger = logging.getLogger(__name__)

_EMBEDDED = "embedded:"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def resolve_base(name: str) -> str:
    """Returns the folder of a base, or its hub name unchanged if it is no folder.

    Args:
        name: "embedded:base" (shipped with Cairn), a folder, or a Hugging Face name.

    Raises:
        CheckpointError: an embedded model that this installation does not hold, or a folder that is not there.
    """
    if name.startswith(_EMBEDDED):
        wanted = name.removeprefix(_EMBEDDED)
        assets = Path(str(resources.files("cairn"))) / "assets"
        folder = assets / wanted
        if not wanted or Path(wanted).name != wanted or not (folder / "config.json").is_file():
            present = [f"{_EMBEDDED}{path.parent.name}" for path in sorted(assets.glob("*/config.json"))]
            raise CheckpointError(
                "this installation holds no such embedded model",
                value=name,
                allowed=", ".join(present) or "a model folder or a Hugging Face name",
                next="train one with `cairn pretrain recipes/base.yaml` and give its folder as the base",
            )
        return str(folder)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise CheckpointError("the base is a file", value=name, allowed="a model folder", next="give its folder")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise CheckpointError(
            "no such model folder", value=name, allowed='"embedded:base", a folder, or a Hugging Face name org/name',
            next="check the path",
        )  # fmt: skip
    return name


def base_folder(name: str) -> Path:
    """Returns the local folder of a base; a hub name is looked up in the local cache and downloaded if missing.

    Raises:
        CheckpointError: the base is not there, or cannot be downloaded.
    """
    resolved = resolve_base(name)
    if Path(resolved).is_dir():
        return Path(resolved)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        try:
            return Path(snapshot_download(resolved, local_files_only=True, allow_patterns=patterns))
        except OSError:  # not in the cache
            return Path(snapshot_download(resolved, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot get this base from the Hugging Face hub ({first_line(error)})",
            value=name,
            allowed='"embedded:base", a folder, or a Hugging Face name',
            next="check the name and the network, or give a folder",
        ) from error


def check_model_files(folder: Path) -> None:
    """Looks at a model folder's files before anything is built from them.

    Raises:
        CheckpointError: config or weights are missing, truncated or damaged. TokenizerError: there is no tokenizer.
    """
    again = "copy the folder again, or train it with `cairn pretrain`"
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError("the folder is not a model: it has no config.json", value=str(folder), next=again)
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"config.json is damaged ({first_line(error)})", value=str(config), next=again) from None
    files = weight_files(folder)
    if not files:
        raise CheckpointError("the model has no weights", value=str(folder), allowed=" or ".join(_WEIGHTS), next=again)
    for file in files:
        check_safetensors(file, CheckpointError, again)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        allowed = " or ".join(_TOKENIZERS)
        raise TokenizerError("the model has no tokenizer", value=str(folder), allowed=allowed, next=again)


def weight_files(folder: Path) -> list[Path]:
    """Returns the weight files of a model folder, shards in order of name; empty if there are none."""
    for name in _WEIGHTS:
        path = folder / name
        if not path.is_file():
            continue
        if not name.endswith(".index.json"):
            return [path]
        try:
            return [folder / shard for shard in sorted(set(json.loads(path.read_text())["weight_map"].values()))]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"the weight index is damaged ({first_line(error)})", value=str(path)) from None
    return []


def check_safetensors(path: Path, error: type[CairnError], next: str) -> None:
    """Compares the size of a safetensors file with what its header promises.

    Raises:
        CairnError: of class `error`; the file is missing, empty, truncated, or its header cannot be read.
    """
    if not path.is_file():
        raise error("a weight file is missing", value=str(path), next=next)
    if path.suffix != ".safetensors":
        return
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise error(f"a weight file is truncated ({size} bytes)", value=str(path), next=next)
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise error(f"a weight file is damaged ({first_line(cause)})", value=str(path), next=next) from None
    if 8 + length + max(ends, default=0) != size:
        promised = 8 + length + max(ends, default=0)
        raise error(f"a weight file has {size} bytes, but promises {promised}", value=str(path), next=next)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a base.

    Raises:
        CheckpointError: no such base. TokenizerError: its tokenizer cannot be read.
    """
    from transformers import AutoTokenizer

    import cairn.models  # noqa: F401  (registers the decoder: its folders then load without asking to run their code)

    folder = base_folder(name)
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # transformers and tokenizers raise every kind here
        raise TokenizerError(
            f"the tokenizer cannot be read ({first_line(error)})", value=str(folder), next="copy tokenizer.json again"
        ) from error


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int, source: str) -> None:
    """Checks that every id of a tokenizer has a row in the embedding.

    Raises:
        TokenizerError: an id lies outside, so that the tokenizer belongs to another model.
    """
    fix = "use the tokenizer that was saved with this model"
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= vocab_size:
        raise TokenizerError(
            f"the tokenizer does not match the model in {source}: its highest id is {highest}",
            allowed=f"ids below {vocab_size}, the rows of the embedding",
            next=fix,
        )
    for role in ("bos", "eos", "pad"):
        token = getattr(tokenizer, f"{role}_token_id")
        if token is not None and not 0 <= token < vocab_size:
            raise TokenizerError(
                f"the tokenizer's {role} token of {source} has no row in the embedding",
                value=token, allowed=f"0 to {vocab_size - 1}", next=fix,
            )  # fmt: skip


def pick_device(device: str = "auto") -> torch.device:
    """Returns the device asked for; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        CheckpointError: the device is not there.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"device cannot be used ({first_line(error)})", value=device, allowed='"auto", "cpu", "cuda", "mps"',
            next="use --set device=auto",
        ) from None  # fmt: skip
    return chosen


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Returns the number format asked for: "auto", "float32", "bfloat16" or "float16".

    "auto" is bfloat16 where the hardware multiplies it natively (GPU with bf16; CPU with AVX-512 BF16 or AMX), and
    float32 elsewhere, where bfloat16 would be emulated and slower.

    Raises:
        CheckpointError: another name.
    """
    import torch

    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in names:
        return names[dtype]
    if dtype != "auto":
        raise CheckpointError("unknown dtype", value=dtype, allowed=f"auto, {', '.join(names)}", next="use dtype=auto")
    return torch.bfloat16 if _multiplies_bf16(device) else torch.float32


def pick_precision(precision: str, device: torch.device) -> Literal["bf16", "fp32"]:
    """Returns how a training multiplies on a device: under bfloat16 autocast, or in float32.

    "auto" is bf16 where `pick_dtype` would choose bfloat16, and fp32 elsewhere. An emulated bf16 that is asked for by
    name is used, with a warning in the log: a CPU without it can be a hundred times slower so than in fp32.

    Args:
        precision: "auto", "bf16" or "fp32"; "none", as the pretraining loop calls it, is fp32.
        device: what the training runs on.
    """
    native = _multiplies_bf16(device)
    if precision == "bf16" and device.type == "cpu" and not native:
        _tell_emulated()
    return "bf16" if precision == "bf16" or (precision == "auto" and native) else "fp32"


@lru_cache(maxsize=1)  # once a process
def _tell_emulated() -> None:
    logger.warning("this CPU emulates bf16, many times slower than fp32; precision auto takes what it multiplies fast")


def _multiplies_bf16(device: torch.device) -> bool:
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (_cpu_has("_is_avx512_bf16_supported") or _cpu_has("_is_amx_tile_supported"))


def _cpu_has(probe: str) -> bool:
    import torch

    found = getattr(torch.cpu, probe, None)
    return bool(found and found())


def load_base(
    name: str, *, dtype: str | torch.dtype = "auto", device: str | torch.device = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a base and its tokenizer, checked: whole files, every weight present, tokenizer inside the embedding.

    Args:
        name: as in `resolve_base`.
        dtype: see `pick_dtype`.
        device: see `pick_device`.

    Returns:
        The model in evaluation mode and its tokenizer.

    Raises:
        CheckpointError: the folder has no config or no weights, or they are damaged or do not fit each other.
        TokenizerError: the tokenizer is missing, damaged, or made for another model.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    import cairn.models  # noqa: F401  (registers our architecture)

    place = device if isinstance(device, torch.device) else pick_device(device)
    number = dtype if isinstance(dtype, torch.dtype) else pick_dtype(dtype, place)
    folder = base_folder(name)
    check_model_files(folder)
    tokenizer = load_tokenizer(name)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a bar per load would break into what a command prints
    try:
        model, report = AutoModelForCausalLM.from_pretrained(str(folder), dtype=number, output_loading_info=True)
    except Exception as error:  # transformers, safetensors and torch raise every kind here
        raise CheckpointError(
            f"the model cannot be loaded ({first_line(error)})", value=str(folder),
            next="check that the folder is a Hugging Face causal language model, whole and unchanged",
        ) from error  # fmt: skip
    finally:
        if bars:
            logging.enable_progress_bar()
    missing = sorted(report.get("missing_keys", ()))
    if missing:  # transformers would go on with random numbers in their place
        raise CheckpointError(
            f"{len(missing)} weights are missing from the model", value=f"{missing[0]} in {folder}",
            next="copy the folder again: config.json and weights must come from one model",
        )  # fmt: skip
    check_tokenizer(tokenizer, model.get_input_embeddings().weight.shape[0], str(folder))
    return model.to(place).eval(), tokenizer


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, cut at 200 characters; its class if it has none."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
