#include "check.h"

#include <cmath>

namespace fastmoe_lora {
namespace {

std::string name_of(at::ScalarType type) { return c10::str("torch.", c10::getDtypeNames(type).first); }

bool compute_type(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf; }

// A resized storage may be smaller than its tensors (FSDP frees memory so).
bool has_memory(const Tensor& tensor) {
  return tensor.has_storage() &&
         tensor.storage().nbytes() >= size_t(tensor.storage_offset() + tensor.numel()) * tensor.element_size();
}

OptionalFault place_fault(const char* name, const Tensor& tensor) {
  if (!tensor.defined()) return Fault{c10::str(name, ": got None, expected a tensor"), true};
  if (ordinary(tensor)) return std::nullopt;
  if (!tensor.device().is_cpu())
    return Fault{c10::str(name, ": got a tensor on ", tensor.device(), ", expected the CPU")};
  return Fault{c10::str(name, ": got a tensor of dispatch keys ", tensor.key_set(), ", expected a plain dense one"), true};
}

OptionalFault layout_fault(const char* name, const Tensor& tensor) {
  if (!tensor.is_contiguous())
    return Fault{c10::str(name, ": got strides ", tensor.strides(), " for shape ", tensor.sizes(), ", expected a contiguous tensor")};
  if (!has_memory(tensor))
    return Fault{c10::str(name, ": got a storage of ", tensor.has_storage() ? tensor.storage().nbytes() : 0,
                          " bytes, expected the memory of shape ", tensor.sizes())};
  return std::nullopt;
}

OptionalFault fault(const char* name, const Tensor& tensor, at::IntArrayRef shape, at::ScalarType type,
                    at::ScalarType or_type) {
  if (auto found = place_fault(name, tensor)) return found;
  if (tensor.sizes() != shape) return Fault{c10::str(name, ": got shape ", tensor.sizes(), ", expected ", shape)};
  const auto own = tensor.scalar_type();
  if (own != type && own != or_type)
    return Fault{c10::str(name, ": got ", name_of(own), ", expected ", name_of(type),
                          type == or_type ? "" : " or " + name_of(or_type)), true};
  return layout_fault(name, tensor);
}

OptionalFault columns_fault(const Tensor& columns, int64_t splits, int64_t all) {
  const auto* table = data<int32_t>(columns);
  const int64_t width = columns.size(1);
  std::vector<bool> seen(all);
  for (int64_t s = 0; s < splits; s++, seen.assign(all, false))
    for (int64_t p = 0; p < width; p++) {
      const int64_t column = table[s * width + p];
      if (column < -1 || column >= all)
        return Fault{c10::str("columns: got ", column, " in split ", s, ", expected 0 to ", all - 1, ", or -1 for none")};
      if (column >= 0 && seen[column])
        return Fault{c10::str("columns: got ", column, " twice in split ", s, ", expected each column once")};
      if (column >= 0) seen[column] = true;
    }
  return std::nullopt;
}

OptionalFault number_fault(const Operands& o, int64_t experts) {
  if (o.top_k < 0 || o.top_k > experts)
    return Fault{c10::str("top_k: got ", o.top_k, ", expected 0 (all) to ", experts, " (the number of experts)")};
  if (!std::isfinite(o.scaling)) return Fault{c10::str("scaling: got ", o.scaling, ", expected a finite number")};
  if (!(o.dropout >= 0 && o.dropout < 1)) return Fault{c10::str("dropout: got ", o.dropout, ", expected 0 to below 1")};
  if (o.dropout > 0) return fault("seed", o.seed.value_or(Tensor()), {}, at::kLong, at::kLong);
  if (o.seed) return place_fault("seed", *o.seed);  // not read, and refused like the others all the same
  return std::nullopt;
}

OptionalFault adapter_fault(const Operands& o, int64_t rows, int64_t k, at::ScalarType type) {
  const Tensor& a = *o.lora_A;
  if (auto found = place_fault("lora_A", a)) return found;
  if (a.dim() != 4 || a.numel() == 0)
    return Fault{c10::str("lora_A: got shape ", a.sizes(), ", expected (splits, experts, max_rank, in_features), none 0")};
  const int64_t splits = a.size(0), experts = a.size(1), rank = a.size(2), n = o.weight.size(0);
  const auto parameter = a.scalar_type();
  if (n % splits) return Fault{c10::str("weight: got ", n, " rows, expected a multiple of lora_A's ", splits, " splits")};
  OptionalFault found;
  const auto bad = [&](const char* name, const OptionalTensor& tensor, at::IntArrayRef shape, at::ScalarType expected,
                       at::ScalarType or_type) {
    found = tensor ? fault(name, *tensor, shape, expected, or_type) : place_fault(name, Tensor());
    return found.has_value();
  };
  const bool ranks = o.diag && o.diag->defined() && o.diag->dim() == 2;
  if (bad("lora_A", o.lora_A, {splits, experts, rank, k}, type, at::kFloat) ||
      bad("lora_B", o.lora_B, {splits, experts, n / splits, rank}, parameter, parameter) ||
      (ranks ? bad("diag", o.diag, {splits, experts}, at::kFloat, at::kFloat)
             : bad("diag", o.diag, {splits, experts, rank}, at::kFloat, at::kFloat)) ||
      (o.gates && bad("gates", o.gates, {rows, splits, experts}, at::kFloat, at::kFloat)) ||
      (o.router && bad("router_weight", o.router, {splits * experts, k}, parameter, parameter)))
    return found;
  if (o.columns) {
    const int64_t width = o.columns->defined() && o.columns->dim() == 2 ? std::max<int64_t>(o.columns->size(1), 1) : 1;
    if (bad("columns", o.columns, {splits, width}, at::kInt, at::kInt)) return found;
    if ((found = columns_fault(*o.columns, splits, experts * rank))) return found;
  }
  return number_fault(o, experts);
}

OptionalFault rows_fault(const char* name, const Tensor& rows) {
  if (auto found = place_fault(name, rows)) return found;
  if (rows.dim() != 2) return Fault{c10::str(name, ": got shape ", rows.sizes(), ", expected two dimensions")};
  if (!compute_type(rows.scalar_type()))
    return Fault{c10::str(name, ": got ", name_of(rows.scalar_type()), ", expected bfloat16, float16 or float32"), true};
  return layout_fault(name, rows);
}

void refuse(const OptionalFault& found) {
  if (!found) return;
  TORCH_CHECK_TYPE(!found->of_type, found->message);
  TORCH_CHECK_VALUE(false, found->message);
}

}  // namespace

bool ordinary(const Tensor& tensor) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet known{DispatchKey::CPU, DispatchKey::AutogradCPU, DispatchKey::AutocastCPU,
                                      DispatchKey::ADInplaceOrView};
  return tensor.device().is_cpu() && (tensor.key_set() - known).highestFunctionalityKey() == DispatchKey::Undefined;
}

