# SPDX-License-Identifier: Apache-2.0
"""A GGUF file as an ordinary Hugging Face directory: float32 safetensors, tokenizer, chat template.

    python examples/smollm2/convert.py SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2

Only for those who have the model as GGUF; `run.sh` also takes a name on the Hugging Face hub. Needs the package `gguf`.
A quantised file gives the weights that it has kept, not those that it was made from.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from tempo_verl.errors import UserError


def convert(source: Path, out: Path) -> Path:
    """Write the model of ``source`` into the folder ``out``, which is returned.

    Raises:
        UserError: no such file, a folder that holds something, or no package ``gguf``.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such file; give a GGUF file")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; name another folder, or remove it")
    if importlib.util.find_spec("gguf") is None:
        raise UserError("the package gguf is missing, which transformers reads GGUF with: pip install gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(source.parent), source.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    # transformers names the first special token of some files as the end of text, which the model never writes
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def main(
    source: Annotated[Path, typer.Argument(help="GGUF file.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not hold anything.")],
) -> None:
    """Write a GGUF file as a Hugging Face directory."""
    print(convert(source, out))


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        print(f"convert: {error}", file=sys.stderr)
        sys.exit(2)
