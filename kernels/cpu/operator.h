// The operator's two directions, and the frozen linear layer: the same product without adapters.
#pragma once

#include "tensors.h"

namespace fastmoe_lora {

// Shapes: x (M, K), weight (N, K), bias (N), lora_A (S, E, R, K), lora_B (S, E, N/S, R), diag (S, E, R) or ranks (S, E),
// gates (M, S, E) or router (S*E, K), columns (S, P) int32, seed a 0-d int64. Everything contiguous. Parameters are in
// x's type or in float32, and then rounded to x's type where they are packed. `check` (check.h) holds operands to all of it;
// what follows here trusts them.
struct Operands {
  Tensor x, weight;
  OptionalTensor bias, lora_A, lora_B, diag, gates, router, columns, seed;
  int64_t top_k = 0;
  double scaling = 1, dropout = 0;
};

struct Gradients {
  Tensor x, lora_A, lora_B, diag, gates, router;  // undefined where not asked for
};
struct Needs {
  bool x, lora_A, lora_B, diag, gates, router;
};

struct Forward {
  Tensor y, low_rank, gates;  // (M, N), (M, S, P), and the router's (M, S, E)
};

// `keep`: what the backward pass needs, the low-rank product and the router's gates, is written too.
Forward forward(const Operands& operands, bool keep);
Gradients backward(const Tensor& grad_y, const Operands& operands, const Tensor& low_rank, const Needs& needs);

// The layout in use for a storage type on this machine.
Layout layout_for(at::ScalarType dtype);
// "amx", "dot" or "float": the fastest engine that may be used; returns the one that was. For tests and comparisons.
std::string limit_engine(const std::string& name);

}  // namespace fastmoe_lora
