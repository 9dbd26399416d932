#include "autograd.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/custom_function.h>

#include "attention.h"

namespace fastmoe_lora {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor rows_of(const Tensor& tensor) { return tensor.reshape({-1, tensor.size(-1)}).contiguous(); }

// (M, columns) -> (..., columns), with the leading shape of `like`.
Tensor shaped_like(const Tensor& like, const Tensor& rows) {
  if (like.dim() == 2) return rows;
  std::vector<int64_t> sizes = like.sizes().vec();
  sizes.back() = rows.size(1);
  return at::_unsafe_view(rows, sizes);
}

void refuse_second_derivative() {
  TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(),
                              "create_graph=True: only backend 'reference' has second derivatives");
}

struct Linear : torch::autograd::Function<Linear> {
  // The tensors that may have gradients are o's own; as arguments autograd sees them. gates or router is given.
  static Tensor forward(AutogradContext* context, const Tensor& x, const OptionalTensor&, const OptionalTensor&,
                        const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, Operands o) {
    o.x = rows_of(x);
    const auto [y, low_rank, gates] = fastmoe_lora::forward(o, true);
    const auto saved = [](const OptionalTensor& tensor) { return tensor.value_or(Tensor()); };
    context->save_for_backward({o.lora_A ? o.x : Tensor(), o.weight, saved(o.lora_A), saved(o.lora_B), saved(o.diag),
                                o.router ? gates : saved(o.gates), saved(o.router), saved(o.columns), saved(o.seed),
                                low_rank});
    context->saved_data["scaling"] = o.scaling;
    context->saved_data["dropout"] = o.dropout;
    context->set_materialize_grads(false);
    return shaped_like(x, y);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(7);
    const Tensor& grad_y = grads[0];
    if (!grad_y.defined()) return result;
    refuse_second_derivative();
    const variable_list saved = context->get_saved_variables();
    const auto given = [&](int i) { return saved[i].defined() ? OptionalTensor(saved[i]) : std::nullopt; };
    const Operands o{saved[0], saved[1], {},       given(2), given(3), given(4), saved[5],
                     given(6), given(7), given(8), 0,        context->saved_data["scaling"].toDouble(),
                     context->saved_data["dropout"].toDouble()};
    const auto needs = [&](size_t edge) { return o.lora_A && context->needs_input_grad(edge); };
    const bool routing = needs(4);
    const Gradients g = fastmoe_lora::backward(rows_of(grad_y), o, saved[9],
                                               {context->needs_input_grad(0), needs(1), needs(2), needs(3),
                                                routing && !o.router, routing && o.router});
    if (g.x.defined()) result[0] = shaped_like(grad_y, g.x);
    result[1] = g.lora_A, result[2] = g.lora_B, result[3] = g.diag, result[4] = g.gates, result[5] = g.router;
    return result;
  }
};

struct SelfAttention : torch::autograd::Function<SelfAttention> {
  static Tensor forward(AutogradContext* context, const Tensor& qkv, int64_t heads) {
    context->save_for_backward({qkv});
    context->saved_data["heads"] = heads;
    context->set_materialize_grads(false);
    const auto parts = qkv.unflatten(2, {3, heads, -1}).permute({2, 0, 3, 1, 4}).unbind(0);  // (B, H, N, D) each
    return at::scaled_dot_product_attention(parts[0], parts[1], parts[2]).transpose(1, 2).contiguous().flatten(2);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor()};
    refuse_second_derivative();
    const Tensor qkv = context->get_saved_variables()[0];
    return {attention_backward(grads[0].contiguous(), qkv, context->saved_data["heads"].toInt()), Tensor()};
  }
};

Tensor apply(const Operands& o) {
  const auto trained = [](const OptionalTensor& tensor) { return tensor && tensor->requires_grad(); };
  if (at::GradMode::is_enabled() && (trained(o.x) || trained(o.lora_A) || trained(o.lora_B) || trained(o.diag) ||
                                     trained(o.gates) || trained(o.router)))
    return Linear::apply(o.x, o.lora_A, o.lora_B, o.diag, o.gates, o.router, o);
  Operands rows = o;
  rows.x = rows_of(o.x);
  return shaped_like(o.x, forward(rows, false).y);
}

