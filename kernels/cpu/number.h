// Conversions between float32 and the 16-bit types, in a form that vectorises.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <bit>
#include <cstdint>

#include "target.h"

namespace fastmoe_lora {

using c10::BFloat16;
using c10::Half;

FASTMOE_LORA_INLINE float to_float(float value) { return value; }
FASTMOE_LORA_INLINE float to_float(BFloat16 value) { return std::bit_cast<float>(uint32_t(value.x) << 16); }
FASTMOE_LORA_INLINE float to_float(Half value) { return c10::detail::fp16_ieee_to_fp32_value(value.x); }

template <class T>
FASTMOE_LORA_INLINE T from_float(float value);
template <>
inline __attribute__((always_inline)) float from_float<float>(float value) {
  return value;
}
template <>
inline __attribute__((always_inline)) BFloat16 from_float<BFloat16>(float value) {  // to nearest, ties to even
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return BFloat16(uint16_t(value != value ? 0x7fc0 : rounded), BFloat16::from_bits());
}
template <>
inline __attribute__((always_inline)) Half from_float<Half>(float value) {
  return Half(c10::detail::fp16_ieee_from_fp32_value(value), Half::from_bits());
}

}  // namespace fastmoe_lora
