// The backward pass of self-attention without a mask.
#pragma once

#include "tensors.h"

namespace fastmoe_lora {

// Gradient of qkv (B, N, 3 * H * D), in which query, key and value lie one behind the other with the heads in order, from
// that of softmax(q k^T / sqrt(D)) v, grad_y (B, N, H * D). Everything contiguous and in bfloat16.
Tensor attention_backward(const Tensor& grad_y, const Tensor& qkv, int64_t heads);

}  // namespace fastmoe_lora
