// The little of ATen that is needed, and scratch memory.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <tuple>
#include <vector>

#include "engine.h"
#include "number.h"

namespace fastmoe_lora {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// One allocation that is handed out in aligned pieces: first all sizes are reserved, then memory is taken.
class Scratch {
 public:
  template <class T>
  int64_t reserve(int64_t elements) {
    const int64_t at = bytes_;
    bytes_ += round_up(elements * int64_t(sizeof(T)), 64);
    return at;
  }
  int64_t bytes() const { return bytes_; }
  void take(int64_t copies = 1) { memory_ = at::empty({bytes_ * copies}, at::kByte); }
  template <class T>
  T* at(int64_t offset, int64_t copy = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(memory_.data_ptr()) + copy * bytes_ + offset);
  }

 private:
  int64_t bytes_ = 0;
  Tensor memory_;
};

// An output to be written. glibc maps what is larger than 32 MiB anew for each allocation; in huge pages that costs one
// page fault for 512 of the usual pages.
inline Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options) {
  constexpr uintptr_t kMapped = 32 << 20, kHugePage = 2 << 20;
  Tensor tensor = at::empty(sizes, options);
#ifdef MADV_HUGEPAGE
  const auto bytes = uintptr_t(tensor.nbytes()), begin = uintptr_t(tensor.data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage, last = (begin + bytes) / kHugePage * kHugePage;
  if (bytes > kMapped) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: may fail
#endif
  return tensor;
}

// function(i) for i in [0, n), on up to torch.get_num_threads() threads, one contiguous range each. `cost` of one i, in
// numbers touched: a thread is not worth waking for less than kWorthwhile of them.
constexpr int64_t kWorthwhile = 1 << 15;
template <class F>
void parallel(int64_t n, int64_t cost, const F& function) {
  at::parallel_for(0, n, std::max<int64_t>(1, kWorthwhile / std::max<int64_t>(cost, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) function(i);
  });
}

// How many threads a product of that many multiplications is worth.
inline int64_t worthwhile_threads(int64_t m, int64_t n, int64_t k) {
  constexpr double kMultiplications = 1 << 20;  // about what waking a thread costs
  const double worth = double(m) * double(n) * double(k) / kMultiplications;
  return worth < 1 ? 1 : int64_t(std::min<double>(worth, at::get_num_threads()));
}

// The shares of a fixed number of workers, whose results are kept apart: worker w gets units [begin, end).
struct Range {
  int64_t begin, end;
};
inline Range share(int64_t units, int64_t worker, int64_t workers) {
  return {units * worker / workers, units * (worker + 1) / workers};
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Calls function(T{}) with the storage type of `tensor`.
template <class F>
void with_type(const Tensor& tensor, const F& function) {
  if (tensor.scalar_type() == at::kFloat)
    function(float());
  else if (tensor.scalar_type() == at::kBFloat16)
    function(BFloat16());
  else
    function(Half());
}

// The same for parameters, whose type is float32 or the storage type T of everything else.
template <class T, class F>
void with_parameter_type(const Tensor& tensor, const F& function) {
  if (tensor.scalar_type() == at::kFloat)
    function(float());
  else
    function(T());
}

}  // namespace fastmoe_lora
