#include "stage.h"
#include "transpose.h"
#include "weights.h"

namespace fastmoe_lora {
namespace {

// Rows that a block of A's gradient contracts over before it is stored, at least. (B's contracts over a part, while that
// is in cache.)
constexpr int64_t kOuterRows = 512;

// Where everything of a backward pass lies: shared, then per worker.
template <class T, class C>
class Backward {
 public:
  Backward(const Tensor& grad_y, const Operands& o, const Tensor& low_rank, const Needs& needs, Layout layout,
           const Adapter& adapter, Gradients& out)
      : o_(o), needs_(needs), layout_(layout), adapter_(adapter), dropout_(make_dropout(o)), out_(out),
        grad_y_(data<T>(grad_y)), low_rank_(adapter.width ? data<T>(low_rank) : nullptr) {
    m_ = grad_y.size(0), k_ = o.weight.size(1), n_ = o.weight.size(0);
    splits_ = adapter.splits, per_split_ = n_ / splits_, padded_split_ = layout.padded(per_split_);
    adapted_ = adapter.width > 0;
    needs_products_ = needs.lora_A || needs.router;
    needs_u_ = adapted_ && (needs.x || needs_products_ || needs.lora_B || needs.diag || needs.gates);
    rows_ = layout.rows();
    unit_ = layout_.engine == Engine::kAmx ? 16 : 8, units_ = divide_up(m_, unit_);
    workers_ = std::max<int64_t>(1, std::min(units_, worthwhile_threads(m_, n_, k_)));
    part_ = chunk_rows(layout, divide_up(units_, workers_) * unit_, splits_ * padded_split_ * sizeof(C));
    chunk_ = std::min(round_up(m_, 32), round_up(kOuterRows, part_));
  }

  void run() {
    pack();
    reserve();
    parallel(workers_, kWorthwhile, [&](int64_t worker) {
      Multiplier<C> multiplier(layout_, own_.at<float>(scratch_at_, worker));
      std::fill_n(own_.at<float>(grad_a_at_, worker), grad_a_size_, 0.0f);
      std::fill_n(own_.at<float>(grad_b_at_, worker), grad_b_size_, 0.0f);
      std::fill_n(own_.at<float>(grad_d_at_, worker), adapter_.columns(), 0.0f);
      if (adapter_.stacked() < ld_ds_)  // the padding stays zero
        std::fill_n(own_.at<C>(ds_at_, worker), round_up(chunk_, 32) * ld_ds_, C(0));
      Range range = share(units_, worker, workers_);
      range = {range.begin * unit_, std::min(range.end * unit_, m_)};
      for_chunks(range, chunk_, [&](int64_t first, int64_t count) { chunk(multiplier, worker, first, count); });
    });
    if (adapted_) reduce();
  }

 private:
  const Operands& o_;
  const Needs& needs_;
  const Layout layout_;
  const Adapter& adapter_;
  const Dropout dropout_;
  Gradients& out_;
  const T *grad_y_, *low_rank_;
  int64_t m_, k_, n_, splits_, per_split_, padded_split_, chunk_, part_, rows_, unit_, units_, workers_;
  bool adapted_, needs_products_, needs_u_;

  PackedWeight weight_;  // (N, K)
  Panels a_{}, b_{};     // [A; router] (S*P [+ S*E], K), and per split B^T (N/S, P)
  Panels x_{}, dy_{};    // a chunk of x~ (rows, K) and of dy (rows, N/S), with rows as the contraction
  Scratch shared_, own_;
  int64_t a_at_ = 0, b_at_ = 0;
  int64_t dy_at_, x_at_, u_at_, ds_at_, t_at_, across_at_, panel_at_, update_at_, gates_at_, scratch_at_;
  int64_t grad_a_at_, grad_b_at_, grad_d_at_, ld_u_, ld_ds_, grad_a_rows_, grad_b_rows_, grad_a_size_, grad_b_size_;

  // Distance of the rows of a transposed matrix whose rows have `count` numbers: an odd number of cache lines, so that
  // the lines of a tile do not compete for the same places of the cache.
  static int64_t across_ld(int64_t count) {
    constexpr int64_t kLine = 64 / sizeof(C);
    return (divide_up(round_up(count, 32), kLine) | 1) * kLine;
  }

  void pack() {
    if (needs_.x) weight_ = packed_weight(o_.weight, splits_, layout_, Direction::kBackward);
    if (!adapted_) return;
    a_ = layout_.panels(k_, adapter_.stacked());
    b_ = layout_.panels(adapter_.width, per_split_);
    a_at_ = shared_.reserve<C>(needs_.x ? a_.elements() : 0);
    b_at_ = shared_.reserve<C>(needs_u_ ? splits_ * b_.elements() : 0);
    shared_.take();
    with_parameter_type<T>(*o_.lora_A, [&](auto type) { pack_adapter<decltype(type)>(); });
  }

