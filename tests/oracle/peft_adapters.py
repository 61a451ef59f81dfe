#!/usr/bin/env python3
"""Adapters with more than A and B of the decoder's modules, made and evaluated by PEFT.

Each is trained (its values are random) over a model of tests/models: embeddings and head saved after a change of the
vocabulary, LoRA on embedding and head, DoRA, whole modules and biases. `fedlora eval --logits`, a model made by
`fedlora export --as merged`, and the mean of the adapter with itself by `fedlora aggregate`, loaded by PEFT, must give
PEFT's logits. With --golden DIR it writes the adapters and the logits, which
tests/unit/adapted.c reads (tests/golden/peft).
"""

import json
import os
import sys

import oracle

torch, transformers, peft, safetensors = oracle.need("torch", "transformers", "peft", "safetensors")
from safetensors.torch import load_file, save_file  # noqa: E402  (only where safetensors is there)

TESTS = os.path.join(oracle.ROOT, "tests")
IDS = [1, 5, 9, 30, 39, 12, 7, 3]
CASES = {
    # name: base in tests/, rows added to the vocabulary, configuration
    "resized": ("models/qwen3", 5, dict(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"])),
    "resized-tied": ("models/llama", 3, dict(r=2, lora_alpha=6, target_modules=["v_proj"])),
    "vocabulary": ("models/qwen3", 0, dict(r=3, lora_alpha=6, target_modules=["embed_tokens", "lm_head", "o_proj"])),
    "dora": ("models/llama", 0, dict(r=3, lora_alpha=5, use_dora=True, use_rslora=True,
                              target_modules=["q_proj", "k_proj", "down_proj"])),
    "dora2": ("models/llama", 0, dict(r=2, lora_alpha=7, use_dora=True, target_modules=["q_proj", "down_proj"])),
    "plain": ("models/llama", 0, dict(r=2, lora_alpha=3, target_modules=["q_proj", "o_proj"])),
    "saved": ("models/llama-bias", 0, dict(r=2, lora_alpha=6, bias="all", target_modules=["q_proj", "up_proj"],
                                    modules_to_save=["norm", "embed_tokens"])),
    "gemma": ("golden/bases/gemma3", 0, dict(r=2, lora_alpha=4, target_modules=["q_proj"], modules_to_save=["norm"])),
}

# Without golden files: tied models, of which one matrix is changed, and other families.
MORE = {
    "tied-embedding": ("models/llama", 0, dict(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])),
    "tied-head": ("models/llama", 0, dict(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "tied-lora": ("models/llama", 0, dict(r=2, target_modules=["q_proj", "embed_tokens"])),
    "tied-head-lora": ("models/llama", 0, dict(r=2, target_modules=["q_proj", "lm_head"])),
    "biases": ("models/llama-bias", 0, dict(r=2, bias="lora_only", target_modules=["q_proj", "down_proj"])),
    "gemma-lora": ("golden/bases/gemma3", 0, dict(r=2, target_modules=["q_proj", "embed_tokens"])),
    "gemma-dora": ("golden/bases/gemma3", 0, dict(r=2, use_dora=True, target_modules=["q_proj", "o_proj"])),
    "phi3-dora": ("golden/bases/phi3", 0, dict(r=2, use_dora=True, target_modules=["qkv_proj", "gate_up_proj"])),
    "granite": ("golden/bases/granite", 0, dict(r=2, target_modules=["embed_tokens", "lm_head"])),
}


def model_of(name, rows=0):
    model = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(TESTS, name), dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(model.config.vocab_size + rows, mean_resizing=False)
    return model.eval()


def logits(model, rows):
    ids = IDS[:-1] + [40 + rows - 1] if rows else IDS
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].contiguous()


def make(folder, name, seed):
    base, rows, config = (CASES | MORE)[name]
    torch.manual_seed(seed)
    model = peft.get_peft_model(model_of(base, rows), peft.LoraConfig(task_type="CAUSAL_LM", **config))
    for key, parameter in model.named_parameters():
        if "lora_magnitude" in key:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
        elif parameter.requires_grad or (rows and "lora" not in key and ("embed" in key or "lm_head" in key)):
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    for extra in ("README.md",):
        if os.path.exists(os.path.join(folder, extra)):
            os.remove(os.path.join(folder, extra))
    # The saved files are the reference, so PEFT loads them again.
    again = peft.PeftModel.from_pretrained(model_of(base, rows), folder).eval()
    return again, rows


GGUF_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.o_proj": "attn_output"}


def write_gguf(folder, path, architecture, heads):
    """The adapter as convert_lora_to_gguf.py of llama.cpp writes it: rows of q permuted for llama, A of an
    embedding transposed, tensors in half precision or float32."""
    import gguf
    import numpy as np

    with open(os.path.join(folder, "adapter_config.json")) as f:
        config = json.load(f)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for key, value in load_file(os.path.join(folder, "adapter_model.safetensors")).items():
        module, _, kind = key.removeprefix("base_model.model.").partition(".lora_")
        if not kind:
            continue
        x = value.numpy()
        factor = "a" if "A" in kind else "b"
        if module == "lm_head":
            name = "output"
        elif module == "model.embed_tokens":
            name, x = "token_embd", x.T if factor == "a" else x
        else:
            _, _, layer, rest = module.split(".", 3)
            name = f"blk.{layer}.{GGUF_NAMES[rest]}"
            if heads and rest == "self_attn.q_proj" and factor == "b":
                x = x.reshape(heads, 2, x.shape[0] // heads // 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        writer.add_tensor(f"{name}.weight.lora_{factor}", np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def golden(target):
    for seed, name in enumerate(CASES):
        folder = os.path.join(target, name)
        model, rows = make(folder, name, seed)
        save_file({"logits": logits(model, rows)}, os.path.join(folder, "expect.safetensors"))
        config = os.path.join(folder, "adapter_config.json")
        with open(config) as f:
            values = json.load(f)
        values["base_model_name_or_path"] = os.path.basename(CASES[name][0])
        values["target_modules"].sort()
        with open(config, "w") as f:
            json.dump(values, f, indent=1, sort_keys=True)
            f.write("\n")
    write_gguf(os.path.join(target, "plain"), os.path.join(target, "plain.gguf"), "llama", 4)
    write_gguf(os.path.join(target, "vocabulary"), os.path.join(target, "vocabulary.gguf"), "qwen3", 0)
    mean = {}
    for name, weight in (("dora", 0.5), ("dora2", 0.3), ("plain", 0.2)):
        model = peft.PeftModel.from_pretrained(model_of("models/llama"), os.path.join(target, name)).merge_and_unload()
        for key, value in model.state_dict().items():
            mean[key] = mean.get(key, 0) + weight * value.double()
    model = model_of("models/llama")
    model.load_state_dict({k: v.float() for k, v in mean.items()})
    save_file({"logits": logits(model, 0)}, os.path.join(target, "dora-mean.safetensors"))


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--golden":
        golden(sys.argv[2])
        return
    with oracle.work_folder() as work:
        for seed, (name, (model_name, _, _)) in enumerate((CASES | MORE).items()):
            folder, base = os.path.join(work, name), os.path.join(TESTS, model_name)
            model, rows = make(folder, name, seed)
            want = logits(model, rows)
            ids = IDS[:-1] + [40 + rows - 1] if rows else IDS
            data, out, merged = (os.path.join(work, name + end) for end in (".jsonl", ".logits", ".merged"))
            with open(data, "w") as f:
                f.write(json.dumps({"input_ids": ids}) + "\n")
            common = ("--data", data, "--no-accuracy", "--precision", "f32", "--logits")
            oracle.fedlora("eval", "--base", base, "--adapter", folder, *common, out)
            (got,) = load_file(out).values()
            oracle.check(f"{name}: eval", oracle.relative_difference(got, want), 1e-5)
            oracle.fedlora("export", folder, "--as", "merged", "--base", base, "-o", merged)
            whole = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
            oracle.check(f"{name}: merged", oracle.relative_difference(logits(whole, rows), want), 1e-5)
            # The mean of an adapter with itself is the adapter, also for PEFT.
            mean = os.path.join(work, name + ".mean")
            oracle.fedlora("aggregate", folder, folder, "--base", base, "-o", mean, "--verify")
            ours = peft.PeftModel.from_pretrained(model_of(model_name, rows), mean)
            oracle.check(f"{name}: mean", oracle.relative_difference(logits(ours.eval(), rows), want), 1e-5)


if __name__ == "__main__":
    main()
