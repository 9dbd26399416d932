#include "adapter.h"

#include <algorithm>
#include <cmath>
#include <limits>

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

FASTMOE_LORA_DISPATCHED void exponentials(float* values, int64_t n) {
  for (int64_t i = 0; i < n; i++) values[i] = exp_of_negative(values[i]);
}

// out = a * b * c, and the like: one row of columns.
FASTMOE_LORA_DISPATCHED void multiply(const float* a, const float* b, const float* c, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = a[i] * (b[i] * c[i]);
}

// ds = u * g * coefficient; by_rank = u * s * coefficient; grad_d += u * s * g
FASTMOE_LORA_DISPATCHED void multiply_backward(const float* u, const float* s, const float* g, const float* coefficient,
                                               float* ds, float* by_rank, float* grad_d, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float us = u[i] * s[i];
    ds[i] = u[i] * (g[i] * coefficient[i]);
    by_rank[i] = us * coefficient[i];
    grad_d[i] += us * g[i];
  }
}

void expand_gates(const Adapter& adapter, const float* gates, float* columns) {
  for (const Run& run : adapter.runs) {
    const float gate = gates[run.split * adapter.experts + run.expert];
    for (int64_t p = run.begin; p < run.end; p++) columns[p] = gate;
  }
}

void keep_largest(const float* logits, int64_t experts, int64_t top_k, float* gates) {
  for (int64_t e = 0; e < experts; e++) {
    int64_t before = 0;  // experts that come first: larger, or equal with a lower index
    for (int64_t f = 0; f < experts; f++) before += logits[f] > logits[e] || (logits[f] == logits[e] && f < e);
    if (before >= top_k) gates[e] = 0;
  }
}

bool rises(float value, bool last) { return value >= 0 && (value < 1 || (last && value == 1)); }

}  // namespace

Adapter make_adapter(int64_t splits, int64_t experts, int64_t rank, const int32_t* table, int64_t width,
                     const float* diagonal, bool ready, float scaling) {
  Adapter a;
  a.splits = splits, a.experts = experts, a.rank = rank, a.width = width;
  a.source.resize(splits * width);
  a.coefficient.assign(splits * width, 0.0f);
  for (int64_t i = 0; i < splits * width; i++) {
    const int64_t split = i / width, source = table ? table[i] : i % width;
    a.source[i] = source;
    if (source < 0) continue;
    const int64_t expert = source / rank, k = source % rank, at = split * experts + expert;
    const float d = ready ? diagonal[at * rank + k] : std::clamp(diagonal[at] - k, 0.0f, 1.0f);
    a.coefficient[i] = d * scaling;
    if (!a.runs.empty() && a.runs.back().split == split && a.runs.back().expert == expert && a.runs.back().end == i)
      a.runs.back().end++;
    else
      a.runs.push_back({split, expert, i, i + 1});
  }
  return a;
}

void diagonal_gradient(const Adapter& adapter, const float* diagonal, bool ready, const float* grad, float* out) {
  std::fill_n(out, adapter.splits * adapter.experts * (ready ? adapter.rank : 1), 0.0f);
  for (int64_t i = 0; i < adapter.columns(); i++) {
    if (adapter.source[i] < 0) continue;
    const int64_t expert = adapter.source[i] / adapter.rank, k = adapter.source[i] % adapter.rank;
    const int64_t at = i / adapter.width * adapter.experts + expert;
    if (ready)
      out[at * adapter.rank + k] = grad[i];
    else if (rises(diagonal[at] - k, k == adapter.rank - 1))
      out[at] += grad[i];
  }
}

void route(const Adapter& adapter, const float* logits, float* gates) {
  const int64_t splits = adapter.splits, experts = adapter.experts;
  for (int64_t s = 0; s < splits; s++) {
    const float* row = logits + s * experts;
    float largest = row[0];
    for (int64_t e = 1; e < experts; e++) largest = std::max(largest, row[e]);
    for (int64_t e = 0; e < experts; e++) gates[s * experts + e] = row[e] - largest;
  }
  exponentials(gates, splits * experts);
  for (int64_t s = 0; s < splits; s++) {
    float* row = gates + s * experts;
    if (adapter.top_k) keep_largest(logits + s * experts, experts, adapter.top_k, row);
    float total = 0;
    for (int64_t e = 0; e < experts; e++) total += row[e];
    for (int64_t e = 0; e < experts; e++) row[e] /= total;
  }
}