  template <class P>
  void pack_adapter() {
    const std::vector<const P*> rows = stacked_rows<P>(o_, adapter_);
    const int64_t a_panels = needs_.x ? a_.count : 0, b_panels = needs_u_ ? splits_ * b_.count : 0;
    parallel(a_panels + b_panels, b_.panel_elements(), [&](int64_t i) {
      if (i < a_panels) {
        std::vector<const P*> shifted(rows);
        for (const P*& row : shifted) row = row ? row + i * a_.width : nullptr;
        pack_rows(shifted.data(), std::min(a_.width, k_ - i * a_.width), adapter_.stacked(), a_,
                  shared_.at<C>(a_at_) + i * a_.panel_elements());
        return;
      }
      i -= a_panels;
      const int64_t split = i / b_.count, first = i % b_.count * b_.width, width = adapter_.width;
      std::vector<C> gathered(per_split_ * width);
      gather_b<C, P>(o_, adapter_, split, 0, per_split_, gathered.data(), width);
      std::vector<const C*> source(per_split_);
      for (int64_t j = 0; j < per_split_; j++) source[j] = gathered.data() + j * width + first;
      pack_rows(source.data(), std::min(b_.width, width - first), per_split_, b_,
                shared_.at<C>(b_at_) + i * b_.panel_elements());
    });
  }

  void reserve() {
    const int64_t padded_chunk = round_up(chunk_, 32), width = adapter_.width, stacked = adapter_.stacked();
    x_ = layout_.panels(k_, padded_chunk), dy_ = layout_.panels(per_split_, padded_chunk);
    ld_u_ = b_.count * b_.width, ld_ds_ = layout_.padded(stacked);
    const bool a = needs_products_, b = needs_.lora_B;
    grad_a_rows_ = a ? round_up(stacked, 16) : 0, grad_a_size_ = grad_a_rows_ * x_.count * x_.width;
    grad_b_rows_ = b ? round_up(width, 16) : 0, grad_b_size_ = splits_ * grad_b_rows_ * dy_.count * dy_.width;
    const bool updates = dropout_.active && needs_.x;
    const int64_t padded_part = std::min(round_up(part_, 32), padded_chunk);
    dy_at_ = own_.reserve<C>(padded_part * splits_ * padded_split_);
    x_at_ = own_.reserve<C>(a ? padded_chunk * layout_.padded(k_) : 0);
    u_at_ = own_.reserve<float>(needs_u_ ? round_up(rows_, 16) * splits_ * ld_u_ : 0);
    ds_at_ = own_.reserve<C>(adapted_ ? padded_chunk * ld_ds_ : 0);
    t_at_ = own_.reserve<C>(b ? padded_part * adapter_.columns() : 0);
    across_at_ = own_.reserve<C>(std::max(grad_a_rows_, grad_b_rows_) * across_ld(chunk_));
    panel_at_ = own_.reserve<C>(std::max(a ? x_.panel_elements() : 0, b ? dy_.panel_elements() : 0));
    update_at_ = own_.reserve<float>(updates ? padded_part * a_.count * a_.width : 0);
    gates_at_ = own_.reserve<float>(rows_ * splits_ * adapter_.experts);
    grad_a_at_ = own_.reserve<float>(grad_a_size_);
    grad_b_at_ = own_.reserve<float>(grad_b_size_);
    grad_d_at_ = own_.reserve<float>(adapter_.columns());
    scratch_at_ = own_.reserve<float>(Multiplier<C>::kScratch);
    own_.take(workers_);
  }

  void chunk(Multiplier<C>& multiplier, int64_t worker, int64_t first, int64_t count) {
    C* across = own_.at<C>(across_at_, worker);
    for (int64_t i = 0; i < count; i += part_) {
      const int64_t part = std::min(part_, count - i);
      const auto dy =
          stage(layout_, grad_y_ + (first + i) * n_, n_, part, splits_, per_split_, own_.at<C>(dy_at_, worker));
      if (needs_u_) gate(multiplier, worker, first, i, part, dy);
      if (needs_.x) input_gradient(multiplier, worker, first, i, part, dy);
      for (int64_t s = 0; s < splits_ && needs_.lora_B; s++) {
        transpose(own_.at<C>(t_at_, worker) + s * adapter_.width, adapter_.columns(), part, adapter_.width, across,
                  across_ld(part));
        outer(multiplier, worker, dy.at(0, s * padded_split_), part, per_split_, dy_, grad_b_rows_,
              own_.at<float>(grad_b_at_, worker) + s * grad_b_rows_ * dy_.count * dy_.width);
      }
    }
    if (needs_products_) {
      const auto x = staged_x(worker, first, count);
      transpose(own_.at<C>(ds_at_, worker), ld_ds_, count, adapter_.stacked(), across, across_ld(count));
      outer(multiplier, worker, x, count, k_, x_, grad_a_rows_, own_.at<float>(grad_a_at_, worker));
    }
  }

