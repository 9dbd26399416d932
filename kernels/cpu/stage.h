// What forward and backward share: cutting the rows up, and making operands readable for the engine.
#pragma once

#include "adapter.h"
#include "multiply.h"
#include "operator.h"

namespace fastmoe_lora {

// Rows of a chunk: what is read again for every group of panels should stay in a core's second-level cache.
inline int64_t chunk_rows(Layout layout, int64_t row_bytes) {
  constexpr int64_t kBytes = 800 << 10;
  return std::clamp<int64_t>(kBytes / std::max<int64_t>(row_bytes, 1) / layout.rows(), 1, 16) * layout.rows();
}

// Columns of a group of panels, which is walked through for every block of rows of a chunk: likewise.
inline int64_t group_panels(const Panels& panels, int64_t element_bytes) {
  constexpr int64_t kBytes = 256 << 10;
  return std::clamp<int64_t>(kBytes / (panels.panel_elements() * element_bytes + 1), 1, panels.count);
}

// Calls function(first row, rows) for the chunks of [begin, end); rows short of a unit come as a chunk of their own.
template <class F>
void for_chunks(Range range, int64_t chunk, int64_t unit, const F& function) {
  const int64_t whole = range.begin + (range.end - range.begin) / unit * unit;
  for (int64_t row = range.begin; row < whole; row += chunk) function(row, std::min(chunk, whole - row));
  if (whole < range.end) function(whole, range.end - whole);
}

// Reads rows once, in the order in which they lie, which the hardware's prefetcher follows: they are then in the
// second-level cache. Products read many rows at a time, and would wait for each.
template <class T>
void touch(const T* rows, int64_t elements) {
  for (int64_t i = 0; i < elements; i += 64 / int64_t(sizeof(T))) {
    [[maybe_unused]] const volatile char read = *reinterpret_cast<const volatile char*>(rows + i);
  }
}

template <class T, class C>
struct Staged {
  const C* rows;
  int64_t ld;
};

// Rows (m, parts * k) as the engine reads them: in the compute type, each part padded to whole steps, the last rows to a
// whole unit. As they are where that holds already, else copied to `buffer` (m rounded up to a unit, parts * padded(k)).
template <class T, class C>
Staged<T, C> stage(Layout layout, const T* from, int64_t m, int64_t parts, int64_t k, C* buffer) {
  const int64_t padded = layout.padded(k), ld = parts * padded, unit = layout.row_unit();
  if constexpr (std::is_same_v<T, C>)
    if (padded == k && m % unit == 0) {
      touch(from, m * parts * k);
      return {from, parts * k};
    }
  for (int64_t i = 0; i < m; i++)
    for (int64_t part = 0; part < parts; part++) {
      convert(from + (i * parts + part) * k, buffer + i * ld + part * padded, k);
      std::fill_n(buffer + i * ld + part * padded + k, padded - k, C(0));
    }
  std::fill_n(buffer + m * ld, (round_up(m, unit) - m) * ld, C(0));
  return {buffer, ld};
}

// x~ = dropout(x) of m rows, staged; `row` is the index of the first.
template <class T, class C>
Staged<T, C> stage_dropped(Layout layout, const Dropout& dropout, int64_t row, const T* from, int64_t m, int64_t k,
                           float* one_row, C* buffer) {
  const int64_t ld = layout.padded(k);
  for (int64_t i = 0; i < m; i++) {
    convert(from + i * k, one_row, k);
    drop(dropout, row + i, one_row, one_row + round_up(k, 16), k);
    convert(one_row + round_up(k, 16), buffer + i * ld, k);
    std::fill_n(buffer + i * ld + k, ld - k, C(0));
  }
  std::fill_n(buffer + m * ld, (round_up(m, layout.row_unit()) - m) * ld, C(0));
  return {buffer, ld};
}

inline Dropout make_dropout(const Operands& o) {
  Dropout dropout;
  if (o.dropout <= 0) return dropout;
  const auto seed = uint64_t(*data<int64_t>(*o.seed));
  dropout.low = uint32_t(seed), dropout.high = uint32_t(seed >> 32);
  dropout.threshold = uint32_t(o.dropout * 4294967296.0);
  dropout.scale = float(1 / (1 - o.dropout));
  dropout.active = true;
  return dropout;
}

inline Adapter make_adapter(const Operands& o) {
  if (!o.lora_A) return {};
  const auto sizes = o.lora_A->sizes();
  const int64_t width = o.columns ? o.columns->size(1) : sizes[1] * sizes[2];
  Adapter adapter = make_adapter(sizes[0], sizes[1], sizes[2], o.columns ? data<int32_t>(*o.columns) : nullptr, width,
                                 data<float>(*o.diag), o.diag->dim() == 3, float(o.scaling));
  adapter.routed = o.router.has_value();
  adapter.top_k = o.top_k;
  return adapter;
}

// Pointers to the rows of [A; router] that are computed, (S*P [+ S*E]) of K numbers; null where padded.
template <class P>
std::vector<const P*> stacked_rows(const Operands& o, const Adapter& adapter) {
  const int64_t k = o.x.size(1), per_split = adapter.experts * adapter.rank;
  std::vector<const P*> rows(adapter.stacked());
  for (int64_t i = 0; i < adapter.columns(); i++) {
    const int64_t row = i / adapter.width * per_split + adapter.source[i];
    rows[i] = adapter.source[i] < 0 ? nullptr : data<P>(*o.lora_A) + row * k;
  }
  for (int64_t i = adapter.columns(); i < adapter.stacked(); i++)
    rows[i] = data<P>(*o.router) + (i - adapter.columns()) * k;
  return rows;
}

// B of one split from row n on, `count` rows, as (count, ld) in the compute type: column p is the p-th computed one.
template <class C, class P>
void gather_b(const Operands& o, const Adapter& adapter, int64_t split, int64_t n, int64_t count, C* out, int64_t ld) {
  const int64_t per_split = o.weight.size(0) / adapter.splits, rank = adapter.rank;
  std::fill_n(out, count * ld, C(0));
  for (const Run& run : adapter.runs) {
    if (run.split != split) continue;
    const int64_t first = run.begin - split * adapter.width, k = adapter.source[run.begin] % rank;
    const P* from = data<P>(*o.lora_B) + ((split * adapter.experts + run.expert) * per_split + n) * rank + k;
    const int64_t length = run.end - run.begin;
    if (std::is_same_v<C, P> && length == 8) {  // the usual rank: one move
      for (int64_t i = 0; i < count; i++)
        std::memcpy(static_cast<void*>(out + i * ld + first), from + i * rank, 8 * sizeof(C));
      continue;
    }
    for (int64_t i = 0; i < count; i++)
      for (int64_t p = 0; p < length; p++) out[i * ld + first + p] = from_float<C>(to_float(from[i * rank + p]));
  }
}

}  // namespace fastmoe_lora
