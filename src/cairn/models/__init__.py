"""Tiny language models in the Hugging Face layout.

Importing this package registers the decoder with AutoConfig and AutoModelForCausalLM, and marks its code to
travel inside saved checkpoints, so that `trust_remote_code=True` loads them where Cairn is not installed.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from cairn.models.configuration import CairnConfig
from cairn.models.modeling import CairnForCausalLM, CairnModel

__all__ = ["CairnConfig", "CairnForCausalLM", "CairnModel"]

AutoConfig.register("cairn", CairnConfig, exist_ok=True)
AutoModelForCausalLM.register(CairnConfig, CairnForCausalLM, exist_ok=True)
CairnConfig.register_for_auto_class()
CairnForCausalLM.register_for_auto_class("AutoModelForCausalLM")
