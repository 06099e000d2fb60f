"""Models whose configs and tokenizers name Python code that comes with them."""

import json
from pathlib import Path

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).write_text("ran")


class Config(LlamaConfig):
    model_type = "of-its-own"


class Model(LlamaForCausalLM):
    config_class = Config
"""


def with_code(folder: Path) -> Path:
    """Make a saved Llama need code of its own, and return the file that the code writes when it runs."""
    mark = folder.parent / "ran.txt"
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "of-its-own", "auto_map": own}))
    return mark
