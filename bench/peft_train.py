#!/usr/bin/env python3
"""Measures training with Hugging Face PEFT on PyTorch once, in a separate process. Prints one line of
JSON with tokens per second (of each step, and their median) and the peak memory: resident (VmHWM) on a CPU,
reserved by PyTorch on a GPU.

  peft_train.py --base FILE.gguf|DIR --data ROWS.jsonl [--precision bf16|f32] [--compile] ...
  peft_train.py --base DIR --rows 4x512 --device cuda [--compile] ...

Rows are {"input_ids", "labels"}, as `fedlora train` reads them: both programs get the same file and
the same work, LoRA of rank 16 on all seven projections, AdamW, loss over the labels. --rows makes the
tokens of bench/gpu/train.c. On a GPU that lacks memory the batch is halved until it fits.
"""

import argparse
import json
import os
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_model(options):
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    if os.path.isdir(options.base):
        model = AutoModelForCausalLM.from_pretrained(options.base, dtype=dtype)
    else:
        folder, name = os.path.split(os.path.abspath(options.base))
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype)
    config = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=TARGETS)
    model = get_peft_model(model, config)
    if options.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    return model.to(options.device)


def random_rows(shape, vocab):
    """The tokens of bench/gpu/train.c, from the same generator."""
    rows, length = (int(n) for n in shape.split("x"))
    ids, x = [], 1
    for _ in range(rows * length):
        x = (x * 1664525 + 1013904223) % 2**32
        ids.append(3 + (x >> 8) % (vocab - 3))
    parts = [ids[i * length : (i + 1) * length] for i in range(rows)]
    return [{"input_ids": part, "labels": part} for part in parts]


def read_rows(options, vocab):
    if options.rows:
        return random_rows(options.rows, vocab)
    with open(options.data, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load_batches(options, rows):
    for step in range(options.steps + options.discard):
        chosen = [rows[(step * options.batch + i) % len(rows)] for i in range(options.batch)]
        yield (
            torch.tensor([row["input_ids"] for row in chosen], device=options.device),
            torch.tensor([row["labels"] for row in chosen], device=options.device),
        )


def wait(options):
    if options.device != "cpu":
        torch.cuda.synchronize()


def peak_bytes(options):
    if options.device != "cpu":
        return torch.cuda.max_memory_reserved()
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def train(options, model, rows):
    """Returns tokens per second and the loss of each step."""
    step_model = torch.compile(model) if options.compile else model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    rates, losses = [], []
    for step, (ids, labels) in enumerate(load_batches(options, rows)):
        wait(options)
        began = time.perf_counter()
        loss = step_model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait(options)
        took = time.perf_counter() - began
        losses.append(loss.item())
        if step >= options.discard:
            rates.append(ids.numel() / took)
    return rates, losses


def train_what_fits(options, model, rows):
    while True:
        try:
            return train(options, model, rows)
        except torch.OutOfMemoryError:
            if options.batch == 1:
                raise
        options.batch //= 2
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data")
    source.add_argument("--rows", help="BxL: so many random rows of this length, all in each step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--discard", type=int, default=1, help="first steps that are not counted")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.rows:
        options.batch = int(options.rows.split("x")[0])
    model = load_model(options)
    rates, losses = train_what_fits(options, model, read_rows(options, model.config.vocab_size))
    print(
        json.dumps(
            {
                "program": "peft compiled" if options.compile else "peft eager",
                "model": os.path.basename(options.base.rstrip("/")),
                "shape": options.rows,
                "batch": options.batch,
                "tokens_per_second": statistics.median(rates),
                "rates": rates,
                "losses": losses,
                "peak_bytes": peak_bytes(options),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
