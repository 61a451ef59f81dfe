"""Helpers of the oracle tests: a tiny random model made by transformers, calls of the programs, comparisons.

Each test is a script: exit status 0 passed, 1 failed, 77 skipped with the reason. tests/e2e/oracle.sh
runs them all by the Python that FEDLORA_ORACLE_PYTHON names, else by python3.
"""

import json
import os
import random
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAMS = os.environ.get("FEDLORA_BUILD_DIR", os.path.join(ROOT, "build", "release"))
SKIPPED = 77


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(SKIPPED)


def need(*modules):
    """Imports what a test needs, or skips it by name."""
    found = []
    for name in modules:
        try:
            found.append(__import__(name))
        except ImportError:
            skip(f"{name} is not installed for {sys.executable}")
    if not os.path.exists(os.path.join(PROGRAMS, "fedlora")):
        skip(f"{PROGRAMS}/fedlora is not built")
    return found if len(found) != 1 else found[0]


def fedlora(*arguments):
    """Runs fedlora; its standard output. A failure ends the test with what it said."""
    command = [os.path.join(PROGRAMS, "fedlora"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"FAILED: {' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def make_model(folder, kind="llama", seed=1):
    """A small random model of a family, as a Hugging Face directory."""
    import torch
    import transformers

    torch.manual_seed(seed)
    common = dict(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    if kind == "llama":
        config = transformers.LlamaConfig(**common, tie_word_embeddings=True)
    elif kind == "qwen2":
        config = transformers.Qwen2Config(**common, tie_word_embeddings=False)
    else:
        raise ValueError(kind)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


def make_rows(path, count=6, vocab=256, seed=2):
    """Pre-tokenised rows, so that no tokenizer is involved."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        ids = [rng.randrange(3, vocab) for _ in range(12 + 5 * i)]
        rows.append({"input_ids": ids, "labels": [-100] * 4 + ids[4:]})
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def relative_difference(a, b):
    """Largest difference over largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def check(name, difference, bound):
    """One line a comparison; a difference over the bound ends the test."""
    verdict = "ok" if difference <= bound else "FAILED"
    print(f"{verdict}: {name}: {difference:.2e}, bound {bound:.0e}")
    if verdict != "ok":
        sys.exit(1)


def work_folder():
    return tempfile.TemporaryDirectory(prefix="fedlora-oracle-")
