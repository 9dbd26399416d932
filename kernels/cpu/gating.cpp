// Rows of the adapter between its two products. Each entry point is one function per instruction set with everything
// inlined: there are a few hundred numbers a row, so calls would cost as much as the arithmetic.
#include <cmath>
#include <vector>

#include "adapter.h"
#include "engine.h"

namespace fastmoe_lora {
namespace {

// exp for x <= 0, to 2 ulp: 2^n * p(r), |r| <= ln 2 / 2, p the Taylor polynomial of degree 7.
FASTMOE_LORA_INLINE float exp_of_negative(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (x * 1.44269504f + magic) - magic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>((int32_t(n) + 127) << 23);
}

// Gates below the top_k largest become 0. Equal logits come in order of their index.
FASTMOE_LORA_INLINE void keep_largest(const float* logits, int64_t experts, int64_t top_k, float* gates) {
  for (int64_t e = 0; e < experts; e++) {
    int64_t before = 0;
    for (int64_t f = 0; f < experts; f++) before += logits[f] > logits[e] || (logits[f] == logits[e] && f < e);
    if (before >= top_k) gates[e] = 0;
  }
}

// Each step is taken for all rows of a block before the next one: rows do not wait for each other, and numbers that are
// written one by one have left the store buffer by the time they are read as vectors.

// Softmax over the experts of each split. `work` has room for the block's gates and a vector more.
FASTMOE_LORA_INLINE void route(const Adapter& adapter, int64_t rows, const float* logits, int64_t ld, float* work,
                               float* gates) {
  const int64_t splits = adapter.splits, experts = adapter.experts, all = rows * splits * experts;
  for (int64_t i = 0; i < rows; i++)
    for (int64_t s = 0; s < splits; s++) {
      const float* row = logits + i * ld + s * experts;
      float* out = work + (i * splits + s) * experts;
      float largest = row[0];
      for (int64_t e = 1; e < experts; e++) largest = row[e] > largest ? row[e] : largest;
      for (int64_t e = 0; e < experts; e++) out[e] = row[e] - largest;
    }
  for (int64_t i = 0; i < all; i++) work[i] = exp_of_negative(work[i]);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t s = 0; s < splits; s++) {
      float* row = work + (i * splits + s) * experts;
      if (adapter.top_k) keep_largest(logits + i * ld + s * experts, experts, adapter.top_k, row);
      float total = 0;
      for (int64_t e = 0; e < experts; e++) total += row[e];
      const float scale = 1 / total;
      for (int64_t e = 0; e < experts; e++) gates[(i * splits + s) * experts + e] = row[e] * scale;
    }
}

// Every column's gate.
FASTMOE_LORA_INLINE void expand(const Adapter& adapter, int64_t rows, const float* gates, float* columns) {
  const int64_t n = adapter.columns(), experts = adapter.splits * adapter.experts, octets = adapter.octets.size();
  const int32_t *gate = adapter.gate.data(), *octet = adapter.octets.data();
  for (int64_t r = 0; r < rows; r++, gates += experts, columns += n) {
    for (int64_t i = 0; i < (octets ? 0 : n); i++) columns[i] = gates[gate[i]];
    for (int64_t i = 0; i < octets; i++) {
      const float one = gates[octet[i]];
      float* __restrict eight = columns + 8 * i;
      for (int64_t k = 0; k < 8; k++) eight[k] = one;
    }
  }
}

// Numbers of scratch memory for a block of rows.
int64_t work_size(const Adapter& adapter, int64_t rows) {
  return round_up(rows * adapter.splits * adapter.experts, 16) + (rows + 1) * adapter.columns();
}

template <class T, class C>
FASTMOE_LORA_INLINE void forward_rows(const Adapter& adapter, int64_t rows, const float* c, int64_t ldc, float* gates,
                                      T* low_rank, C* t, int64_t ldt, float* work) {
  const int64_t n = adapter.columns(), width = adapter.width, splits = adapter.splits, experts = splits * adapter.experts;
  float* g = work + round_up(rows * experts, 16);
  if (adapter.routed) route(adapter, rows, c + n, ldc, work, gates);
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
      for (int64_t p = width; p < ldt; p++) out[p] = C(0);
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
  float *own = work, *g = own + round_up(rows * experts, 16), *by_rank = g + rows * n;
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
    for (int64_t p = adapter.stacked(); p < ld_ds; p++) ds[p] = C(0);
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
    std::vector<float> work(work_size(adapter, rows));                                                                 \
    forward_rows_##T##_##C(adapter, rows, c, ldc, gates, low_rank, t, ldt, work.data());                               \
  }                                                                                                                    \
  template <>                                                                                                          \
  void gate_rows_backward<T, C>(const Adapter& adapter, int64_t rows, const float* u, int64_t ldu, const T* low_rank,  \
                                const float* gates, C* ds, int64_t ld_ds, C* t, float* grad_gates, float* grad_d) {    \
    std::vector<float> work(work_size(adapter, rows));                                                                 \
    backward_rows_##T##_##C(adapter, rows, u, ldu, low_rank, gates, ds, ld_ds, t, grad_gates, grad_d, work.data());    \
  }
DEFINE(BFloat16, BFloat16)
DEFINE(BFloat16, float)
DEFINE(Half, float)
DEFINE(float, float)

}  // namespace fastmoe_lora
