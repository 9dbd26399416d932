// The base weight (N, K), packed; kept for as long as the weight lives and stays what it was.
#pragma once

#include "tensors.h"

namespace fastmoe_lora {

enum class Direction { kForward, kBackward };  // x W^T, or dy W

struct PackedWeight {
  Panels panels;  // forward: of one split, (K, N / S); backward: of all, (S * padded(N / S), K)
  Tensor memory;  // uint8
};

// `weight` is contiguous. Where it does not require a gradient the packed copy is cached (see weights.cpp).
PackedWeight packed_weight(const Tensor& weight, int64_t splits, Layout layout, Direction direction);

int64_t cached_bytes();     // memory of all packed copies
void clear_cache();         // gives it back
bool set_caching(bool on);  // returns what it was; off: weights are packed anew in every call, nothing is kept

}  // namespace fastmoe_lora
