// Products of bfloat16 blocks on AMX tiles, with the conversion of a finished block hidden behind the next one's products.
#pragma once

#include <cstdint>

namespace fastmoe_lora::amx {

constexpr int64_t kPanel = 32;  // columns of a packed panel
constexpr int64_t kStep = 32;   // the contraction is padded to a multiple of this
constexpr int64_t kRows = 32;   // rows of a block

// One term a * b of a block: a is row-major (rows, k), b is packed in panels [panel][k / 2][kPanel][2].
// k is a multiple of kStep; rows of a are readable up to the next multiple of 16.
struct Term {
  const uint16_t* a;
  int64_t lda;
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

  // A finished block (kRows x kPanel accumulators) whose rows from `done` on are still to be written.
  struct Pending {
    const float* block = nullptr;
    const float* bias = nullptr;
    uint16_t* out = nullptr;
    int64_t ld_out = 0, rows = 0, columns = 0, done = 0;
  };

 private:
  Pending pending_;
  int current_ = 0;
  alignas(64) float blocks_[2][kRows * kPanel];

  template <int A, int B>
  void product(const Term* terms, int64_t count, int64_t panel, const float* init, int64_t ld_init);
};

// out[k / 2][columns][2] from 16 rows of 32 contiguous elements: a transposition of pairs. `out_columns` in elements of 4 bytes.
void transpose_pairs(const uint16_t* const rows[16], uint32_t* out, int64_t out_columns);

// One panel, out[rows / 2][kPanel][2], from kPanel columns of `rows` rows (even) that are the contraction.
void interleave_rows(const uint16_t* from, int64_t ld, int64_t rows, uint16_t* out);

}  // namespace fastmoe_lora::amx