  // u = dy B of every split; from it the gradients of the products, t, and the sums for gates and diagonal. Of the chunk
  // that starts at row `first`, this is the part of `count` rows from `begin` on; so below.
  void gate(Multiplier<C>& multiplier, int64_t worker, int64_t first, int64_t begin, int64_t count,
            const Left<C>& dy) {
    float *u = own_.at<float>(u_at_, worker), *grad_d = own_.at<float>(grad_d_at_, worker);
    const int64_t experts = splits_ * adapter_.experts, columns = adapter_.columns();
    for (int64_t i = 0; i < count; i += rows_) {
      const int64_t block = std::min(rows_, count - i), at = begin + i, row = first + at;
      for (int64_t s = 0; s < splits_; s++) {
        const Term<C> term{dy.at(i, s * padded_split_), shared_.at<C>(b_at_) + s * b_.elements(), b_.k};
        multiplier.sum(block, adapter_.width, b_.width, &term, 1, u + s * ld_u_, splits_ * ld_u_, false);
      }
      gate_rows_backward<T, C>(
          adapter_, block, u, ld_u_, low_rank_ + row * columns, data<float>(*o_.gates) + row * experts,
          own_.at<C>(ds_at_, worker) + at * ld_ds_, ld_ds_,
          needs_.lora_B ? own_.at<C>(t_at_, worker) + i * columns : nullptr,
          needs_.gates ? mutable_data<float>(out_.gates) + row * experts : nullptr, grad_d);
    }
  }

  // dx = dy W + mask / (1 - p) * (ds [A; router])
  void input_gradient(Multiplier<C>& multiplier, int64_t worker, int64_t first, int64_t begin, int64_t count,
                      const Left<C>& dy) {
    const C* ds = own_.at<C>(ds_at_, worker) + begin * ld_ds_;
    first += begin;
    const int64_t ld_update = a_.count * a_.width;
    float* update = adapted_ && dropout_.active ? own_.at<float>(update_at_, worker) : nullptr;
    if (update) {
      std::vector<float> dropped(k_);
      for (int64_t i = 0; i < count; i += rows_) {
        const Term<C> term{Left<C>::rows(ds + i * ld_ds_, ld_ds_), shared_.at<C>(a_at_), a_.k};
        multiplier.sum(std::min(rows_, count - i), k_, a_.width, &term, 1, update + i * ld_update, ld_update, false);
      }
      for (int64_t i = 0; i < count; i++) {
        drop(dropout_, first + i, update + i * ld_update, dropped.data(), k_);
        convert(dropped.data(), update + i * ld_update, k_);
      }
    }
    const Panels& panels = weight_.panels;
    const int64_t group = group_panels(panels, sizeof(C)) * panels.width;
    for (int64_t column = 0; column < k_; column += group) {
      const int64_t panel = column / panels.width, columns = std::min(group, k_ - column);
      const C* w = data<C>(weight_.memory) + panel * panels.panel_elements();
      multiplier.expect(w + group * panels.k, group * panels.k, divide_up(count, rows_));
      for (int64_t i = 0; i < count; i += rows_) {
        const Term<C> terms[] = {
            {dy.at(i, 0), w, panels.k},
            {Left<C>::rows(ds + i * ld_ds_, ld_ds_),
             adapted_ ? shared_.at<C>(a_at_) + panel * a_.panel_elements() : nullptr, a_.k}};
        multiplier.linear(std::min(rows_, count - i), columns, panels.width, terms, adapted_ && !update ? 2 : 1,
                          update ? update + i * ld_update + column : nullptr, ld_update, nullptr,
                          mutable_data<T>(out_.x) + (first + i) * k_ + column, k_);
      }
    }
  }

  // x~ of a chunk
  Left<C> staged_x(int64_t worker, int64_t first, int64_t count) {
    const T* from = data<T>(o_.x) + first * k_;
    C* buffer = own_.at<C>(x_at_, worker);
    if (dropout_.active) return stage_dropped(layout_, dropout_, first, from, count, k_, buffer);
    return stage(layout_, from, k_, count, 1, k_, buffer);
  }

