// Narrow matrices, transposed: columns become rows along which a product contracts.
#pragma once

#include "pack.h"

namespace fastmoe_lora {

// to (columns, rows) = from (rows, columns) transposed; a row of `to` has ld_to >= rows numbers, zeros behind `rows`.
template <class C>
void transpose(const C* from, int64_t ld, int64_t rows, int64_t columns, C* to, int64_t ld_to) {
  int64_t row = 0;
  if constexpr (sizeof(C) == 2)
    if (amx::available()) {
      // Rows 2i and 2i+1 interleaved are pairs, and a transposition of 16 x 16 pairs is what packing needs as well.
      std::vector<C> pairs(16 * 2 * round_up(columns, 16), C(0));
      const int64_t width = 2 * round_up(columns, 16);
      std::vector<C> zeros(rows % 32 ? columns : 0, C(0));
      const uint16_t* sixteen[16];
      alignas(64) uint32_t block[16][16];
      for (; row < rows; row += 32) {
        for (int64_t i = 0; i < 16; i++) {
          const int64_t even = row + 2 * i;
          interleave(even < rows ? from + even * ld : zeros.data(), even + 1 < rows ? from + (even + 1) * ld : zeros.data(),
                     pairs.data() + i * width, columns);
        }
        for (int64_t j = 0; j < columns; j += 16) {
          for (int64_t i = 0; i < 16; i++) sixteen[i] = reinterpret_cast<const uint16_t*>(pairs.data() + i * width + 2 * j);
          const int64_t n = std::min<int64_t>(16, columns - j);
          amx::transpose_pairs(sixteen, block[0], 16);
          for (int64_t i = 0; i < n; i++) std::memcpy(static_cast<void*>(to + (j + i) * ld_to + row), block[i], 64);
        }
      }
      return;
    }
  for (int64_t j = 0; j < columns; j++) {
    for (int64_t i = 0; i < rows; i++) to[j * ld_to + i] = from[i * ld + j];
    std::fill_n(to + j * ld_to + rows, ld_to - rows, C(0));
  }
}

}  // namespace fastmoe_lora
