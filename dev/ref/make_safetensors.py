"""Golden files of the safetensors package for test/test_io.c.

    pip install safetensors==0.4.5 numpy     (later versions take other arguments)
    python dev/ref/make_safetensors.py test/golden

types.safetensors    every type the reader converts, and two it does not. *_exact is the same
                     numbers in float64, converted by numpy.
written.safetensors  what our writer must produce byte for byte from the same tensors.
"""
import sys

import numpy as np
from safetensors import serialize

folder = sys.argv[1]


def entry(array, dtype=None):
    return {"dtype": dtype or str(array.dtype), "shape": list(array.shape), "data": array.tobytes()}


# fp16: zeros, smallest and largest subnormal, smallest normal, largest, infinities, nan, ordinary.
half_bits = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00,
                      0xFC00, 0x7E00, 0x3C00, 0x3555, 0xC248, 0x0200, 0x5640], dtype=np.uint16)
half = half_bits.view(np.float16)
# bf16 is the upper half of a float32.
bf16_bits = np.array([0x0000, 0x8000, 0x0001, 0x007F, 0x0080, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0,
                      0x3F80, 0xC049, 0x4580], dtype=np.uint16)
bf16 = (bf16_bits.astype(np.uint32) << 16).view(np.float32)
single = np.array([[1.5, -2.25, 3e38], [1e-45, -0.0, 0.1]], dtype=np.float32)
double = np.array([0.1, -1e300, 1e-300, 12345.678], dtype=np.float64)

with open(f"{folder}/types.safetensors", "wb") as out:
    out.write(serialize({
        "half": entry(half),
        "half_exact": entry(half.astype(np.float64)),
        "bf16": entry(bf16_bits, "bfloat16"),
        "bf16_exact": entry(bf16.astype(np.float64)),
        "single": entry(single),
        "single_exact": entry(single.astype(np.float64)),
        "double": entry(double),
        "scalar": entry(np.array(2.5, dtype=np.float32)),
        "empty": entry(np.zeros((0, 3), dtype=np.float32)),
        "counts": entry(np.arange(3, dtype=np.int64)),
        "mask": entry(np.array([True, False, True])),
    }, {"note": "escaped \" \\ \u00e9"}))

with open(f"{folder}/written.safetensors", "wb") as out:
    out.write(serialize({
        "a.weight": entry(np.arange(6, dtype=np.float32).reshape(2, 3) / 4),
        "b.bias": entry(np.array([-1, 0.5, 7], dtype=np.float32)),
        "c.bf16": entry(np.array([0x3F80, 0xC049, 0x0001], dtype=np.uint16), "bfloat16"),
        "d.half": entry(half_bits[:5].view(np.float16)),
    }, {"format": "pt"}))
