// Rows of the adapter between its two products. Each entry point is one function per instruction set with everything
// inlined: there are a few hundred numbers a row, so calls would cost as much as the arithmetic.
#include <cmath>
#include <memory>

#include "adapter.h"
#include "engine.h"
#include "exp.h"

namespace fastmoe_lora {
namespace {

// Each step is taken for all rows of a block before the next one: rows do not wait for each other, and numbers that are
// written one by one have left the store buffer by the time they are read as vectors.

// Softmax over the experts of each split, of which the top_k largest are kept unless top_k is 0 (equal logits come in
// order of their index). Rows are the innermost loop, so that it vectorises however few experts there are. `work` has
// room for two numbers a gate of the block and two more a row.
FASTMOE_LORA_INLINE void route(const Adapter& adapter, int64_t rows, const float* __restrict logits, int64_t ld,
                               float* __restrict work, float* __restrict gates) {
  const int64_t splits = adapter.splits, experts = adapter.experts, all = splits * experts;
  float* __restrict across = work;  // logits, (S*E, rows)
  float* __restrict kept = across + all * rows;
  float* __restrict largest = kept + all * rows;
  float* __restrict total = largest + rows;
  for (int64_t j = 0; j < all; j++)
    for (int64_t i = 0; i < rows; i++) across[j * rows + i] = logits[i * ld + j];
  for (int64_t s = 0; s < splits; s++) {
    const float* __restrict from = across + s * experts * rows;
    float* __restrict to = kept + s * experts * rows;
    for (int64_t i = 0; i < rows; i++) largest[i] = from[i], total[i] = 0;
    for (int64_t e = 1; e < experts; e++)
      for (int64_t i = 0; i < rows; i++) largest[i] = from[e * rows + i] > largest[i] ? from[e * rows + i] : largest[i];
    for (int64_t e = 0; e < experts; e++) {
      for (int64_t i = 0; i < rows; i++) to[e * rows + i] = exp_of_negative(from[e * rows + i] - largest[i]);
      if (adapter.top_k)
        for (int64_t i = 0; i < rows; i++) {
          const float own = from[e * rows + i];
          int64_t before = 0;
          for (int64_t f = 0; f < experts; f++) before += from[f * rows + i] > own || (from[f * rows + i] == own && f < e);
          to[e * rows + i] = before < adapter.top_k ? to[e * rows + i] : 0.0f;
        }
      for (int64_t i = 0; i < rows; i++) total[i] += to[e * rows + i];
    }
    for (int64_t i = 0; i < rows; i++) total[i] = 1 / total[i];
    for (int64_t e = 0; e < experts; e++)
      for (int64_t i = 0; i < rows; i++) gates[i * all + s * experts + e] = to[e * rows + i] * total[i];
  }
}

// Every column's gate.
FASTMOE_LORA_INLINE void expand(const Adapter& adapter, int64_t rows, const float* __restrict gates,
                                float* __restrict columns) {
  const int64_t n = adapter.columns(), experts = adapter.splits * adapter.experts, octets = adapter.octets.size();
  const int32_t* __restrict gate = adapter.gate.data();
  const int32_t* __restrict octet = adapter.octets.data();
  for (int64_t r = 0; r < rows; r++, gates += experts, columns += n) {
    for (int64_t i = 0; i < (octets ? 0 : n); i++) columns[i] = gates[gate[i]];
    for (int64_t i = 0; i < octets; i++) {
      const float one = gates[octet[i]];
      float* __restrict eight = columns + 8 * i;
      for (int64_t k = 0; k < 8; k++) eight[k] = one;
    }
  }
}

// Numbers of scratch memory for a block of rows: the columns' gates, then what is left of routing or of gradients.
int64_t work_size(const Adapter& adapter, int64_t rows) {
  const int64_t gates = adapter.splits * adapter.experts;
  return rows * adapter.columns() + std::max(2 * (gates + 1) * rows, adapter.columns() + gates);
}

template <class T, class C>
FASTMOE_LORA_INLINE void forward_rows(const Adapter& adapter, int64_t rows, const float* c, int64_t ldc, float* gates,
                                      T* low_rank, C* t, int64_t ldt, float* work) {
  const int64_t n = adapter.columns(), width = adapter.width, splits = adapter.splits;
  float* g = work;
  if (adapter.routed) route(adapter, rows, c + n, ldc, work + rows * n, gates);
  expand(adapter, rows, gates, g);
  for (int64_t i = 0; i < rows; i++, c += ldc, g += n, low_rank += n, t += splits * ldt) {
    for (int64_t s = 0; s < splits; s++) {
      const float *from = c + s * width, *gate = g + s * width, *coefficient = adapter.coefficient.data() + s * width;
      T* __restrict low = low_rank + s * width;
      C* __restrict out = t + s * ldt;
      for (int64_t p = 0; p < width; p++) {
        low[p] = from_float<T>(from[p]);
        out[p] = from_float<C>(to_float(low[p]) * (gate[p] * coefficient[p]));
      }
    }
  }
}

// Sums by gate.
FASTMOE_LORA_INLINE void collect(const Adapter& adapter, const float* by_rank, float* grad_gates) {
  for (int64_t e = 0; e < adapter.splits * adapter.experts; e++) grad_gates[e] = 0;
  if (adapter.octets.empty()) {
    for (const Run& run : adapter.runs) {
      float total = 0;
      for (int64_t p = run.begin; p < run.end; p++) total += by_rank[p];
      grad_gates[run.split * adapter.experts + run.expert] += total;
    }
    return;
  }
  for (int64_t i = 0; i < int64_t(adapter.octets.size()); i++, by_rank += 8)
    grad_gates[adapter.octets[i]] += ((by_rank[0] + by_rank[1]) + (by_rank[2] + by_rank[3])) +
                                     ((by_rank[4] + by_rank[5]) + (by_rank[6] + by_rank[7]));
}

template <class T, class C>
FASTMOE_LORA_INLINE void backward_rows(const Adapter& adapter, int64_t rows, const float* u, int64_t ldu,
                                       const T* low_rank, const float* gates, C* ds, int64_t ld_ds, C* t,
                                       float* grad_gates, float* grad_d, float* work) {
  const int64_t n = adapter.columns(), width = adapter.width, splits = adapter.splits, experts = splits * adapter.experts;
  float *g = work, *by_rank = g + rows * n, *own = by_rank + n;
  expand(adapter, rows, gates, g);
  for (int64_t i = 0; i < rows; i++, u += splits * ldu, g += n, low_rank += n, gates += experts, ds += ld_ds) {
    for (int64_t s = 0; s < splits; s++) {
      const float *from = u + s * ldu, *gate = g + s * width, *coefficient = adapter.coefficient.data() + s * width;
      const T* low = low_rank + s * width;
      float* __restrict ranked = by_rank + s * width;
      float* __restrict d = grad_d + s * width;
      C* __restrict out = ds + s * width;
      for (int64_t p = 0; p < width; p++) {
        const float product = from[p] * to_float(low[p]);
        out[p] = from_float<C>(from[p] * (gate[p] * coefficient[p]));
        ranked[p] = product * coefficient[p];
        d[p] += product * gate[p];
      }
    }
    if (t) {
      const float* coefficient = adapter.coefficient.data();
      C* __restrict out = t + i * n;
      for (int64_t p = 0; p < n; p++) out[p] = from_float<C>(to_float(low_rank[p]) * (g[p] * coefficient[p]));
    }
    if (adapter.routed || grad_gates) {
      float* dg = grad_gates ? grad_gates + i * experts : own;
      collect(adapter, by_rank, dg);
      for (int64_t s = 0; s < (adapter.routed ? splits : 0); s++) {  // dlogits = g (dg - sum of g dg)
        const int64_t at = s * adapter.experts;
        float mean = 0;
        for (int64_t e = 0; e < adapter.experts; e++) mean += dg[at + e] * gates[at + e];
        for (int64_t e = 0; e < adapter.experts; e++)
          ds[n + at + e] = from_float<C>(gates[at + e] * (dg[at + e] - mean));
      }
    }
  }
}

}  // namespace

// A template cannot be dispatched, an overload can.
#define DEFINE(T, C)                                                                                                   \
  FASTMOE_LORA_DISPATCHED static void forward_rows_##T##_##C(const Adapter& adapter, int64_t rows, const float* c,     \
                                                             int64_t ldc, float* gates, T* low_rank, C* t,             \
                                                             int64_t ldt, float* work) {                               \
    forward_rows<T, C>(adapter, rows, c, ldc, gates, low_rank, t, ldt, work);                                          \
  }                                                                                                                    \
  FASTMOE_LORA_DISPATCHED static void backward_rows_##T##_##C(                                                         \
      const Adapter& adapter, int64_t rows, const float* u, int64_t ldu, const T* low_rank, const float* gates, C* ds, \
      int64_t ld_ds, C* t, float* grad_gates, float* grad_d, float* work) {                                            \
    backward_rows<T, C>(adapter, rows, u, ldu, low_rank, gates, ds, ld_ds, t, grad_gates, grad_d, work);               \
  }                                                                                                                    \
  template <>                                                                                                          \
  void gate_rows<T, C>(const Adapter& adapter, int64_t rows, const float* c, int64_t ldc, float* gates, T* low_rank,   \
                       C* t, int64_t ldt) {                                                                            \
    const std::unique_ptr<float[]> work(new float[work_size(adapter, rows)]);                                          \
    forward_rows_##T##_##C(adapter, rows, c, ldc, gates, low_rank, t, ldt, work.get());                                \
  }                                                                                                                    \
  template <>                                                                                                          \
  void gate_rows_backward<T, C>(const Adapter& adapter, int64_t rows, const float* u, int64_t ldu, const T* low_rank,  \
                                const float* gates, C* ds, int64_t ld_ds, C* t, float* grad_gates, float* grad_d) {    \
    const std::unique_ptr<float[]> work(new float[work_size(adapter, rows)]);                                          \
    backward_rows_##T##_##C(adapter, rows, u, ldu, low_rank, gates, ds, ld_ds, t, grad_gates, grad_d, work.get());     \
  }
DEFINE(BFloat16, BFloat16)
DEFINE(BFloat16, float)
DEFINE(Half, float)
DEFINE(float, float)

}  // namespace fastmoe_lora
