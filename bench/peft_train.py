#!/usr/bin/env python3
"""Measures training with Hugging Face PEFT on PyTorch once, in a separate process. Prints one line of
JSON with tokens per second (of each step, and their median) and the peak resident memory (VmHWM).

  peft_train.py --base FILE.gguf|DIR --data ROWS.jsonl [--precision bf16|f32] [--compile] ...

Rows are {"input_ids", "labels"}, as `fedlora train` reads them: both programs get the same file and
the same work, LoRA of rank 16 on all seven projections, AdamW, loss over the labels.
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
    return model


def load_batches(options):
    with open(options.data, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for step in range(options.steps + options.discard):
        chosen = [rows[(step * options.batch + i) % len(rows)] for i in range(options.batch)]
        yield (
            torch.tensor([row["input_ids"] for row in chosen]),
            torch.tensor([row["labels"] for row in chosen]),
        )


def peak_bytes():
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
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
    model = load_model(options)
    step_model = torch.compile(model) if options.compile else model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    rates, losses = [], []
    for step, (ids, labels) in enumerate(load_batches(options)):
        began = time.perf_counter()
        loss = step_model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        took = time.perf_counter() - began
        losses.append(loss.item())
        if step >= options.discard:
            rates.append(ids.numel() / took)
    print(
        json.dumps(
            {
                "tokens_per_second": statistics.median(rates),
                "rates": rates,
                "losses": losses,
                "peak_bytes": peak_bytes(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
