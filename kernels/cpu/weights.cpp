#include "weights.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/StorageImpl.h>

#include <memory>
#include <mutex>
#include <unordered_map>

#include "pack.h"

namespace fastmoe_lora {
namespace {

// When is a packed copy still right? The storage must be the very same object (a weak reference tells, even after its
// address has been used again), with the same data pointer and version counter. Writes through `tensor.data` or numpy
// pass by the version counter; a sample of the numbers, some of every row and of every column, catches those that change
// whole rows or whole columns.
struct Identity {
  const void* data;
  uint32_t version;
  uint64_t sample;
  bool operator==(const Identity&) const = default;
};

// Words of eight bytes, down a diagonal that comes round until it has been in every row and in every word of a row.
uint64_t sample_of(const Tensor& weight) {
  const auto* bytes = static_cast<const unsigned char*>(weight.const_data_ptr());
  const int64_t rows = weight.size(0), row_bytes = weight.size(1) * weight.element_size();
  const int64_t word = std::min<int64_t>(8, row_bytes), words = divide_up(row_bytes, word), count = std::max(rows, words);
  uint64_t hash = weight.nbytes();
  for (int64_t i = 0, row = 0, at = 0; i < count; i++) {
    uint64_t value = 0;
    std::memcpy(&value, bytes + row * row_bytes + std::min(at * word, row_bytes - word), word);
    hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 29;
    row = row + 1 == rows ? 0 : row + 1, at = at + 1 == words ? 0 : at + 1;
  }
  return hash;
}

struct Key {
  const c10::StorageImpl* storage;
  int64_t offset, rows, columns, splits;
  at::ScalarType dtype;
  Engine engine;
  Direction direction;
  bool operator==(const Key&) const = default;
};
struct KeyHash {
  size_t operator()(const Key& key) const {
    return std::hash<const void*>()(key.storage) ^ size_t(key.offset * 31 + int(key.direction));
  }
};
struct Entry {
  c10::weak_intrusive_ptr<c10::StorageImpl> owner;
  Identity identity;
  PackedWeight packed;
};

// Never destroyed: weights may outlive what the library could destroy at exit.
std::mutex& mutex = *new std::mutex;
auto& cache = *new std::unordered_map<Key, Entry, KeyHash>;
bool caching = true;

// The memory of a weight, which takes the packed copies along when it goes: freed, resized or replaced.
struct Memory {
  const c10::StorageImpl* storage;
  at::DataPtr numbers;
};

void free_memory(void* context) {
  const std::unique_ptr<Memory> memory(static_cast<Memory*>(context));
  const std::lock_guard<std::mutex> lock(mutex);
  std::erase_if(cache, [&](const auto& item) { return item.first.storage == memory->storage; });
}

// For memory of torch's own allocator. Whoever else has allocated it (shared memory, a mapped file) knows it by its
// deleter, which has to stay; copies of such weights go with the next one that is packed.
void watch(c10::StorageImpl* storage) {
  const at::DataPtr& numbers = storage->data_ptr();
  if (numbers.get_deleter() != c10::GetCPUAllocator()->raw_deleter() || numbers.get_context() != numbers.get()) return;
  auto memory = std::unique_ptr<Memory>(new Memory{storage, {}});
  at::DataPtr watched(numbers.get(), memory.get(), free_memory, numbers.device());
  memory.release()->numbers = storage->set_data_ptr(std::move(watched));
}

template <class T, class C>
void pack(const T* weight, int64_t rows, int64_t columns, int64_t splits, Layout layout, Direction direction,
          const PackedWeight& packed) {
  const Panels& panels = packed.panels;
  const int64_t per_split = rows / splits;
  C* out = mutable_data<C>(packed.memory);
  if (direction == Direction::kForward) {
    parallel(splits * panels.count, panels.panel_elements(), [&](int64_t i) {
      const int64_t split = i / panels.count, first = i % panels.count * panels.width;
      const int64_t n = std::min(panels.width, per_split - first);
      const T* source[kWidest];
      for (int64_t j = 0; j < n; j++) source[j] = weight + (split * per_split + first + j) * columns;
      pack_transposed(source, n, columns, panels, out + i * panels.panel_elements());
    });
  } else {
    const int64_t padded = layout.padded(per_split);
    parallel(panels.count, panels.panel_elements(), [&](int64_t i) {
      std::vector<const T*> source(splits * padded, nullptr);
      for (int64_t row = 0; row < rows; row++)
        source[row / per_split * padded + row % per_split] = weight + row * columns + i * panels.width;
      const int64_t n = std::min(panels.width, columns - i * panels.width);
      pack_rows(source.data(), n, splits * padded, panels, out + i * panels.panel_elements());
    });
  }
}

PackedWeight make(const Tensor& weight, int64_t splits, Layout layout, Direction direction) {
  const int64_t rows = weight.size(0), columns = weight.size(1), per_split = rows / splits;
  const bool forward = direction == Direction::kForward;
  PackedWeight packed;
  packed.panels = forward ? layout.panels(per_split, columns) : layout.panels(columns, splits * layout.padded(per_split));
  const int64_t elements = packed.panels.elements() * (forward ? splits : 1);
  packed.memory = at::empty({elements * (layout.engine == Engine::kFloat ? 4 : 2)}, at::kByte);
  with_type(weight, [&](auto type) {
    using T = decltype(type);
    if (layout.engine == Engine::kFloat)
      pack<T, float>(data<T>(weight), rows, columns, splits, layout, direction, packed);
    else if constexpr (!std::is_same_v<T, Half>)
      pack<T, BFloat16>(data<T>(weight), rows, columns, splits, layout, direction, packed);
  });
  return packed;
}

}  // namespace

PackedWeight packed_weight(const Tensor& weight, int64_t splits, Layout layout, Direction direction) {
  if (!caching || weight.requires_grad() || !weight.has_storage()) return make(weight, splits, layout, direction);
  c10::StorageImpl* storage = weight.storage().unsafeGetStorageImpl();
  const Key key{storage,     weight.storage_offset(), weight.size(0),     weight.size(1), splits,
                weight.scalar_type(), layout.engine,          direction};
  const Identity identity{weight.const_data_ptr(), weight.is_inference() ? 0 : uint32_t(weight._version()),
                          sample_of(weight)};
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = cache.find(key);
    if (found != cache.end() && !found->second.owner.expired() && found->second.identity == identity)
      return found->second.packed;
  }
  PackedWeight packed = make(weight, splits, layout, direction);
  const std::lock_guard<std::mutex> lock(mutex);
  std::erase_if(cache, [](const auto& item) { return item.second.owner.expired(); });
  const auto owner = weight.storage().getWeakStorageImpl();
  cache.insert_or_assign(key, Entry{owner, identity, packed});
  watch(storage);
  return packed;
}

int64_t cached_bytes() {
  const std::lock_guard<std::mutex> lock(mutex);
  int64_t bytes = 0;
  for (const auto& item : cache) bytes += item.second.packed.memory.nbytes();
  return bytes;
}

void clear_cache() {
  const std::lock_guard<std::mutex> lock(mutex);
  cache.clear();
}

bool set_caching(bool on) {
  const bool was = caching;
  caching = on;
  if (!on) clear_cache();
  return was;
}

}  // namespace fastmoe_lora
