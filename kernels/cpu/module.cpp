// Registration: torch.ops.fastmoe_lora_cpu.*, and what this machine can do.
#include <ATen/Context.h>
#include <torch/library.h>

#include "autograd.h"
#include "check.h"
#include "multiply.h"
#include "operator.h"
#include "weights.h"

namespace fastmoe_lora {
namespace {

constexpr const char* kNames[] = {"amx", "dot", "float"};
Engine fastest = Engine::kAmx;  // that may be used

std::string engine() { return kNames[int(layout_for(at::kBFloat16).engine)]; }  // of bfloat16

// bfloat16 dot products: the processor has them and oneDNN's kernels, in the build at hand, take them.
bool dot_products_work() {
#if defined(__x86_64__)
  static const bool works = [] {
    if (!__builtin_cpu_supports("avx512bf16")) return false;
    BFloat16 a[2] = {}, b[32] = {};
    float c[16];
    try {
      at::native::cpublas::brgemm(1, 16, 2, 2, 16, 16, false, a, b, c);
      at::native::cpublas::brgemm_release();
    } catch (const std::exception&) {
      return false;
    }
    return true;
  }();
  return works && at::globalContext().userEnabledMkldnn();
#else
  return false;
#endif
}

std::string missing() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") ? "" : "the processor has no AVX2";
#else
  return "built for a processor that is not x86-64";
#endif
}

std::tuple<Tensor, Tensor, Tensor> forward_operator(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& lora_A, const Tensor& lora_B,
    const Tensor& diag, const OptionalTensor& gates, const OptionalTensor& router, const OptionalTensor& columns,
    int64_t top_k, double scaling, double dropout, const OptionalTensor& seed) {
  const Operands operands{x, weight, bias, lora_A, lora_B, diag, gates, router, columns, seed, top_k, scaling, dropout};
  check(operands);
  const Forward out = forward(operands, true);
  return {out.y, out.low_rank, router ? out.gates : at::empty({0}, x.options().dtype(at::kFloat))};
}

std::vector<Tensor> backward_operator(const Tensor& grad_y, const Tensor& x, const Tensor& weight, const Tensor& lora_A,
                                      const Tensor& lora_B, const Tensor& diag, const Tensor& gates,
                                      const OptionalTensor& router, const OptionalTensor& columns,
                                      const Tensor& low_rank, double scaling, double dropout,
                                      const OptionalTensor& seed, bool needs_x, bool needs_a, bool needs_b,
                                      bool needs_diag, bool needs_gates, bool needs_router) {
  const Operands operands{x, weight, {}, lora_A, lora_B, diag, gates, router, columns, seed, 0, scaling, dropout};
  const Needs needs{needs_x, needs_a, needs_b, needs_diag, needs_gates, needs_router};
  check(grad_y, operands, low_rank, needs);
  Gradients g = backward(grad_y, operands, low_rank, needs);
  std::vector<Tensor> result{g.x, g.lora_A, g.lora_B, g.diag, g.gates, g.router};
  for (Tensor& tensor : result)
    if (!tensor.defined()) tensor = at::empty({0}, grad_y.options());
  return result;
}

Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const Operands operands{x, weight, bias};
  check(operands);
  return forward(operands, false).y;
}

Tensor linear_backward(const Tensor& grad_y, const Tensor& weight) {
  const Operands operands{Tensor(), weight};
  const Needs needs{true, false, false, false, false, false};
  check(grad_y, operands, Tensor(), needs);
  return backward(grad_y, operands, Tensor(), needs).x;
}

}  // namespace

Layout layout_for(at::ScalarType dtype) {
  if (dtype != at::kBFloat16) return {Engine::kFloat};
  if (fastest == Engine::kAmx && amx::available()) return {Engine::kAmx};
  return {fastest != Engine::kFloat && dot_products_work() ? Engine::kDot : Engine::kFloat};
}

std::string limit_engine(const std::string& name) {
  const std::string was = kNames[int(fastest)];
  const auto found = std::find(std::begin(kNames), std::end(kNames), name);
  TORCH_CHECK(found != std::end(kNames), "engine: got ", name, ", expected amx, dot or float");
  fastest = Engine(found - std::begin(kNames));
  return was;
}

}  // namespace fastmoe_lora

TORCH_LIBRARY(fastmoe_lora_cpu, library) {
  using namespace fastmoe_lora;
  library.def(
      "forward(Tensor x, Tensor weight, Tensor? bias, Tensor lora_A, Tensor lora_B, Tensor diag, Tensor? gates, "
      "Tensor? router, Tensor? columns, int top_k, float scaling, float dropout, Tensor? seed) "
      "-> (Tensor, Tensor, Tensor)",
      forward_operator);
  library.def(
      "backward(Tensor grad_y, Tensor x, Tensor weight, Tensor lora_A, Tensor lora_B, Tensor diag, Tensor gates, "
      "Tensor? router, Tensor? columns, Tensor low_rank, float scaling, float dropout, Tensor? seed, bool needs_x, "
      "bool needs_a, bool needs_b, bool needs_diag, bool needs_gates, bool needs_router) -> Tensor[]",
      backward_operator);
  library.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", linear);
  library.def("linear_backward(Tensor grad_y, Tensor weight) -> Tensor", linear_backward);
  library.def(
      "ramoe_linear(Tensor x, ScalarType dtype, bool autocast, Tensor weight, Tensor? bias, Tensor lora_A, "
      "Tensor lora_B, Tensor diag, Tensor? gates, Tensor? router, Tensor? columns, int? top_k, float scaling, "
      "float dropout, Tensor? seed) -> Tensor?",
      ramoe_linear);
  library.def("frozen_linear(Tensor x, ScalarType dtype, bool autocast, Tensor weight, Tensor? bias) -> Tensor?",
              frozen_linear);
  library.def("self_attention(Tensor qkv, int heads) -> Tensor?", self_attention);
  library.def("missing() -> str", missing);
  library.def("engine() -> str", engine);
  library.def("limit_engine(str name) -> str", limit_engine);
  library.def("cached_bytes() -> int", cached_bytes);
  library.def("clear_cache() -> ()", clear_cache);
  library.def("set_caching(bool on) -> bool", set_caching);
}
