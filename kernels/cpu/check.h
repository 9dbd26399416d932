// What operands must be before a kernel reads them: one list for every way in.
#pragma once

#include "operator.h"

namespace fastmoe_lora {

// What is wrong with an argument; the message begins with its name.
struct Fault {
  std::string message;
  bool of_type = false;  // a TypeError, else a ValueError
};
using OptionalFault = std::optional<Fault>;

// A tensor on the CPU of which memory holds what its shape says: no subclass, no function transform, not "meta".
bool ordinary(const Tensor& tensor);

// All operands of the forward pass but x, which is (rows, k) in `type`. Without lora_A: of the frozen layer.
OptionalFault fault_beside_x(const Operands& operands, int64_t rows, int64_t k, at::ScalarType type);

// All of the forward pass, all of the backward pass, and of attention's; they throw what is wrong.
void check(const Operands& operands);
void check(const Tensor& grad_y, const Operands& operands, const Tensor& low_rank, const Needs& needs);
void check_attention(const Tensor& grad_y, const Tensor& qkv, int64_t heads);

}  // namespace fastmoe_lora
