// The exponential function in a form that vectorises.
#pragma once

#include <bit>
#include <cstdint>

#include "target.h"

namespace fastmoe_lora {

// exp for x <= 0, to 2 ulp: 2^n * p(r), |r| <= ln 2 / 2, p the Taylor polynomial of degree 7.
FASTMOE_LORA_INLINE float exp_of_negative(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (x * 1.44269504f + magic) - magic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>((int32_t(n) + 127) << 23);
}

}  // namespace fastmoe_lora
