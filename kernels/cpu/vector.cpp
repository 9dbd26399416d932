#include "vector.h"

#include <cstring>

namespace fastmoe_lora {
namespace {

template <class From, class To>
FASTMOE_LORA_INLINE void convert_loop(const From* from, To* to, int64_t n) {
  for (int64_t i = 0; i < n; i++) to[i] = from_float<To>(to_float(from[i]));
}

template <class To>
FASTMOE_LORA_INLINE void convert_add_loop(const float* from, const float* bias, To* to, int64_t n) {
  for (int64_t i = 0; i < n; i++) to[i] = from_float<To>(from[i] + bias[i]);
}

// A bijective 32-bit mixer of two multiplications (constants of Wellons' hash prospector).
FASTMOE_LORA_INLINE uint32_t mix(uint32_t h) {
  h = (h ^ h >> 16) * 0x7feb352du;
  h = (h ^ h >> 15) * 0x846ca68bu;
  return h ^ h >> 16;
}

}  // namespace

void convert(const float* from, float* to, int64_t n) { std::memcpy(to, from, n * sizeof(float)); }
void convert(const BFloat16* from, BFloat16* to, int64_t n) {
  std::memcpy(static_cast<void*>(to), from, n * sizeof(BFloat16));
}
FASTMOE_LORA_DISPATCHED void convert(const float* from, BFloat16* to, int64_t n) { convert_loop(from, to, n); }
FASTMOE_LORA_DISPATCHED void convert(const float* from, Half* to, int64_t n) { convert_loop(from, to, n); }
FASTMOE_LORA_DISPATCHED void convert(const BFloat16* from, float* to, int64_t n) { convert_loop(from, to, n); }
FASTMOE_LORA_DISPATCHED void convert(const Half* from, float* to, int64_t n) { convert_loop(from, to, n); }

FASTMOE_LORA_DISPATCHED void convert_add(const float* from, const float* bias, float* to, int64_t n) {
  convert_add_loop(from, bias, to, n);
}
FASTMOE_LORA_DISPATCHED void convert_add(const float* from, const float* bias, BFloat16* to, int64_t n) {
  convert_add_loop(from, bias, to, n);
}
FASTMOE_LORA_DISPATCHED void convert_add(const float* from, const float* bias, Half* to, int64_t n) {
  convert_add_loop(from, bias, to, n);
}

FASTMOE_LORA_DISPATCHED void interleave(const BFloat16* even, const BFloat16* odd, BFloat16* to, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const uint32_t pair = even[i].x | uint32_t(odd[i].x) << 16;
    std::memcpy(static_cast<void*>(to + 2 * i), &pair, 4);
  }
}

FASTMOE_LORA_DISPATCHED void accumulate(const float* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

FASTMOE_LORA_DISPATCHED void drop(const Dropout& dropout, int64_t row, const float* from, float* to, int64_t n) {
  const uint32_t key = mix(dropout.low ^ mix(uint32_t(row) ^ dropout.high)), threshold = dropout.threshold;
  const float scale = dropout.scale;
  for (int64_t i = 0; i < n; i++) {
    const float kept = mix(key ^ uint32_t(i) * 0x9E3779B9u) >= threshold ? scale : 0.0f;
    to[i] = from[i] * kept;
  }
}

}  // namespace fastmoe_lora