OptionalFault fault_beside_x(const Operands& o, int64_t rows, int64_t k, at::ScalarType type) {
  if (auto found = place_fault("weight", o.weight)) return found;
  const int64_t n = o.weight.dim() == 2 ? o.weight.size(0) : 0;
  if (n == 0 || k == 0)
    return Fault{c10::str("weight: got shape ", o.weight.sizes(), ", expected (out_features, in_features), none 0")};
  if (auto found = fault("weight", o.weight, {n, k}, type, at::kFloat)) return found;
  if (o.bias)
    if (auto found = fault("bias", *o.bias, {n}, type, at::kFloat)) return found;
  return o.lora_A ? adapter_fault(o, rows, k, type) : std::nullopt;
}

void check(const Operands& o) {
  refuse(rows_fault("x", o.x));
  refuse(fault_beside_x(o, o.x.size(0), o.x.size(1), o.x.scalar_type()));
  TORCH_CHECK_VALUE(!o.lora_A || o.gates.has_value() != o.router.has_value(), "gates, router_weight: got ",
                    o.gates ? "both" : "neither", ", expected exactly one of them");
}

void check(const Tensor& grad_y, const Operands& o, const Tensor& low_rank, const Needs& needs) {
  refuse(rows_fault("grad_y", grad_y));
  const int64_t rows = grad_y.size(0);
  const auto type = grad_y.scalar_type();
  if (o.weight.defined() && o.weight.dim() == 2) refuse(fault("grad_y", grad_y, {rows, o.weight.size(0)}, type, type));
  refuse(fault_beside_x(o, rows, o.weight.defined() && o.weight.dim() == 2 ? o.weight.size(1) : 0, type));
  if (!o.lora_A) return;
  refuse(fault("x", o.x, {rows, o.weight.size(1)}, type, type));
  const auto sizes = o.lora_A->sizes();
  TORCH_CHECK_VALUE(o.gates, "gates: got None, expected the gates of the forward pass");
  TORCH_CHECK_VALUE(!needs.router || o.router, "router_weight: got None, expected a tensor, since its gradient is asked for");
  refuse(fault("low_rank", low_rank, {rows, sizes[0], o.columns ? o.columns->size(1) : sizes[1] * sizes[2]}, type, type));
}

void check_attention(const Tensor& grad_y, const Tensor& qkv, int64_t heads) {
  refuse(place_fault("qkv", qkv));
  TORCH_CHECK_VALUE(heads >= 1 && qkv.dim() == 3 && qkv.numel() > 0 && qkv.size(2) % (3 * heads) == 0, "qkv: got shape ",
                    qkv.sizes(), ", expected (B, N, 3 * width) with width a multiple of ", heads, " heads, none 0");
  refuse(fault("qkv", qkv, qkv.sizes(), at::kBFloat16, at::kBFloat16));
  refuse(fault("grad_y", grad_y, {qkv.size(0), qkv.size(1), qkv.size(2) / 3}, at::kBFloat16, at::kBFloat16));
}

}  // namespace fastmoe_lora
