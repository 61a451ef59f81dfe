#!/usr/bin/env python3
"""Adapters cross between Fedlora and Hugging Face PEFT with the same logits, both ways.

1. an adapter trained by `fedlora train`, loaded by PEFT;
2. the same adapter exported again, with other ranks per module (rank_pattern, alpha_pattern);
3. an adapter trained by PEFT (rsLoRA, a rank_pattern, two targets), loaded by `fedlora eval`;
4. with ../shared/golden: states with a carry, and of the form B R A, exported and loaded by PEFT.
"""

import os

import oracle

torch, transformers, peft, safetensors = oracle.need("torch", "transformers", "peft", "safetensors")
from safetensors.torch import load_file  # noqa: E402  (only where safetensors is there)

BOUND = 1e-5


def peft_logits(base, adapter, rows):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter)
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows]


def fedlora_logits(work, base, data, *adapter):
    out = os.path.join(work, "logits.safetensors")
    oracle.fedlora(
        "eval",
        "--base",
        base,
        "--data",
        data,
        "--precision",
        "f32",
        "--logits",
        out,
        "--force",
        *adapter,
    )
    found = load_file(out)
    return [found[f"logits.{i}"] for i in range(len(found))]


def compare(name, ours, theirs):
    if len(ours) != len(theirs):
        raise SystemExit(f"FAILED: {name}: {len(ours)} rows of logits, expected {len(theirs)}")
    oracle.check(name, max(oracle.relative_difference(a, b) for a, b in zip(ours, theirs)), BOUND)


def trained_by_fedlora(work, base, data, rows):
    adapter = os.path.join(work, "ours")
    oracle.fedlora(
        "train",
        "--base",
        base,
        "--data",
        data,
        "-o",
        adapter,
        "--rank",
        4,
        "--alpha",
        8,
        "--steps",
        6,
        "--batch",
        2,
        "--lr",
        "2e-2",
        "--precision",
        "f32",
    )
    ours = fedlora_logits(work, base, data, "--adapter", adapter)
    compare("trained by fedlora, loaded by PEFT", ours, peft_logits(base, adapter, rows))
    if oracle.relative_difference(ours[0], peft_logits(base, None, rows)[0]) < 1e-3:
        raise SystemExit("FAILED: training changed nothing, so the comparison says nothing")
    again = os.path.join(work, "again")
    oracle.fedlora("export", adapter, "--as", "peft", "-o", again)
    compare("exported again, loaded by PEFT", ours, peft_logits(base, again, rows))
    smaller = os.path.join(work, "smaller")
    oracle.fedlora("export", adapter, "--as", "peft", "-o", smaller, "--rank", 2)
    compare(
        "exported at rank 2: the same in both",
        fedlora_logits(work, base, data, "--adapter", smaller),
        peft_logits(base, smaller, rows),
    )


def trained_by_peft(work, base, data, rows):
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for row in rows:
        loss = model(
            input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapter = os.path.join(work, "theirs")
    model.save_pretrained(adapter)
    compare(
        "trained by PEFT, loaded by fedlora",
        fedlora_logits(work, base, data, "--adapter", adapter),
        peft_logits(base, adapter, rows),
    )


def states(work):
    golden = os.path.join(os.path.dirname(oracle.ROOT), "shared", "golden")
    for case in ("carry", "small-matrix"):
        folder = os.path.join(golden, case)
        if not os.path.exists(folder):
            print(f"skipped: {case}: ../shared/golden is not here")
            continue
        adapter = os.path.join(work, case)
        oracle.fedlora(
            "export", os.path.join(folder, "state.safetensors"), "--as", "peft", "-o", adapter
        )
        expected = load_file(os.path.join(folder, "expect.safetensors"))
        rows = [{"input_ids": ids} for ids in read_ids(os.path.join(folder, "rows.jsonl"))]
        compare(
            f"state {case}, exported, loaded by PEFT",
            peft_logits(folder, adapter, rows),
            [expected[f"logits.{i}"] for i in range(len(rows))],
        )


def read_ids(path):
    import json

    with open(path, encoding="utf-8") as file:
        return [json.loads(line)["input_ids"] for line in file]


def main():
    with oracle.work_folder() as work:
        for kind in ("llama", "qwen2"):
            base, data = os.path.join(work, kind), os.path.join(work, "rows.jsonl")
            oracle.make_model(base, kind)
            rows = oracle.make_rows(data)
            inner = os.path.join(work, "of-" + kind)
            os.mkdir(inner)
            print(f"{kind}:")
            trained_by_fedlora(inner, base, data, rows)
            trained_by_peft(inner, base, data, rows)
        print("states:")
        states(work)


if __name__ == "__main__":
    main()
