#include "stage.h"
#include "weights.h"

namespace fastmoe_lora {
namespace {

// The adapters, packed for one call: [A; router] (K, S*P [+ S*E]) and per split B (P, N/S).
template <class C>
struct PackedAdapter {
  Panels a, b;
  const C *a_memory = nullptr, *b_memory = nullptr;
};

template <class C, class P>
void pack_adapter(const Operands& o, const Adapter& adapter, const PackedAdapter<C>& packed) {
  const int64_t k = o.x.size(1), per_split = o.weight.size(0) / adapter.splits;
  const std::vector<const P*> rows = stacked_rows<P>(o, adapter);
  const int64_t b_panels = adapter.splits * packed.b.count;
  parallel(packed.a.count + b_panels, packed.a.panel_elements(), [&](int64_t i) {
    if (i < packed.a.count) {
      const int64_t first = i * packed.a.width, n = std::min(packed.a.width, adapter.stacked() - first);
      pack_transposed(rows.data() + first, n, k, packed.a,
                      const_cast<C*>(packed.a_memory) + i * packed.a.panel_elements());
      return;
    }
    i -= packed.a.count;
    const int64_t split = i / packed.b.count, first = i % packed.b.count * packed.b.width;
    const int64_t n = std::min(packed.b.width, per_split - first);
    std::vector<C> gathered(n * adapter.width);
    gather_b<C, P>(o, adapter, split, first, n, gathered.data(), adapter.width);
    const C* source[kWidest];
    for (int64_t j = 0; j < n; j++) source[j] = gathered.data() + j * adapter.width;
    pack_transposed(source, n, adapter.width, packed.b,
                    const_cast<C*>(packed.b_memory) + i * packed.b.panel_elements());
  });
}

template <class T, class C>
void run(const Operands& o, Layout layout, const Adapter& adapter, const Tensor& y, const Tensor& low_rank,
         const Tensor& gates) {
  const bool keep = low_rank.defined();
  const int64_t m = o.x.size(0), k = o.x.size(1), n = o.weight.size(0), splits = adapter.splits, per_split = n / splits;
  const bool adapted = adapter.width > 0;
  const Dropout dropout = make_dropout(o);
  const PackedWeight weight = packed_weight(o.weight, splits, layout, Direction::kForward);
  const Panels& panels = weight.panels;
  const int64_t padded_n = panels.count * panels.width, ld_t = layout.padded(adapter.width);
  const int64_t group = group_panels(panels, sizeof(C)) * panels.width;

  Scratch shared;
  PackedAdapter<C> packed{layout.panels(adapter.stacked(), k), {panels.width, panels.count, ld_t}};
  const int64_t a_at = shared.reserve<C>(adapted ? packed.a.elements() : 0);
  const int64_t b_at = shared.reserve<C>(adapted ? splits * packed.b.elements() : 0);
  const int64_t bias_at = shared.reserve<float>(o.bias ? splits * padded_n : 0);
  shared.take();
  packed.a_memory = shared.at<C>(a_at), packed.b_memory = shared.at<C>(b_at);
  if (adapted) {
    with_parameter_type<T>(*o.lora_A, [&](auto type) { pack_adapter<C, decltype(type)>(o, adapter, packed); });
  }
  float* bias = o.bias ? shared.at<float>(bias_at) : nullptr;
  if (bias) {
    std::fill_n(bias, splits * padded_n, 0.0f);
    with_parameter_type<T>(*o.bias, [&](auto type) {
      const auto* from = data<decltype(type)>(*o.bias);
      for (int64_t s = 0; s < splits; s++) convert(from + s * per_split, bias + s * padded_n, per_split);
    });
  }

  // Workers share the rows; where there are fewer units of rows than threads, also the columns.
  const int64_t unit = layout.engine == Engine::kAmx ? 16 : 8, units = divide_up(m, unit);
  const int64_t threads = worthwhile_threads(m, n, k);
  const int64_t row_workers = std::min(units, threads), groups = divide_up(padded_n, group);
  const int64_t column_workers = std::clamp<int64_t>(threads / std::max<int64_t>(row_workers, 1), 1, splits * groups);
  const int64_t chunk = chunk_rows(layout, divide_up(units, std::max<int64_t>(row_workers, 1)) * unit, k * sizeof(C));
  const int64_t rows = layout.rows(), unit_chunk = round_up(std::min(chunk, m), layout.row_unit());
  const int64_t a_columns = packed.a.count * packed.a.width;
  Scratch own;
  const int64_t x_at = own.reserve<C>(unit_chunk * layout.padded(k));
  const int64_t dropped_at = own.reserve<C>(dropout.active ? unit_chunk * layout.padded(k) : 0);
  const int64_t t_at = own.reserve<C>(unit_chunk * splits * ld_t);
  const int64_t c_at = own.reserve<float>(adapted ? rows * a_columns : 0);
  const int64_t gates_at = own.reserve<float>(rows * splits * adapter.experts);
  const int64_t low_rank_at = own.reserve<T>(rows * adapter.columns());
  const int64_t scratch_at = own.reserve<float>(Multiplier<C>::kScratch);
  const int64_t workers = row_workers * column_workers;
  own.take(std::max<int64_t>(workers, 1));

  parallel(workers, kWorthwhile, [&](int64_t worker) {
    Multiplier<C> multiplier(layout, own.at<float>(scratch_at, worker));
    const int64_t column_worker = worker % column_workers;
    Range range = share(units, worker / column_workers, row_workers);
    range = {range.begin * unit, std::min(range.end * unit, m)};
    const Range own_groups = share(splits * groups, column_worker, column_workers);
    C* t = own.at<C>(t_at, worker);
    if (adapter.width < ld_t) std::fill_n(t, unit_chunk * splits * ld_t, C(0));  // the padding stays zero
    for_chunks(range, chunk, [&](int64_t first, int64_t count) {
      const T* from = data<T>(o.x) + first * k;
      const auto x = stage(layout, from, k, count, 1, k, own.at<C>(x_at, worker));
      if (adapted) {
        auto dropped = x;
        if (dropout.active)
          dropped = stage_dropped(layout, dropout, first, from, count, k, own.at<C>(dropped_at, worker));
        float* c = own.at<float>(c_at, worker);
        for (int64_t i = 0; i < count; i += rows) {
          const int64_t block = std::min(rows, count - i), row = first + i;
          const Term<C> term{dropped.at(i, 0), packed.a_memory, packed.a.k};
          multiplier.sum(block, adapter.stacked(), packed.a.width, &term, 1, c, a_columns, false);
          // What is not kept stays with the worker. Workers that share rows compute the same; one of them writes it.
          const bool writes = keep && !column_worker;
          float* g = adapter.routed && !writes ? own.at<float>(gates_at, worker)
                                               : mutable_data<float>(gates) + row * splits * adapter.experts;
          T* s = writes ? mutable_data<T>(low_rank) + row * adapter.columns() : own.at<T>(low_rank_at, worker);
          gate_rows<T, C>(adapter, block, c, a_columns, g, s, t + i * splits * ld_t, ld_t);
        }
      }
      for (int64_t g = own_groups.begin; g < own_groups.end; g++) {
        const int64_t s = g / groups, column = g % groups * group, columns = std::min(group, per_split - column);
        if (columns <= 0) continue;
        const int64_t panel = column / panels.width;
        const C* w = data<C>(weight.memory) + (s * panels.count + panel) * panels.panel_elements();
        const C* b = packed.b_memory + (s * packed.b.count + panel) * packed.b.panel_elements();
        multiplier.expect(w + group / panels.width * panels.panel_elements(), group * panels.k, divide_up(count, rows));
        for (int64_t i = 0; i < count; i += rows) {
          const Term<C> terms[] = {{x.at(i, 0), w, panels.k},
                                   {Left<C>::rows(t + (i * splits + s) * ld_t, splits * ld_t), b, packed.b.k}};
          multiplier.linear(std::min(rows, count - i), columns, panels.width, terms, adapted ? 2 : 1, nullptr, 0,
                            bias ? bias + s * padded_n + column : nullptr,
                            mutable_data<T>(y) + (first + i) * n + s * per_split + column, n);
        }
      }
    });
  });
}

}  // namespace

Forward forward(const Operands& o, bool keep) {
  const Adapter adapter = make_adapter(o);
  const Layout layout = layout_for(o.x.scalar_type());
  const int64_t m = o.x.size(0);
  Forward out{empty_output({m, o.weight.size(0)}, o.x.options())};
  if (keep) out.low_rank = at::empty({m, adapter.splits, adapter.width}, o.x.options());
  if (keep && adapter.routed) out.gates = at::empty({m, adapter.splits, adapter.experts}, o.x.options().dtype(at::kFloat));
  const Tensor gates = adapter.routed ? out.gates : o.gates.value_or(Tensor());
  with_type(o.x, [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<T, BFloat16>)
      if (layout.engine != Engine::kFloat) return run<T, BFloat16>(o, layout, adapter, out.y, out.low_rank, gates);
    run<T, float>(o, layout, adapter, out.y, out.low_rank, gates);
  });
  return out;
}

}  // namespace fastmoe_lora