template <class T, class C>
void gate_rows(const Adapter& adapter, int64_t rows, const float* c, int64_t ldc, float* gates, T* low_rank, C* t,
               int64_t ldt) {
  const int64_t n = adapter.columns(), width = adapter.width, gates_per_row = adapter.splits * adapter.experts;
  std::vector<float> expanded(n), s_row(n), scaled(n);
  for (int64_t i = 0; i < rows; i++, c += ldc, gates += gates_per_row, low_rank += n, t += adapter.splits * ldt) {
    if (adapter.routed) route(adapter, c + n, gates);
    expand_gates(adapter, gates, expanded.data());
    convert(c, low_rank, n);
    convert(low_rank, s_row.data(), n);
    multiply(s_row.data(), expanded.data(), adapter.coefficient.data(), scaled.data(), n);
    for (int64_t s = 0; s < adapter.splits; s++) {
      convert(scaled.data() + s * width, t + s * ldt, width);
      std::fill(t + s * ldt + width, t + (s + 1) * ldt, C(0));
    }
  }
}

template <class T, class C>
void gate_rows_backward(const Adapter& adapter, int64_t rows, const float* u, int64_t ldu, const T* low_rank,
                        const float* gates, C* ds, int64_t ld_ds, C* t, float* grad_gates, float* grad_d) {
  const int64_t n = adapter.columns(), width = adapter.width, gates_per_row = adapter.splits * adapter.experts;
  std::vector<float> g(n), s_row(n), u_row(n), ds_row(n), by_rank(n), own(gates_per_row), logits(gates_per_row);
  for (int64_t i = 0; i < rows; i++, u += adapter.splits * ldu, low_rank += n, gates += gates_per_row, ds += ld_ds) {
    expand_gates(adapter, gates, g.data());
    convert(low_rank, s_row.data(), n);
    if (t) {
      multiply(s_row.data(), g.data(), adapter.coefficient.data(), u_row.data(), n);
      convert(u_row.data(), t, n);
      t += n;
    }
    for (int64_t s = 0; s < adapter.splits; s++) convert(u + s * ldu, u_row.data() + s * width, width);
    multiply_backward(u_row.data(), s_row.data(), g.data(), adapter.coefficient.data(), ds_row.data(), by_rank.data(),
                      grad_d, n);
    convert(ds_row.data(), ds, n);
    if (adapter.routed || grad_gates) {
      float* dg = grad_gates ? grad_gates + i * gates_per_row : own.data();
      std::fill_n(dg, gates_per_row, 0.0f);
      for (const Run& run : adapter.runs) {
        float total = 0;
        for (int64_t p = run.begin; p < run.end; p++) total += by_rank[p];
        dg[run.split * adapter.experts + run.expert] += total;
      }
      if (adapter.routed) {
        for (int64_t s = 0; s < adapter.splits; s++) {
          const int64_t at = s * adapter.experts;
          float mean = 0;
          for (int64_t e = 0; e < adapter.experts; e++) mean += dg[at + e] * gates[at + e];
          for (int64_t e = 0; e < adapter.experts; e++) logits[at + e] = gates[at + e] * (dg[at + e] - mean);
        }
        convert(logits.data(), ds + n, gates_per_row);
      }
    }
    std::fill(ds + adapter.stacked(), ds + ld_ds, C(0));
  }
}

#define INSTANTIATE(T, C)                                                                                            \
  template void gate_rows<T, C>(const Adapter&, int64_t, const float*, int64_t, float*, T*, C*, int64_t);            \
  template void gate_rows_backward<T, C>(const Adapter&, int64_t, const float*, int64_t, const T*, const float*, C*, \
                                         int64_t, C*, float*, float*);
INSTANTIATE(BFloat16, BFloat16)
INSTANTIATE(BFloat16, float)
INSTANTIATE(Half, float)
INSTANTIATE(float, float)

}  // namespace fastmoe_lora
