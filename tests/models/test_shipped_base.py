"""The base inside the package is whole, small enough, and the default."""

from pathlib import Path

import pytest
import torch
from transformers.dynamic_module_utils import get_relative_import_files

from cairn.bases import load_base, resolve_base
from cairn.models import CairnForCausalLM
from cairn.models.tokenization import prompt_ids
from cairn.stacks.spec import StackSpec

FOLDER = Path(resolve_base("embedded:base"))
SOURCE = Path(__file__).resolve().parents[2] / "src" / "cairn" / "models"


@pytest.fixture(scope="module")
def base():
    return load_base("embedded:base", dtype="float32", device="cpu")


def test_weights_and_tokenizer_are_at_most_16_mb():
    size = sum((FOLDER / name).stat().st_size for name in ("model.safetensors", "tokenizer.json"))
    assert 10_000_000 < size <= 16_000_000


def test_it_is_the_default():
    assert StackSpec.model_fields["base"].default == "embedded:base"


def test_the_code_that_travels_with_it_is_ours():
    """All that modeling.py imports, and nothing else; after a change, copy the file from models/ to assets/base/."""
    wanted = {Path(name).name for name in get_relative_import_files(SOURCE / "modeling.py")} | {"modeling.py"}
    assert {path.name for path in FOLDER.glob("*.py")} == wanted
    differing = [name for name in sorted(wanted) if (FOLDER / name).read_text() != (SOURCE / name).read_text()]
    assert not differing


def test_it_knows_some_english(base):
    model, tokenizer = base
    assert isinstance(model, CairnForCausalLM)

    def nats(text):
        ids = torch.tensor([prompt_ids(tokenizer, text)])
        with torch.no_grad():
            return model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)

    assert nats("The little girl was very happy.") < nats("The little girl were very happy.")
    assert nats("She opened the door and went out.") < nats("She opened and door the went out.")


def test_it_looks_things_up(base):
    """What its generated text is for: the name that stands in the text is likelier than one that does not."""
    model, tokenizer = base
    text = "Otto has the lamp. Ida has the rope. Question: Who has the rope? Answer:"
    ids = torch.tensor([prompt_ids(tokenizer, text)])
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    first = {name: tokenizer(f" {name}", add_special_tokens=False)["input_ids"][0] for name in ("Otto", "Ida", "Anil")}
    scores = {name: logits[token].item() for name, token in first.items()}
    assert max(scores["Ida"], scores["Otto"]) > scores["Anil"]
