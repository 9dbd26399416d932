#include "amx.h"

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define FASTMOE_LORA_AMX 1
#endif

#ifdef FASTMOE_LORA_AMX
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own intrinsics
#endif
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <stdexcept>

namespace fastmoe_lora::amx {

#ifndef FASTMOE_LORA_AMX

bool available() { return false; }
Tiles::Tiles() { throw std::logic_error("AMX is not available"); }
Tiles::~Tiles() = default;
void Tiles::linear(int64_t, int64_t, const Term*, int64_t, const float*, int64_t, const float*, uint16_t*, int64_t) {}
void Tiles::sum(int64_t, int64_t, const Term*, int64_t, float*, int64_t, bool) {}
void Tiles::flush() {}
void Tiles::expect(const void*, int64_t, int64_t) {}
void transpose_pairs(const uint16_t* const*, uint32_t*, int64_t) {}
void tile_row(const uint16_t*, int64_t, uint16_t*) {}
void interleave_rows(const uint16_t*, int64_t, int64_t, int64_t, uint16_t*) {}

#else

#define TARGET __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16")))
#define INLINE TARGET static inline __attribute__((always_inline))

namespace {

struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

bool detect() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = (d >> 24 & 1) && (d >> 22 & 1), avx512 = (b >> 16 & 1) && (b >> 30 & 1) && (b >> 31 & 1);
  if (!tiles || !avx512 || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Two rows' worth of 16 accumulators, plus bias, as 32 bfloat16.
INLINE __m512i rounded(const float* row, __m512 bias0, __m512 bias1) {
  const __m512 low = _mm512_add_ps(_mm512_load_ps(row), bias0);
  const __m512 high = _mm512_add_ps(_mm512_load_ps(row + 16), bias1);
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// The next rows of a pending block.
INLINE void write_rows(Tiles::Pending& p, int64_t rows) {
  const int64_t end = std::min(p.done + rows, p.rows);
  const __m512 zero = _mm512_setzero_ps();
  const __m512 bias0 = p.bias ? _mm512_loadu_ps(p.bias) : zero, bias1 = p.bias ? _mm512_loadu_ps(p.bias + 16) : zero;
  const __mmask32 mask = p.columns == kPanel ? ~0u : (1u << p.columns) - 1;
  for (; p.done < end; p.done++)
    _mm512_mask_storeu_epi16(p.out + p.done * p.ld_out, mask, rounded(p.block + p.done * kPanel, bias0, bias1));
}

// Constructors and destructors do not take a target of their own.
TARGET void load_configuration(const Configuration& configuration) { asm volatile("ldtilecfg %0" ::"m"(configuration)); }
TARGET void release() { _tile_release(); }

}  // namespace

bool available() {
  static const bool result = detect();
  return result;
}

Tiles::Tiles() { load_configuration(Configuration()); }

Tiles::~Tiles() {
  flush();
  release();
}

TARGET void Tiles::flush() { write_rows(pending_, kRows); }

void Tiles::expect(const void* next, int64_t bytes, int64_t steps) {
  next_ = static_cast<const char*>(next), next_end_ = next_ + bytes;
  next_step_ = (bytes / 64 + steps - 1) / std::max<int64_t>(steps, 1) * 64;
}

// Accumulates A x B tiles (rows x columns in units of 16) in tiles 0, 1, 2 (first 16 columns) and 3, 4, 5. While it does
// and if it is for output, the pending block is written and what is expected is fetched.
//
// 3 x 2 reads 13 lines a product from the second-level cache, 2 x 2 reads 16. That leaves one tile for the left and one
// for the right operand; the left ones are loaded again for the second 16 columns, from the first level.
template <int A, int B, bool Output>
TARGET void Tiles::product(const Term* terms, int64_t count, int64_t panel, const float* init, int64_t ld_init) {
  if (init) {
    const int64_t stride = ld_init * 4;
    _tile_loadd(0, init, stride);
    if constexpr (A > 1) _tile_loadd(1, init + 16 * ld_init, stride);
    if constexpr (A > 2) _tile_loadd(2, init + 32 * ld_init, stride);
    if constexpr (B > 1) _tile_loadd(3, init + 16, stride);
    if constexpr (A > 1 && B > 1) _tile_loadd(4, init + 16 * ld_init + 16, stride);
    if constexpr (A > 2 && B > 1) _tile_loadd(5, init + 32 * ld_init + 16, stride);
  } else {
    _tile_zero(0);
    if constexpr (A > 1) _tile_zero(1);
    if constexpr (A > 2) _tile_zero(2);
    if constexpr (B > 1) _tile_zero(3);
    if constexpr (A > 1 && B > 1) _tile_zero(4);
    if constexpr (A > 2 && B > 1) _tile_zero(5);
  }
  for (int64_t i = 0; i < count; i++) {
    const Term& term = terms[i];
    const int64_t stride = term.ld * 2, step = term.step;
    const uint16_t *a0 = term.a, *a1 = a0 + term.tile, *a2 = a1 + term.tile;
    const uint16_t* b = term.b + panel * term.k * kPanel;
    for (int64_t k = 0; k < term.k; k += kStep, a0 += step, a1 += step, a2 += step, b += kStep * kPanel) {
      _tile_loadd(7, b, 4 * kPanel);
      _tile_loadd(6, a0, stride);
      _tile_dpbf16ps(0, 6, 7);
      if constexpr (A > 1) {
        _tile_loadd(6, a1, stride);
        _tile_dpbf16ps(1, 6, 7);
      }
      if constexpr (A > 2) {
        _tile_loadd(6, a2, stride);
        _tile_dpbf16ps(2, 6, 7);
      }
      if constexpr (B > 1) {
        _tile_loadd(7, b + kPanel, 4 * kPanel);
        if constexpr (A > 2) _tile_dpbf16ps(5, 6, 7);
        if constexpr (A > 2) _tile_loadd(6, a1, stride);
        if constexpr (A > 1) _tile_dpbf16ps(4, 6, 7);
        if constexpr (A > 1) _tile_loadd(6, a0, stride);
      }
      if constexpr (Output) {
        if (pending_.done < pending_.rows) write_rows(pending_, 2);
        for (const char* end = std::min(next_ + next_step_, next_end_); next_ < end; next_ += 64)
          _mm_prefetch(next_, _MM_HINT_T1);
      }
      if constexpr (B > 1) _tile_dpbf16ps(3, 6, 7);
    }
  }
}

template <int A, int B>
INLINE void store(float* c, int64_t ldc) {
  const int64_t stride = ldc * 4;
  _tile_stored(0, c, stride);
  if constexpr (A > 1) _tile_stored(1, c + 16 * ldc, stride);
  if constexpr (A > 2) _tile_stored(2, c + 32 * ldc, stride);
  if constexpr (B > 1) _tile_stored(3, c + 16, stride);
  if constexpr (A > 1 && B > 1) _tile_stored(4, c + 16 * ldc + 16, stride);
  if constexpr (A > 2 && B > 1) _tile_stored(5, c + 32 * ldc + 16, stride);
}

template <int A>
TARGET void Tiles::linear_panel(const Term* terms, int64_t count, int64_t panel, const float* init, int64_t ld_init) {
  product<A, 2, true>(terms, count, panel, init, ld_init);
  flush();
  store<A, 2>(blocks_[current_], kPanel);
}

TARGET void Tiles::linear(int64_t m, int64_t n, const Term* terms, int64_t count, const float* init, int64_t ld_init,
                          const float* bias, uint16_t* out, int64_t ld_out) {
  for (int64_t j = 0; j < n; j += kPanel) {
    const float* from = init ? init + j : nullptr;
    if (m > 32)
      linear_panel<3>(terms, count, j / kPanel, from, ld_init);
    else if (m > 16)
      linear_panel<2>(terms, count, j / kPanel, from, ld_init);
    else
      linear_panel<1>(terms, count, j / kPanel, from, ld_init);
    pending_ = {blocks_[current_], bias ? bias + j : nullptr, out + j, ld_out, m, std::min(kPanel, n - j), 0};
    current_ ^= 1;
  }
}

template <int A>
TARGET void Tiles::sum_panels(int64_t n, const Term* terms, int64_t count, float* c, int64_t ldc, bool add) {
  for (int64_t j = 0; j < n; j += kPanel) {
    const float* from = add ? c + j : nullptr;
    if (n - j > 16) {
      product<A, 2, false>(terms, count, j / kPanel, from, ldc);
      store<A, 2>(c + j, ldc);
    } else {
      product<A, 1, false>(terms, count, j / kPanel, from, ldc);
      store<A, 1>(c + j, ldc);
    }
  }
}

TARGET void Tiles::sum(int64_t m, int64_t n, const Term* terms, int64_t count, float* c, int64_t ldc, bool add) {
  if (m > 32)
    sum_panels<3>(n, terms, count, c, ldc, add);
  else if (m > 16)
    sum_panels<2>(n, terms, count, c, ldc, add);
  else
    sum_panels<1>(n, terms, count, c, ldc, add);
}

TARGET void transpose_pairs(const uint16_t* const rows[16], uint32_t* out, int64_t out_columns) {
  __m512i r[16], s[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(rows[i]);
  for (int i = 0; i < 8; i++) {
    s[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    s[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(s[4 * i], s[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(s[4 * i], s[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(s[4 * i + 1], s[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(s[4 * i + 1], s[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {  // lane l of r[4q + i] holds column 4l + i of rows 4q .. 4q + 3
    s[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    s[4 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    s[8 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    s[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    _mm512_storeu_si512(out + i * out_columns, _mm512_shuffle_i32x4(s[i], s[4 + i], 0x88));
    _mm512_storeu_si512(out + (4 + i) * out_columns, _mm512_shuffle_i32x4(s[8 + i], s[12 + i], 0x88));
    _mm512_storeu_si512(out + (8 + i) * out_columns, _mm512_shuffle_i32x4(s[i], s[4 + i], 0xdd));
    _mm512_storeu_si512(out + (12 + i) * out_columns, _mm512_shuffle_i32x4(s[8 + i], s[12 + i], 0xdd));
  }
}

TARGET void tile_row(const uint16_t* row, int64_t columns, uint16_t* out) {
  int64_t j = 0;
  for (; j + kStep <= columns; j += kStep) _mm512_storeu_si512(out + 16 * j, _mm512_loadu_si512(row + j));
  if (j < columns) _mm512_storeu_si512(out + 16 * j, _mm512_maskz_loadu_epi16((1u << (columns - j)) - 1, row + j));
}

TARGET void interleave_rows(const uint16_t* a, int64_t ld, int64_t tile, int64_t rows, uint16_t* out) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                       36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int64_t i = 0; i < rows; i += 2, out += 2 * kPanel) {
    const uint16_t* from = a + i / 16 * tile + i % 16 * ld;
    const __m512i even = _mm512_loadu_si512(from), odd = _mm512_loadu_si512(from + ld);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(even, low, odd));
    _mm512_storeu_si512(out + kPanel, _mm512_permutex2var_epi16(even, high, odd));
  }
}

#endif

}  // namespace fastmoe_lora::amx
