"""The README.md of an exported adapter: where it came from, what is in it, what to type."""

from __future__ import annotations

import json
import time

from sona_stream import __version__
from sona_stream.lora import AdapterRecord

from .checkpoint import Checkpoint

__all__ = ["model_card"]

_VLLM_VOCABULARY = 258_048

_CARD = """\
---
base_model: {yaml_model}
library_name: peft
tags: [lora, sona-stream]
---
# {key}@{version}

What `{key}` learned from feedback until {made}, written by sona-stream {program}.

| | |
|---|---|
| base model | `{model}` |
| its fingerprint | `{fingerprint}` |
| adapter key, version | `{key}`, {version} (made by: {reason}) |
| learned from | {feedback} of feedback in this step |
| form | LoRA on `{head}`, rank {rank}, alpha {rank}, float32; {own} of the {rank} rows are in use |

It gives the same next-token logits as the adapter does, on exactly this base model. **Not in it:
the memory of episodes** (what corrections said word by word), later lessons, and other keys of the same tenant.

## transformers + peft

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({py_model})
model = PeftModel.from_pretrained(model, "{name}")  # the path of this folder
```
{tied}
## vLLM, without our plug-in

```
vllm serve {model} --enable-lora --max-lora-rank {rank} --max-loras 2 \\
    --lora-target-modules {head} --lora-modules {name}=/path/to/{name}
```
Ask with `"model": "{name}"`. vLLM takes a LoRA on lm_head for architectures that allow it (Llama, Qwen3, Mixtral,
Granite and others; not Qwen2 or Gemma 3) and for at most {vocabulary} tokens{beyond}. On vLLM's CPU build let
`--max-loras` be one more than the adapters you load: while every slot is taken, requests without adapter get the
last slot's (seen in 0.32.0).
"""

_TIED = """
The model's input embedding and its lm_head are one tensor: do not `merge_and_unload()`, which would change both.
"""


def model_card(record: AdapterRecord, checkpoint: Checkpoint, *, model: str, rank: int, own: int, name: str) -> str:
    """The whole text. `own`: the rank before padding; `name`: of the folder, as people will call the adapter."""
    count = len(record.feedback_ids)
    fits = checkpoint.vocab_size <= _VLLM_VOCABULARY and not checkpoint.has_head_bias
    return _CARD.format(
        yaml_model=json.dumps(model),
        py_model=json.dumps(model),
        model=model,
        key=record.key,
        version=record.version,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.created_at)),
        program=__version__,
        fingerprint=record.fingerprint,
        reason=record.reason or "unknown",
        feedback=f"{count} piece" if count == 1 else f"{count} pieces",
        head=checkpoint.head_name,
        rank=rank,
        own=own,
        name=name,
        tied=_TIED if checkpoint.is_tied else "",
        vocabulary=f"{_VLLM_VOCABULARY:,}",
        beyond="" if fits else "; **this model is not among them**",
    )
