// What forward and backward share: cutting the rows up, and making operands readable for the engine.
#pragma once

#include "adapter.h"
#include "multiply.h"
#include "operator.h"

namespace fastmoe_lora {

// Rows of a chunk: what is read again for every group of panels should stay in a core's second-level cache, beside the
// panels, the adapter and what passes through. Chunks of about that size share a worker's rows evenly: the weight is read
// once for each, however few rows it has.
inline int64_t chunk_rows(Layout layout, int64_t worker_rows, int64_t row_bytes) {
  constexpr int64_t kBytes = 520 << 10, kMost = 576;
  const int64_t wanted = std::clamp<int64_t>(kBytes / std::max<int64_t>(row_bytes, 1), layout.rows(), kMost);
  const int64_t chunks = std::max<int64_t>(1, (worker_rows + wanted / 2) / wanted);
  return round_up(std::max<int64_t>(1, divide_up(worker_rows, chunks)), layout.rows());
}

// Columns of a group of panels, which is walked through for every block of rows of a chunk: likewise.
inline int64_t group_panels(const Panels& panels, int64_t element_bytes) {
  constexpr int64_t kBytes = 200 << 10;
  return std::clamp<int64_t>(kBytes / (panels.panel_elements() * element_bytes + 1), 1, panels.count);
}

// Calls function(first row, rows) for the chunks of [begin, end).
template <class F>
void for_chunks(Range range, int64_t chunk, const F& function) {
  for (int64_t row = range.begin; row < range.end; row += chunk) function(row, std::min(chunk, range.end - row));
}

// Copies rows into `buffer` as the engine reads them best: in the compute type, each of `parts` padded to whole steps; for
// AMX in tiles of 16 x 32, so that what a product reads is contiguous, and the rows too filled up to a whole tile. The
// copy reads the rows in the order in which they lie, which the hardware's prefetcher follows, and leaves them in the
// second-level cache.
template <class C>
class Stage {
 public:
  Stage(Layout layout, int64_t parts, int64_t k, C* buffer)
      : amx_(layout.engine == Engine::kAmx), parts_(parts), k_(k), padded_(layout.padded(k)), buffer_(buffer) {}

  Left<C> left() const {
    const int64_t ld = parts_ * padded_;
    return amx_ ? Left<C>{buffer_, 32, 16 * ld, 16 * 32} : Left<C>::rows(buffer_, ld);
  }

  void put(int64_t i, const C* row) {
    for (int64_t part = 0; part < parts_; part++) {
      C* to = const_cast<C*>(left().at(i, part * padded_).data);
      if (amx_) {
        amx::tile_row(reinterpret_cast<const uint16_t*>(row + part * k_), k_, reinterpret_cast<uint16_t*>(to));
      } else {
        convert(row + part * k_, to, k_);
        std::fill_n(to + k_, padded_ - k_, C(0));
      }
    }
  }

  // After the last of m rows.
  void fill_up(int64_t m) {
    const std::vector<C> zeros(amx_ && m % 16 ? parts_ * k_ : 0, C(0));
    for (int64_t i = m; !zeros.empty() && i % 16; i++) put(i, zeros.data());
  }

 private:
  bool amx_;
  int64_t parts_, k_, padded_;
  C* buffer_;
};

// m rows of (parts * k), `ld` apart, staged. They are left where they are if nothing needs to change.
template <class T, class C>
Left<C> stage(Layout layout, const T* from, int64_t ld, int64_t m, int64_t parts, int64_t k, C* buffer) {
  if constexpr (std::is_same_v<T, C>)
    if (layout.engine != Engine::kAmx && layout.padded(k) == k) return Left<C>::rows(from, ld);
  Stage<C> stage(layout, parts, k, buffer);
  std::vector<C> converted(std::is_same_v<T, C> ? 0 : parts * k);
  for (int64_t i = 0; i < m; i++) {
    if constexpr (std::is_same_v<T, C>) {
      stage.put(i, from + i * ld);
    } else {
      convert(from + i * ld, converted.data(), parts * k);
      stage.put(i, converted.data());
    }
  }
  stage.fill_up(m);
  return stage.left();
}

// x~ = dropout(x) of m rows, staged; `row` is the index of the first.
template <class T, class C>
Left<C> stage_dropped(Layout layout, const Dropout& dropout, int64_t row, const T* from, int64_t m, int64_t k, C* buffer) {
  Stage<C> stage(layout, 1, k, buffer);
  std::vector<float> numbers(k), dropped(k);
  std::vector<C> converted(k);
  for (int64_t i = 0; i < m; i++) {
    convert(from + i * k, numbers.data(), k);
    drop(dropout, row + i, numbers.data(), dropped.data(), k);
    convert(dropped.data(), converted.data(), k);
    stage.put(i, converted.data());
  }
  stage.fill_up(m);
  return stage.left();
}

// One panel of which `count` rows that the engine reads as a left operand are the contraction.
template <class C>
void pack_contraction(Layout layout, const Left<C>& from, int64_t count, int64_t columns, const Panels& panels, C* panel) {
  if (layout.engine == Engine::kAmx) {
    const int64_t whole = round_up(count, 16);
    amx::interleave_rows(reinterpret_cast<const uint16_t*>(from.data), from.ld, from.tile, whole,
                         reinterpret_cast<uint16_t*>(panel));
    std::fill_n(panel + whole * panels.width, (panels.k - whole) * panels.width, C(0));
  } else {
    std::vector<const C*> rows(count);
    for (int64_t i = 0; i < count; i++) rows[i] = from.at(i, 0).data;
    pack_rows(rows.data(), columns, count, panels, panel);
  }
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

// Copies `count` rows of `length` numbers, a length known to the compiler; false if it is not in 1 .. kLength.
template <int kLength, class C>
bool copy_columns(const C* from, int64_t ld_from, int64_t count, int64_t length, C* to, int64_t ld_to) {
  if (length == kLength) {
    for (int64_t i = 0; i < count; i++)
      std::memcpy(static_cast<void*>(to + i * ld_to), from + i * ld_from, kLength * sizeof(C));
    return true;
  }
  if constexpr (kLength > 1)
    return copy_columns<kLength - 1>(from, ld_from, count, length, to, ld_to);
  else
    return false;
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
    if constexpr (std::is_same_v<C, P>)
      if (copy_columns<8>(from, rank, count, length, out + first, ld)) continue;
    for (int64_t i = 0; i < count; i++)
      for (int64_t p = 0; p < length; p++) out[i * ld + first + p] = from_float<C>(to_float(from[i * rank + p]));
  }
}

}  // namespace fastmoe_lora
