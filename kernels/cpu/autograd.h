// The operator with its gradient, entered by one call: what is ordinary does not pass through Python on its way.
#pragma once

#include "operator.h"

namespace fastmoe_lora {

// The layer with adapters, x (..., K) -> (..., N), in type `dtype`. Under `autocast` x is cast to it, and parameters may be
// float32. gates: broadcastable to (..., S, E). Nothing is returned where an argument is not what the layer usually
// gets: wrong, on another device, a view with strides of its own, a subclass. Python then does what is unusual, or says
// what is wrong.
OptionalTensor ramoe_linear(const Tensor& x, at::ScalarType dtype, bool autocast, const Tensor& weight,
                            const OptionalTensor& bias, const Tensor& lora_A, const Tensor& lora_B, const Tensor& diag,
                            const OptionalTensor& gates, const OptionalTensor& router, const OptionalTensor& columns,
                            std::optional<int64_t> top_k, double scaling, double dropout, const OptionalTensor& seed);

// The frozen layer, likewise; nothing for a weight or bias that is trained.
OptionalTensor frozen_linear(const Tensor& x, at::ScalarType dtype, bool autocast, const Tensor& weight,
                             const OptionalTensor& bias);

// softmax(q k^T / sqrt(D)) v of qkv (B, N, 3 * H * D) as in attention.h -> (B, N, H * D), likewise; the forward pass is
// PyTorch's.
OptionalTensor self_attention(const Tensor& qkv, int64_t heads);

}  // namespace fastmoe_lora