// On the CPU; no subclass, no function transform.
bool ordinary(const Tensor& tensor) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet known{DispatchKey::CPU, DispatchKey::AutogradCPU, DispatchKey::AutocastCPU,
                                      DispatchKey::ADInplaceOrView};
  return tensor.device().is_cpu() && (tensor.key_set() - known).highestFunctionalityKey() == DispatchKey::Undefined;
}

bool is(const Tensor& tensor, at::IntArrayRef shape, at::ScalarType dtype, at::ScalarType or_dtype) {
  const auto type = tensor.scalar_type();
  return ordinary(tensor) && tensor.is_contiguous() && tensor.sizes() == shape && (type == dtype || type == or_dtype);
}

bool is_frozen_linear(const Tensor& x, at::ScalarType dtype, bool autocast, const Tensor& weight,
                      const OptionalTensor& bias) {
  const auto master = autocast ? at::kFloat : dtype;
  return (dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf) && ordinary(x) && x.numel() > 0 &&
         x.dim() > 0 && (x.scalar_type() == dtype || (autocast && x.is_floating_point())) && weight.dim() == 2 &&
         weight.size(0) > 0 && is(weight, {weight.size(0), x.size(-1)}, dtype, master) && !weight.requires_grad() &&
         (!bias || (is(*bias, {weight.size(0)}, dtype, master) && !bias->requires_grad()));
}

}  // namespace

OptionalTensor frozen_linear(const Tensor& x, at::ScalarType dtype, bool autocast, const Tensor& weight,
                             const OptionalTensor& bias) {
  if (!is_frozen_linear(x, dtype, autocast, weight, bias)) return std::nullopt;
  return apply({x.to(dtype), weight, bias});
}

OptionalTensor ramoe_linear(const Tensor& x, at::ScalarType dtype, bool autocast, const Tensor& weight,
                            const OptionalTensor& bias, const Tensor& lora_A, const Tensor& lora_B, const Tensor& diag,
                            const OptionalTensor& gates, const OptionalTensor& router, const OptionalTensor& columns,
                            std::optional<int64_t> top_k, double scaling, double dropout, const OptionalTensor& seed) {
  if (!is_frozen_linear(x, dtype, autocast, weight, bias) || lora_A.dim() != 4) return std::nullopt;
  const int64_t splits = lora_A.size(0), experts = lora_A.size(1), rank = lora_A.size(2), k = x.size(-1);
  const auto type = lora_A.scalar_type();
  if (splits == 0 || weight.size(0) % splits || !is(lora_A, {splits, experts, rank, k}, dtype, at::kFloat) ||
      !is(lora_B, {splits, experts, weight.size(0) / splits, rank}, type, type) || gates.has_value() == router.has_value())
    return std::nullopt;
  const std::vector<int64_t> diagonal{splits, experts, rank};
  if (!ordinary(diag) || !diag.is_floating_point() || !(diag.sizes() == diagonal || diag.sizes() == lora_A.sizes().slice(0, 2)))
    return std::nullopt;
  if (router && !is(*router, {splits * experts, k}, type, type)) return std::nullopt;
  if (columns && !is(*columns, {splits, columns->size(-1)}, at::kInt, at::kInt)) return std::nullopt;
  if (top_k && (*top_k < 1 || *top_k > experts)) return std::nullopt;
  if (dropout > 0 && !(seed && is(*seed, {}, at::kLong, at::kLong))) return std::nullopt;

  OptionalTensor gates_of_rows;
  if (gates) {
    std::vector<int64_t> full = x.sizes().vec();
    full.back() = splits, full.push_back(experts);
    if (!ordinary(*gates) || !at::is_expandable_to(gates->sizes(), full)) return std::nullopt;
    gates_of_rows = gates->expand(full).reshape({-1, splits, experts}).to(at::kFloat).contiguous();
  }
  return apply({x.to(dtype), weight, bias, lora_A, lora_B, diag.to(at::kFloat).contiguous(), gates_of_rows, router,
                columns, dropout > 0 ? seed : std::nullopt, top_k.value_or(0) < experts ? top_k.value_or(0) : 0, scaling,
                dropout});
}

OptionalTensor self_attention(const Tensor& qkv, int64_t heads) {
  if (!ordinary(qkv) || qkv.scalar_type() != at::kBFloat16 || qkv.dim() != 3 || qkv.numel() == 0 ||
      !qkv.is_contiguous() || heads < 1 || qkv.size(2) % (3 * heads))
    return std::nullopt;
  return SelfAttention::apply(qkv, heads);
}

}  // namespace fastmoe_lora
