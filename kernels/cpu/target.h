// Run-time dispatch of plain loops: the compiler makes a copy for each level and the loader picks one. Baseline flags
// stay baseline, so that one binary runs on any x86-64 and elsewhere.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FASTMOE_LORA_DISPATCHED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTMOE_LORA_DISPATCHED
#endif
#define FASTMOE_LORA_INLINE static inline __attribute__((always_inline))
