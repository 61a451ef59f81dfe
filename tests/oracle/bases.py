#!/usr/bin/env python3
"""Adapters and merged models of every family of tests/golden/bases, loaded by transformers and PEFT.

For each base, as a directory and as a GGUF: an adapter that `fedlora train` has made is loaded by PEFT, merged and
loaded by transformers, and written as a GGUF LoRA, whose tensors are put back into transformers' order of rows and
added to the weights. All have the logits of `fedlora eval --adapter`. For Gemma 3 also inside a model with images."""

import glob
import json
import os

import oracle

torch, transformers, peft, safetensors, gguf = oracle.need("torch", "transformers", "peft", "safetensors", "gguf")
from safetensors.torch import load_file  # noqa: E402

BOUND = 1e-5
CASES = os.path.join(oracle.ROOT, "tests", "golden", "bases")
PERMUTED = ("llama", "granite", "smollm3")


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def rows_of(folder):
    with open(os.path.join(folder, "rows.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file][:3]


def logits_of(model, rows):
    out = []
    for row in rows:
        rotary = getattr(getattr(model, "model", None), "rotary_emb", None)
        if getattr(rotary, "rope_type", None) == "dynamic":  # or it keeps the longest row's frequencies
            model.model.rotary_emb = type(rotary)(model.config)
        with torch.no_grad():
            out.append(model(input_ids=torch.tensor([row["input_ids"]])).logits[0])
    return out


def eval_logits(work, base, data, adapter):
    out = os.path.join(work, "logits.safetensors")
    oracle.fedlora("eval", "--base", base, "--data", data, "--precision", "f32", "--adapter", adapter, "--logits", out,
                   "--force")
    found = load_file(out)
    return [found[f"logits.{i}"] for i in range(3)]


def compare(name, ours, theirs):
    oracle.check(name, max(oracle.relative_difference(a, b) for a, b in zip(theirs, ours)), BOUND)


def add_gguf_lora(model, path):
    reader, c = gguf.GGUFReader(path), model.config
    arch = {"gemma3_text": "gemma3"}.get(c.model_type, c.model_type)
    number = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch)
    names = gguf.get_tensor_name_map(number, c.num_hidden_layers)
    found = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    alpha = reader.fields["adapter.lora.alpha"].contents()
    added = 0
    with torch.no_grad():
        for name, p in model.named_parameters():
            key = names.get_name(name, (".weight",))
            if key + ".lora_a" not in found:
                continue
            a, b = found[key + ".lora_a"], found[key + ".lora_b"]
            delta = (b @ a) * (alpha / a.shape[0])
            heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(name.split(".")[-2])
            if heads and c.model_type in PERMUTED:
                delta = delta.reshape(heads, delta.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(delta.shape)
            p += delta
            added += 1
    assert added * 2 == len(found), f"{path}: {added} modules of {len(found)} tensors are known"
    return model


def check_base(work, name, base, plain):
    """`plain`: the directory of the model that transformers can load, the same one for a GGUF."""
    kind = f"{name} {os.path.basename(base) if base.endswith('.gguf') else 'directory'}"
    data = os.path.join(work, "rows.jsonl")
    rows = rows_of(os.path.join(CASES, name))
    with open(data, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    adapter, merged, lora = (os.path.join(work, f"{len(os.listdir(work))}.{n}") for n in ("peft", "merged", "gguf"))
    oracle.fedlora("train", "--base", base, "--data", data, "-o", adapter, "--rank", 3, "--alpha", 5, "--steps", 6,
                   "--batch", 3, "--lr", 0.05, "--precision", "f32", "--seq", 64)
    ours = eval_logits(work, base, data, adapter)
    base_logits = logits_of(load(plain), rows)
    moved = max(oracle.relative_difference(a, b) for a, b in zip(ours, base_logits))
    assert moved > 0.01, f"{kind}: the adapter changes nothing ({moved})"
    compare(f"{kind}: PEFT", ours, logits_of(peft.PeftModel.from_pretrained(load(plain), adapter).merge_and_unload(), rows))
    oracle.fedlora("export", adapter, "--base", base, "--as", "merged", "--type", "f32", "-o", merged)
    compare(f"{kind}: merged", ours, logits_of(load(merged), rows))
    oracle.fedlora("export", adapter, "--base", base, "--as", "gguf", "-o", lora)
    compare(f"{kind}: GGUF LoRA", ours, logits_of(add_gguf_lora(load(plain), lora), rows))


def check_images(work):
    """Gemma 3 inside the class that reads images too: its names, and rows without images."""
    torch.manual_seed(5)
    text = dict(vocab_size=47, hidden_size=24, intermediate_size=28, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, head_dim=8, sliding_window=6, initializer_range=0.4, sliding_window_pattern=2)
    vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8,
                  patch_size=4)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4,
                                       image_token_index=46, boi_token_index=45, eoi_token_index=44)
    folder, adapter, again, merged = (os.path.join(work, n) for n in ("images", "images.1", "images.2", "images.3"))
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    rows = [row for row in rows_of(os.path.join(CASES, "gemma3"))]
    for row in rows:
        row["input_ids"] = [i % 44 for i in row["input_ids"]]
        row["labels"] = [i % 44 if i >= 0 else i for i in row["labels"]]
    data = os.path.join(work, "rows.jsonl")
    with open(data, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    oracle.fedlora("train", "--base", folder, "--data", data, "-o", adapter, "--rank", 3, "--steps", 6, "--batch", 3,
                   "--lr", 0.05, "--precision", "f32", "--seq", 64)
    ours = eval_logits(work, folder, data, adapter)
    oracle.fedlora("export", adapter, "--base", folder, "--as", "peft", "-o", again)
    oracle.fedlora("export", adapter, "--base", folder, "--as", "merged", "--type", "f32", "-o", merged)
    whole = lambda: transformers.Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    for name, path in (("trained", adapter), ("exported", again)):
        compare(f"gemma3 with images, {name}: PEFT", ours, logits_of(peft.PeftModel.from_pretrained(whole(), path), rows))
    compare("gemma3 with images: merged", ours, logits_of(load(merged), rows))


def usual_scale(work, name):
    """Gemma with the factor of the scores that its GGUF holds."""
    folder = os.path.join(work, f"{name}-usual")
    os.makedirs(folder)
    with open(os.path.join(CASES, name, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    config["query_pre_attn_scalar"] = config["head_dim"]
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    os.symlink(os.path.join(CASES, name, "model.safetensors"), os.path.join(folder, "model.safetensors"))
    return folder


def main():
    torch.set_num_threads(1)
    with oracle.work_folder() as work:
        check_images(work)
        for folder in sorted(glob.glob(os.path.join(CASES, "*", ""))):
            name, file = os.path.basename(folder[:-1]), os.path.join(folder, "bf16.gguf")
            check_base(work, name, folder, folder)
            if os.path.exists(file):
                check_base(work, name, file, usual_scale(work, name) if name.startswith("gemma") else folder)


if __name__ == "__main__":
    main()
