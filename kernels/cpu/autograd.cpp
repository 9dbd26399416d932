#include "autograd.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/custom_function.h>

#include "attention.h"
#include "check.h"

namespace fastmoe_lora {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// As a contiguous matrix; "negative" tensors, which torch makes of imaginary parts, are written out.
Tensor rows_of(const Tensor& tensor) {
  const Tensor rows = tensor.reshape({-1, tensor.size(-1)}).contiguous();
  return rows.is_neg() ? rows.resolve_neg() : rows;
}

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
  // The tensors that may have gradients are o's own; as arguments autograd sees them. One that is absent has no edge; of
  // gates and router one is given.
  static Tensor forward(AutogradContext* context, const Tensor& x, const OptionalTensor&, const OptionalTensor&,
                        const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const Tensor&,
                        const OptionalTensor&, Operands o) {
    o.x = rows_of(x);
    const auto [y, low_rank, gates] = fastmoe_lora::forward(o, true);
    const auto saved = [](const OptionalTensor& tensor) { return tensor.value_or(Tensor()); };
    context->save_for_backward({o.lora_A ? o.x : Tensor(), o.weight, saved(o.lora_A), saved(o.lora_B), saved(o.diag),
                                o.router ? gates : saved(o.gates), saved(o.router), saved(o.columns), saved(o.seed),
                                low_rank});
    context->saved_data["scaling"] = o.scaling;
    context->saved_data["dropout"] = o.dropout;
    context->saved_data["bias"] = o.bias.has_value();
    context->set_materialize_grads(false);
    return shaped_like(x, y);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    variable_list result(9);
    const Tensor& grad_y = grads[0];
    if (!grad_y.defined()) return result;
    refuse_second_derivative();
    const variable_list saved = context->get_saved_variables();
    const auto given = [&](int i) { return saved[i].defined() ? OptionalTensor(saved[i]) : std::nullopt; };
    const Operands o{saved[0], saved[1], {},       given(2), given(3), given(4), saved[5],
                     given(6), given(7), given(8), 0,        context->saved_data["scaling"].toDouble(),
                     context->saved_data["dropout"].toDouble()};
    const auto needs = [&](size_t edge) { return o.lora_A && context->needs_input_grad(edge); };
    const bool routing = needs(4), trained = needs(5);
    const bool trained_bias = context->saved_data["bias"].toBool() && needs(6);
    const Tensor rows = rows_of(grad_y);
    const Needs wanted{context->needs_input_grad(0), needs(1), needs(2), needs(3), routing && !o.router, routing && o.router};
    check(rows, o, saved[9], wanted);  // a saved tensor may have been given other data since
    const Gradients g = fastmoe_lora::backward(rows, o, saved[9], wanted);
    if (g.x.defined()) result[0] = shaped_like(grad_y, g.x);
    result[1] = g.lora_A, result[2] = g.lora_B, result[3] = g.diag, result[4] = g.gates, result[5] = g.router;
    if (trained) result[6] = rows.t().matmul(o.x).to(o.weight.scalar_type());
    if (trained_bias) result[7] = rows.sum(0, false, o.weight.scalar_type());
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
    const Tensor qkv = context->get_saved_variables()[0], grad_y = grads[0].contiguous();
    const int64_t heads = context->saved_data["heads"].toInt();
    check_attention(grad_y, qkv, heads);
    return {attention_backward(grad_y, qkv, heads), Tensor()};
  }
};

Tensor apply(const Operands& o) {
  const auto trained = [](const OptionalTensor& tensor) { return tensor && tensor->requires_grad(); };
  if (at::GradMode::is_enabled() && (trained(o.x) || trained(o.lora_A) || trained(o.lora_B) || trained(o.diag) ||
                                     trained(o.gates) || trained(o.router) || trained(o.weight) || trained(o.bias)))
    return Linear::apply(o.x, o.lora_A, o.lora_B, o.diag, o.gates, o.router, o.weight, o.bias, o);
  Operands rows = o;
  rows.x = rows_of(o.x);
  return shaped_like(o.x, forward(rows, false).y);
}

// A floating-point number of at most 32 bits, which autocast casts; it leaves float64 alone.
bool may_be_cast(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf; }

// x and a linear layer, of types that the caller may have in `dtype`. What else they must be, `fault_beside_x` says.
bool is_linear(const Tensor& x, at::ScalarType dtype, bool autocast, const Tensor& weight, const OptionalTensor& bias) {
  const auto taken = [&](const Tensor& parameter) { return autocast || parameter.scalar_type() == dtype; };
  return may_be_cast(dtype) && ordinary(x) && x.dim() > 0 && x.numel() > 0 &&
         (x.scalar_type() == dtype || (autocast && may_be_cast(x.scalar_type()))) && taken(weight) &&
         (!bias || taken(*bias));
}

bool is_right(const Operands& o) {
  const int64_t k = o.x.size(-1);
  return !fault_beside_x(o, o.x.numel() / k, k, o.x.scalar_type());
}

}  // namespace

OptionalTensor frozen_linear(const Tensor& x, at::ScalarType dtype, bool autocast, const Tensor& weight,
                             const OptionalTensor& bias) {
  if (!is_linear(x, dtype, autocast, weight, bias) || weight.requires_grad() || (bias && bias->requires_grad()))
    return std::nullopt;
  const Operands o{x.to(dtype), weight, bias};
  return is_right(o) ? apply(o) : OptionalTensor();
}

OptionalTensor ramoe_linear(const Tensor& x, at::ScalarType dtype, bool autocast, const Tensor& weight,
                            const OptionalTensor& bias, const Tensor& lora_A, const Tensor& lora_B, const Tensor& diag,
                            const OptionalTensor& gates, const OptionalTensor& router, const OptionalTensor& columns,
                            std::optional<int64_t> top_k, double scaling, double dropout, const OptionalTensor& seed) {
  const auto numbers = [](const Tensor& tensor) { return ordinary(tensor) && tensor.is_floating_point(); };
  if (!is_linear(x, dtype, autocast, weight, bias) || lora_A.dim() != 4 || !numbers(diag) ||
      gates.has_value() == router.has_value() || (top_k && *top_k < 1))
    return std::nullopt;
  OptionalTensor gates_of_rows;
  if (gates) {
    const int64_t splits = lora_A.size(0), experts = lora_A.size(1);
    std::vector<int64_t> full = x.sizes().vec();
    full.back() = splits, full.push_back(experts);
    if (!numbers(*gates) || splits * experts == 0 || !at::is_expandable_to(gates->sizes(), full)) return std::nullopt;
    gates_of_rows = gates->expand(full).reshape({-1, splits, experts}).to(at::kFloat).contiguous();
  }
  Operands o{x.to(dtype), weight,  bias, lora_A,  lora_B, diag.to(at::kFloat).contiguous(), gates_of_rows, router, columns,
             seed,        top_k.value_or(0), scaling, dropout};
  if (!is_right(o)) return std::nullopt;
  if (o.top_k == lora_A.size(1)) o.top_k = 0;
  if (dropout == 0) o.seed.reset();
  return apply(o);
}

OptionalTensor self_attention(const Tensor& qkv, int64_t heads) {
  if (!ordinary(qkv) || qkv.scalar_type() != at::kBFloat16 || qkv.dim() != 3 || qkv.numel() == 0 ||
      !qkv.is_contiguous() || heads < 1 || qkv.size(2) % (3 * heads))
    return std::nullopt;
  return SelfAttention::apply(qkv, heads);
}

}  // namespace fastmoe_lora
