// Products of bfloat16 blocks on AMX tiles, with the conversion of a finished block hidden behind the next one's products.
#pragma once

#include <cstdint>

namespace fastmoe_lora::amx {

constexpr int64_t kPanel = 32;  // columns of a packed panel
constexpr int64_t kStep = 32;   // the contraction is padded to a multiple of this
constexpr int64_t kRows = 48;   // rows of a block

// One term a * b of a block. Of a, row i and column j is a[i / 16 * tile + i % 16 * ld + j / 32 * step + j % 32]; rows are
// readable up to the next multiple of 16. b is packed in panels [panel][k / 2][kPanel][2]. k is a multiple of kStep.
struct Term {
  const uint16_t* a;
  int64_t ld, tile, step;
  const uint16_t* b;
  int64_t k;
};

// Whether processor, operating system and compiler have AMX with bfloat16. Asks the kernel for the tile state once.
bool available();

// The tile configuration of this thread, from construction to destruction.
class Tiles {
 public:
  Tiles();
  ~Tiles();
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // out (m, n) = init + sum of terms + bias, rounded to bfloat16. m <= kRows, n any; init and bias may be null and are
  // readable up to the next multiple of kPanel columns. The last block may be written as late as in flush().
  void linear(int64_t m, int64_t n, const Term* terms, int64_t count, const float* init, int64_t ld_init,
              const float* bias, uint16_t* out, int64_t ld_out);

  // c (m, n) = (add ? c : 0) + sum of terms, in float32; c has room for multiples of 16 rows and kPanel columns.
  void sum(int64_t m, int64_t n, const Term* terms, int64_t count, float* c, int64_t ldc, bool add);

  // Writes what is still pending.
  void flush();

  // Brings `bytes` from `next` on into the second-level cache over the next `steps` steps of linear().
  void expect(const void* next, int64_t bytes, int64_t steps);

  // A finished block (kRows x kPanel accumulators) whose rows from `done` on are still to be written.
  struct Pending {
    const float* block = nullptr;
    const float* bias = nullptr;
    uint16_t* out = nullptr;
    int64_t ld_out = 0, rows = 0, columns = 0, done = 0;
  };

 private:
  Pending pending_;
  const char *next_ = nullptr, *next_end_ = nullptr;
  int64_t next_step_ = 0;
  int current_ = 0;
  alignas(64) float blocks_[2][kRows * kPanel];

  template <int A, int B, bool Output>
  void product(const Term* terms, int64_t count, int64_t panel, const float* init, int64_t ld_init);
  template <int A>
  void linear_panel(const Term* terms, int64_t count, int64_t panel, const float* init, int64_t ld_init);
  template <int A>
  void sum_panels(int64_t n, const Term* terms, int64_t count, float* c, int64_t ldc, bool add);
};

// out[k / 2][columns][2] from 16 rows of 32 contiguous elements: a transposition of pairs. `out_columns` in elements of 4 bytes.
void transpose_pairs(const uint16_t* const rows[16], uint32_t* out, int64_t out_columns);

// One row into tiles: 32 columns at a time, kStep * 16 numbers apart; the last are filled up with zeros.
void tile_row(const uint16_t* row, int64_t columns, uint16_t* out);

// One panel, out[rows / 2][kPanel][2], from 32 columns (a as in Term) whose rows, a multiple of 16, are the contraction.
void interleave_rows(const uint16_t* a, int64_t ld, int64_t tile, int64_t rows, uint16_t* out);

}  // namespace fastmoe_lora::amx
