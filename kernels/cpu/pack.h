// Packing into panels (engine.h), from rows of any storage type, rounded to the compute type C on the way.
#pragma once

#include <cstring>
#include <type_traits>

#include "amx.h"
#include "engine.h"
#include "vector.h"

namespace fastmoe_lora {

template <class C>
constexpr int64_t kPair = 4 / sizeof(C);  // contraction neighbours that share 4 bytes
constexpr int64_t kWidest = 256;          // columns of the widest panel

// One panel from rows along the contraction: out[i][j] = rows[j][i], i < k. A null row is zero.
template <class C, class T>
void pack_transposed(const T* const* rows, int64_t columns, int64_t k, const Panels& panels, C* out) {
  const int64_t width = panels.width;
  constexpr int64_t pair = kPair<C>;
  std::memset(static_cast<void*>(out), 0, panels.panel_elements() * sizeof(C));
  int64_t done = 0;
  if constexpr (pair == 2) {
    alignas(64) C rounded[16][32];
    const uint16_t* sixteen[16];
    for (; amx::available() && done + 32 <= k; done += 32)
      for (int64_t j = 0; j < columns; j += 16) {
        for (int64_t r = 0; r < 16; r++) {
          const T* row = j + r < columns ? rows[j + r] : nullptr;
          sixteen[r] = reinterpret_cast<const uint16_t*>(std::is_same_v<C, T> && row ? (const C*)(row + done) : rounded[r]);
          if (!row) std::memset(static_cast<void*>(rounded[r]), 0, sizeof rounded[r]);
          if (row && !std::is_same_v<C, T>) convert(row + done, rounded[r], 32);
        }
        amx::transpose_pairs(sixteen, reinterpret_cast<uint32_t*>(out) + done / 2 * width + j, width);
      }
  }
  for (int64_t j = 0; j < columns; j++)
    if (rows[j])
      for (int64_t i = done; i < k; i++)
        out[(i / pair * width + j) * pair + i % pair] = from_float<C>(to_float(rows[j][i]));
}

// One panel from rows across the contraction: out[i][j] = rows[i][j], i < k. A null row is zero.
template <class C, class T>
void pack_rows(const T* const* rows, int64_t columns, int64_t k, const Panels& panels, C* out) {
  const int64_t width = panels.width;
  if (columns < width || k < panels.k) std::memset(static_cast<void*>(out), 0, panels.panel_elements() * sizeof(C));
  C buffers[2][kWidest];
  const auto row = [&](int64_t i, C* buffer) -> const C* {  // row i as C
    if (i < k && rows[i]) {
      if constexpr (std::is_same_v<C, T>) return rows[i];
      convert(rows[i], buffer, columns);
    } else {
      std::memset(static_cast<void*>(buffer), 0, columns * sizeof(C));
    }
    return buffer;
  };
  for (int64_t i = 0; i < k; i += kPair<C>) {
    if constexpr (kPair<C> == 2)
      interleave(row(i, buffers[0]), row(i + 1, buffers[1]), out + i * width, columns);
    else
      std::memcpy(out + i * width, row(i, buffers[0]), columns * sizeof(C));
  }
}

}  // namespace fastmoe_lora
