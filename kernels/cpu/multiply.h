// The product of a block of rows with packed panels, on whichever engine; one object per thread and call.
#pragma once

#include <ATen/native/CPUBlas.h>

#include <optional>

#include "pack.h"

namespace fastmoe_lora {

// The left operand: row i, column j is data[i / 16 * tile + i % 16 * ld + j / 32 * step + j % 32].
template <class C>
struct Left {
  const C* data;
  int64_t ld, tile, step;

  static Left rows(const C* data, int64_t ld) { return {data, ld, 16 * ld, 32}; }
  // What starts there; behind it, tiles are whole if `row` is a multiple of 16 and `column` of 32.
  Left at(int64_t row, int64_t column) const {
    return {data + row / 16 * tile + row % 16 * ld + column / 32 * step + column % 32, ld, tile, step};
  }
};

// One term a * b: b is the first of the panels to multiply with; k as padded in the panels.
template <class C>
struct Term {
  Left<C> a;
  const C* b;
  int64_t k;
};

template <class C>
class Multiplier {
 public:
  static constexpr int64_t kScratch = 64 * kWidest;  // floats: a block of rows by the widest panel

  Multiplier(Layout layout, float* scratch) : layout_(layout), scratch_(scratch) {
    if (layout.engine == Engine::kAmx) tiles_.emplace();
  }
  ~Multiplier() {
    tiles_.reset();
    // oneDNN remembers per thread which tile configuration it loaded last: make it load its own again.
    if (layout_.engine != Engine::kFloat) at::native::cpublas::brgemm_release();
  }

  // c (m, n) = (add ? c : 0) + sum of terms; c has room for whole row units and panels.
  void sum(int64_t m, int64_t n, int64_t width, const Term<C>* terms, int count, float* c, int64_t ldc, bool add) {
    if constexpr (std::is_same_v<C, BFloat16>)
      if (tiles_) {
        amx::Term converted[2];
        tiles_->sum(m, n, amx_terms(terms, count, converted), count, c, ldc, add);
        return;
      }
    for (int64_t j = 0, panel = 0; j < n; j += width, panel++) block(m, width, panel, terms, count, c + j, ldc, add);
  }

  // out (m, n) = init + sum of terms + bias, in the storage type; init (float32) may be null. Bias and init are readable
  // up to whole panels.
  template <class T>
  void linear(int64_t m, int64_t n, int64_t width, const Term<C>* terms, int count, const float* init, int64_t ld_init,
              const float* bias, T* out, int64_t ld_out) {
    if constexpr (std::is_same_v<C, BFloat16>)
      if (tiles_) {
        amx::Term converted[2];
        tiles_->linear(m, n, amx_terms(terms, count, converted), count, init, ld_init, bias,
                       reinterpret_cast<uint16_t*>(out), ld_out);
        return;
      }
    for (int64_t j = 0, panel = 0; j < n; j += width, panel++) {
      if (init)
        for (int64_t i = 0; i < m; i++) convert(init + i * ld_init + j, scratch_ + i * width, width);
      block(m, width, panel, terms, count, scratch_, width, init != nullptr);
      const int64_t columns = std::min(width, n - j);
      for (int64_t i = 0; i < m; i++) {
        if (bias)
          convert_add(scratch_ + i * width, bias + j, out + i * ld_out + j, columns);
        else
          convert(scratch_ + i * width, out + i * ld_out + j, columns);
      }
    }
  }

  // Announces what the products after the next `blocks` calls of linear() will read, about as much as those do.
  void expect(const C* next, int64_t elements, int64_t blocks) {
    if (!tiles_) return;
    tiles_->expect(next, elements * sizeof(C), blocks * elements / (amx::kPanel * amx::kStep));
  }

 private:
  Layout layout_;
  float* scratch_;
  std::optional<amx::Tiles> tiles_;

  static const amx::Term* amx_terms(const Term<C>* terms, int count, amx::Term* converted) {
    for (int i = 0; i < count; i++)
      converted[i] = {reinterpret_cast<const uint16_t*>(terms[i].a.data),
                      terms[i].a.ld,
                      terms[i].a.tile,
                      terms[i].a.step,
                      reinterpret_cast<const uint16_t*>(terms[i].b),
                      terms[i].k};
    return converted;
  }

  void block(int64_t m, int64_t width, int64_t panel, const Term<C>* terms, int count, float* c, int64_t ldc, bool add) {
    for (int i = 0; i < count; i++) {
      const Term<C>& term = terms[i];
      if (term.k == 0) continue;
      at::native::cpublas::brgemm(m, width, term.k, term.a.ld, width, ldc, add, term.a.data,
                                  term.b + panel * width * term.k, c, /*is_vnni=*/kPair<C> == 2);
      add = true;
    }
    if (!add)
      for (int64_t i = 0; i < m; i++) std::fill_n(c + i * ldc, width, 0.0f);
  }
};

}  // namespace fastmoe_lora
