// Which instructions multiply the blocks, and the layouts that this asks for.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastmoe_lora {

enum class Engine { kAmx, kDot, kFloat };  // AMX tiles; bfloat16 dot products (AVX-512); float32

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
constexpr int64_t divide_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// The right operand of a product, (k, columns), packed: [panel][k / pair][width][pair]. Widths and k are padded with zeros.
struct Panels {
  int64_t width = 0;    // columns of a panel
  int64_t count = 0;    // panels
  int64_t k = 0;        // padded contraction
  int64_t elements() const { return count * width * k; }
  int64_t panel_elements() const { return width * k; }
};

// What each engine wants. Wide panels suit oneDNN's kernels, which walk down a whole block of rows; measured.
struct Layout {
  Engine engine;
  int64_t step() const { return engine == Engine::kAmx ? 32 : engine == Engine::kDot ? 2 : 1; }
  int64_t rows() const { return engine == Engine::kDot ? 64 : 48; }  // of a block
  int64_t row_unit() const { return engine == Engine::kAmx ? 16 : 1; }  // rows that must be readable come in these
  int64_t padded(int64_t k) const { return round_up(k, step()); }
  Panels panels(int64_t columns, int64_t k) const {
    if (engine == Engine::kAmx) return {32, divide_up(columns, 32), padded(k)};
    const int64_t widest = engine == Engine::kDot ? 256 : 64, count = divide_up(columns, widest);
    return {count ? round_up(divide_up(columns, count), 16) : 16, count, padded(k)};
  }
};

}  // namespace fastmoe_lora
