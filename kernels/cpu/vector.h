// Elementwise loops over contiguous numbers, dispatched at run time (target.h).
#pragma once

#include "number.h"

namespace fastmoe_lora {

void convert(const float* from, float* to, int64_t n);
void convert(const float* from, BFloat16* to, int64_t n);
void convert(const float* from, Half* to, int64_t n);
void convert(const BFloat16* from, float* to, int64_t n);
void convert(const BFloat16* from, BFloat16* to, int64_t n);
void convert(const Half* from, float* to, int64_t n);

// to = from + bias, rounded.
void convert_add(const float* from, const float* bias, float* to, int64_t n);
void convert_add(const float* from, const float* bias, BFloat16* to, int64_t n);
void convert_add(const float* from, const float* bias, Half* to, int64_t n);

// to[2 i] = even[i], to[2 i + 1] = odd[i]
void interleave(const BFloat16* even, const BFloat16* odd, BFloat16* to, int64_t n);

// to += from
void accumulate(const float* from, float* to, int64_t n);

// Dropout by counter: keep[k] = mix(key ^ k * 0x9E3779B9) >= threshold, key = mix(low ^ mix(row ^ high)) of the seed.
struct Dropout {
  uint32_t low = 0, high = 0, threshold = 0;
  float scale = 1;  // 1 / (1 - p)
  bool active = false;
};
void drop(const Dropout& dropout, int64_t row, const float* from, float* to, int64_t n);

}  // namespace fastmoe_lora
