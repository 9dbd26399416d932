#!/bin/sh
# The tests of the CPU kernels and the fuzzer under AddressSanitizer and UndefinedBehaviorSanitizer, in a copy of package
# and tests with an instrumented build.
# Usage: [FUZZ_SECONDS=S] kernels/cpu/check_memory.sh [PYTHON], from the root of the repository; needs g++.
set -e
python=$(realpath -s "$(command -v "${1:-python3}")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
torch=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))')
cp -r fastmoe_lora tests pyproject.toml "$work"
rm -f "$work"/fastmoe_lora/_cpu*.so
sanitize="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-sanitize=vptr"
for source in kernels/cpu/*.cpp; do
    g++ -c "$source" -o "$work/$(basename "$source").o" -O1 -g -fno-omit-frame-pointer $sanitize -fPIC \
        -std=c++20 -fopenmp -fno-math-errno -fno-trapping-math -I"$torch/include" -I"$torch/include/torch/csrc/api/include"
done
g++ -shared $sanitize -fopenmp "$work"/*.o -o "$work/fastmoe_lora/_cpu.so" -L"$torch/lib" -ltorch_cpu -lc10
cd "$work"
# Python itself frees little at exit, so leaks are a test of their own (test_packed_weight.py).
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
    UBSAN_OPTIONS=print_stacktrace=1 "$python" -m pytest -p no:cacheprovider -q -s \
    -k "not ten_thousand and not compiles and not two_to_the_31" tests/kernels/cpu tests/fastmoe_lora/test_fuzz.py