  // sums (rows, columns) += across (rows, count) * from (count, columns): count is the contraction. The sums lie panel by
  // panel, so that a block of them is contiguous.
  void outer(Multiplier<C>& multiplier, int64_t worker, const Left<C>& from, int64_t count, int64_t columns, Panels panels,
             int64_t rows, float* sums) {
    const int64_t padded = round_up(count, 32), ld = across_ld(count);
    panels.k = padded;
    C* panel = own_.at<C>(panel_at_, worker);
    for (int64_t column = 0; column < columns; column += panels.width) {
      const int64_t width = std::min(panels.width, columns - column);
      pack_contraction(layout_, from.at(0, column), count, width, panels, panel);
      for (int64_t i = 0; i < rows; i += rows_) {
        const Term<C> term{Left<C>::rows(own_.at<C>(across_at_, worker) + i * ld, ld), panel, padded};
        multiplier.sum(std::min(rows_, rows - i), width, panels.width, &term, 1, sums + column * rows + i * panels.width,
                       panels.width, true);
      }
    }
  }

  // Adds the workers' sums in order and rounds them to the adapters' type.
  void reduce() {
    if (needs_.diag) {
      std::vector<float> grad(adapter_.columns(), 0.0f);
      for (int64_t w = 0; w < workers_; w++) accumulate(own_.at<float>(grad_d_at_, w), grad.data(), adapter_.columns());
      for (float& value : grad) value *= float(o_.scaling);
      diagonal_gradient(adapter_, data<float>(*o_.diag), o_.diag->dim() == 3, grad.data(), mutable_data<float>(out_.diag));
    }
    with_parameter_type<T>(*o_.lora_A, [&](auto type) {
      using P = decltype(type);
      if (needs_products_) reduce_a<P>();
      if (needs_.lora_B) reduce_b<P>();
    });
  }

  float* add_up(int64_t at, int64_t offset, int64_t n) {
    float* total = own_.at<float>(at) + offset;
    for (int64_t w = 1; w < workers_; w++) accumulate(own_.at<float>(at, w) + offset, total, n);
    return total;
  }

  template <class P>
  void reduce_a() {
    const int64_t columns = adapter_.columns(), per_split = adapter_.experts * adapter_.rank;
    parallel(adapter_.stacked(), workers_ * k_, [&](int64_t i) {
      const bool router = i >= columns;
      if (router ? !needs_.router : !needs_.lora_A || adapter_.source[i] < 0) return;
      const int64_t row = router ? i - columns : i / adapter_.width * per_split + adapter_.source[i];
      P* to = mutable_data<P>(router ? out_.router : out_.lora_A) + row * k_;
      for (int64_t column = 0; column < k_; column += x_.width) {
        const int64_t n = std::min(x_.width, k_ - column);
        convert(add_up(grad_a_at_, column * grad_a_rows_ + i * x_.width, n), to + column, n);
      }
    });
  }

  template <class P>
  void reduce_b() {
    const int64_t rank = adapter_.rank;
    parallel(splits_ * dy_.count, workers_ * dy_.width * adapter_.width, [&](int64_t block) {
      const int64_t s = block / dy_.count, n = block % dy_.count * dy_.width, count = std::min(dy_.width, per_split_ - n);
      for (int64_t p = 0; p < adapter_.width; p++) {
        const int64_t source = adapter_.source[s * adapter_.width + p];
        if (source < 0) continue;
        const float* total = add_up(grad_b_at_, (block * grad_b_rows_ + p) * dy_.width, count);
        P* to = mutable_data<P>(out_.lora_B) +
                ((s * adapter_.experts + source / rank) * per_split_ + n) * rank + source % rank;
        for (int64_t i = 0; i < count; i++) to[i * rank] = from_float<P>(total[i]);
      }
    });
  }
};

}  // namespace

Gradients backward(const Tensor& grad_y, const Operands& o, const Tensor& low_rank, const Needs& needs) {
  const Adapter adapter = make_adapter(o);
  const Layout layout = layout_for(grad_y.scalar_type());
  Gradients out;
  const int64_t m = grad_y.size(0);
  // Columns that are not computed get a gradient of zero.
  const auto like = [&](const OptionalTensor& parameter) {
    return o.columns ? at::zeros(parameter->sizes(), parameter->options())
                     : at::empty(parameter->sizes(), parameter->options());
  };
  if (needs.x) out.x = empty_output({m, o.weight.size(1)}, grad_y.options());
  if (needs.lora_A) out.lora_A = like(o.lora_A);
  if (needs.lora_B) out.lora_B = like(o.lora_B);
  if (needs.diag) out.diag = at::empty(o.diag->sizes(), o.diag->options());
  if (needs.gates) out.gates = at::empty(o.gates->sizes(), o.gates->options());
  if (needs.router) out.router = at::empty(o.router->sizes(), o.router->options());
  with_type(grad_y, [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<T, BFloat16>)
      if (layout.engine != Engine::kFloat)
        return Backward<T, BFloat16>(grad_y, o, low_rank, needs, layout, adapter, out).run();
    Backward<T, float>(grad_y, o, low_rank, needs, layout, adapter, out).run();
  });
  return out;
}

}  // namespace fastmoe_lora
