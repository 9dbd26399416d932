#include "adapter.h"

#include <algorithm>

namespace fastmoe_lora {
namespace {

bool rises(float value, bool last) { return value >= 0 && (value < 1 || (last && value == 1)); }

}  // namespace

Adapter make_adapter(int64_t splits, int64_t experts, int64_t rank, const int32_t* table, int64_t width,
                     const float* diagonal, bool ready, float scaling) {
  Adapter a;
  a.splits = splits, a.experts = experts, a.rank = rank, a.width = width;
  a.source.resize(splits * width);
  a.coefficient.assign(splits * width, 0.0f);
  a.gate.assign(splits * width, 0);
  for (int64_t i = 0; i < splits * width; i++) {
    const int64_t split = i / width, source = table ? table[i] : i % width;
    a.source[i] = source;
    if (source < 0) {  // any gate will do: the one before keeps runs of eight whole
      a.gate[i] = int32_t(i % width ? a.gate[i - 1] : split * experts);
      continue;
    }
    const int64_t expert = source / rank, k = source % rank, at = split * experts + expert;
    const float d = ready ? diagonal[at * rank + k] : std::clamp(diagonal[at] - k, 0.0f, 1.0f);
    a.coefficient[i] = d * scaling;
    const bool follows = !a.runs.empty() && a.runs.back().end == i && i % width && a.source[i - 1] + 1 == source;
    if (follows && a.runs.back().expert == expert)
      a.runs.back().end++;
    else
      a.runs.push_back({split, expert, i, i + 1});
    a.gate[i] = int32_t(at);
  }
  for (int64_t i = 0; splits * width % 8 == 0 && i < splits * width; i++) {
    if (i % 8 == 0) a.octets.push_back(a.gate[i]);
    if (a.gate[i] == a.octets[i / 8]) continue;
    a.octets.clear();
    break;
  }
  return a;
}

void diagonal_gradient(const Adapter& adapter, const float* diagonal, bool ready, const float* grad, float* out) {
  std::fill_n(out, adapter.splits * adapter.experts * (ready ? adapter.rank : 1), 0.0f);
  for (int64_t i = 0; i < adapter.columns(); i++) {
    if (adapter.source[i] < 0) continue;
    const int64_t expert = adapter.source[i] / adapter.rank, k = adapter.source[i] % adapter.rank;
    const int64_t at = i / adapter.width * adapter.experts + expert;
    if (ready)
      out[at * adapter.rank + k] = grad[i];
    else if (rises(diagonal[at] - k, k == adapter.rank - 1))
      out[at] += grad[i];
  }
}

}  // namespace fastmoe_lora
