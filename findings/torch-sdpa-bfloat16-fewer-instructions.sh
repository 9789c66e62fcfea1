#!/usr/bin/env bash
# torch 2.13.0 (CPU): with ATEN_CPU_CAPABILITY=default or avx2 on an x86-64 processor that has matrix instructions for
# bfloat16 (AMX), scaled_dot_product_attention in bfloat16 raises "pack_vnni2 is only supported when avx512 is
# supported", for 64 tokens and more; 32 tokens, float16 and float32 work. The fused kernel, compiled for fewer
# instructions, asks oneDNN whether to pack, and oneDNN looks at the processor itself.
# So whoever lowers the kernels to compare roundings, or to have the same bits on two machines, meets an error on the
# one that is newer. DNNL_MAX_CPU_ISA=AVX2 beside it, or torch.backends.cuda.enable_flash_sdp(False), which holds for
# the CPU's kernel, too, avoids it.
# On a processor without AMX nothing can be seen: then it ends with 77.
set -euo pipefail
if ! grep -qw amx_bf16 /proc/cpuinfo; then
    echo "This processor has no AMX: nothing can be shown here."
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > attend.py <<'PYTHON'
import sys

import torch

if "unfused" in sys.argv:
    torch.backends.cuda.enable_flash_sdp(False)
seen = []
for tokens in (32, 64):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.ones(1, 2, tokens, 16, dtype=dtype)
        try:
            torch.nn.functional.scaled_dot_product_attention(x, x, x)
            result = "works"
        except RuntimeError as error:
            result = str(error).splitlines()[0]
        seen.append(f"{tokens} tokens, {dtype}: {result}")
print(torch.__version__, torch.backends.cpu.get_cpu_capability(), *sys.argv[1:])
print(*seen, sep="\n")
fails = [line for line in seen if "works" not in line]
wanted = "pack_vnni2 is only supported when avx512 is supported"
raised = len(fails) == 1 and fails[0].startswith("64 tokens, torch.bfloat16") and wanted in fails[0]
sys.exit(0 if raised else 3 if not fails else 4)
PYTHON
export OMP_NUM_THREADS=1
run() { # what is expected, then the environment and the command
    local expected=$1 got=0
    shift
    env "$@" || got=$?
    [ "$got" = "$expected" ] || { echo "This changed: ended with $got, expected $expected."; exit 1; }
}
run 3 venv/bin/python attend.py
run 0 ATEN_CPU_CAPABILITY=avx2 venv/bin/python attend.py
run 0 ATEN_CPU_CAPABILITY=default venv/bin/python attend.py
run 3 ATEN_CPU_CAPABILITY=avx2 venv/bin/python attend.py unfused
run 3 ATEN_CPU_CAPABILITY=avx2 DNNL_MAX_CPU_ISA=AVX2 venv/bin/python attend.py
echo "As described."
