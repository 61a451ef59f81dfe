#!/usr/bin/env python3
"""Writes tests/golden/quants.bin with the package gguf: blocks of random bits of each block format and their values.

    python3 -m venv v && v/bin/pip install gguf && v/bin/python tests/golden/make_quants.py tests/golden/quants.bin

For each format: its name (8 bytes, filled with zeros), 512 values in blocks, 512 float32."""
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

VALUES = 512
# Offsets of half precision numbers in a block, which must be finite.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": []}

rng = np.random.default_rng(20)
with open(sys.argv[1], "wb") as out:
    for name, halves in HALVES.items():
        kind = GGMLQuantizationType[name]
        block, size = GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, (VALUES // block, size), dtype=np.uint8)
        for at in halves:
            data[:, at + 1] &= 0xBB  # an exponent below the largest
        if name == "MXFP4":
            data[:3, 0] = 0, 1, 2  # subnormal scales
        values = quants.dequantize(data.reshape(1, -1), kind).astype("<f4")
        assert np.isfinite(values).all()
        out.write(name.encode().ljust(8, b"\0") + data.tobytes() + values.tobytes())
