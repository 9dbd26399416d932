// The adapter's columns: which (expert, rank) pairs are computed, their coefficients, and how rows of them are gated.
#pragma once

#include <vector>

#include "vector.h"

namespace fastmoe_lora {

// Columns of one expert that follow one another, in (S, P) and in the expert.
struct Run {
  int64_t split, expert, begin, end;
};

struct Adapter {
  int64_t splits = 1, experts = 0, rank = 0;  // S, E, R
  int64_t width = 0;                          // P, computed columns of a split
  int64_t top_k = 0;                          // 0: all
  bool routed = false;                        // logits follow the columns: S*E more
  std::vector<int64_t> source;                // (S, P): e*R + k, or -1 where padded
  std::vector<float> coefficient;             // (S, P): d * scaling, 0 where padded
  std::vector<Run> runs;
  std::vector<int32_t> gate;    // (S, P): which of the (S, E) gates; padding takes any
  std::vector<int32_t> octets;  // the same for every eight columns; empty if some eight do not share a gate

  int64_t columns() const { return splits * width; }
  int64_t stacked() const { return columns() + (routed ? splits * experts : 0); }  // rows of [A; router]
};

// `table` (S, P) is null if every column is computed. `diagonal` is (S, E, R), or the continuous ranks (S, E).
Adapter make_adapter(int64_t splits, int64_t experts, int64_t rank, const int32_t* table, int64_t width,
                     const float* diagonal, bool ready, float scaling);

// Gradient of `diagonal` (in its shape) from that of the coefficients' d, `grad` (S, P).
void diagonal_gradient(const Adapter& adapter, const float* diagonal, bool ready, const float* grad, float* out);

// Forward, `rows` rows. c: products of x~ with [A; router], (rows, ldc). Writes the low-rank product rounded to T (S*P a
// row), the gates if routed (S*E a row, else they are read), and t = low_rank * gate * coefficient, (S, ldt) a row, of
// which the padding is left as it is.
template <class T, class C>
void gate_rows(const Adapter& adapter, int64_t rows, const float* c, int64_t ldc, float* gates, T* low_rank, C* t,
               int64_t ldt);

// Backward, `rows` rows. u: gradient of t, (S, ldu) a row. Writes the gradient of the products, ds (rows, ld_ds) with
// the logits' behind the columns' and padding left as it is; t (S*P a row) unless null; the gates' unless null; adds to
// grad_d (S, P).
template <class T, class C>
void gate_rows_backward(const Adapter& adapter, int64_t rows, const float* u, int64_t ldu, const T* low_rank,
                        const float* gates, C* ds, int64_t ld_ds, C* t, float* grad_gates, float* grad_d);

}  // namespace fastmoe_lora
