#include "attention.h"

#include <cmath>
#include <limits>

#include "exp.h"
#include "stage.h"
#include "transpose.h"

namespace fastmoe_lora {
namespace {

using T = BFloat16;  // the storage type

// Rows of p = softmax(scale * s) and of the gradient of s, p (dp - sum of p dp) * scale, rounded to the compute type. What
// s holds is lost.
template <class C>
FASTMOE_LORA_INLINE void gradient_rows(int64_t rows, int64_t n, float scale, float* __restrict s, const float* dp,
                                       int64_t ld_s, C* p, C* ds, int64_t ld) {
  for (int64_t i = 0; i < rows; i++, s += ld_s, dp += ld_s, p += ld, ds += ld) {
    float largest = -std::numeric_limits<float>::infinity(), total = 0, mean = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < n; j++) largest = s[j] > largest ? s[j] : largest;
#pragma omp simd reduction(+ : total, mean)
    for (int64_t j = 0; j < n; j++) {
      s[j] = exp_of_negative((s[j] - largest) * scale);
      total += s[j];
      mean += s[j] * dp[j];
    }
    const float inverse = 1 / total;
    mean *= inverse;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
      const float probability = s[j] * inverse;
      p[j] = from_float<C>(probability);
      ds[j] = from_float<C>(probability * (dp[j] - mean) * scale);
    }
  }
}

FASTMOE_LORA_DISPATCHED void gradient(int64_t rows, int64_t n, float scale, float* s, const float* dp, int64_t ld_s,
                                      BFloat16* p, BFloat16* ds, int64_t ld) {
  gradient_rows(rows, n, scale, s, dp, ld_s, p, ds, ld);
}
FASTMOE_LORA_DISPATCHED void gradient(int64_t rows, int64_t n, float scale, float* s, const float* dp, int64_t ld_s,
                                      float* p, float* ds, int64_t ld) {
  gradient_rows(rows, n, scale, s, dp, ld_s, p, ds, ld);
}

// One worker's way through its heads. The queries of a head are taken in parts, for which p and the gradient of the scores
// are held as a whole, since keys and values contract over them.
template <class C>
class Heads {
 public:
  Heads(Layout layout, int64_t tokens, int64_t heads, int64_t depth)
      : layout_(layout), n_(tokens), depth_(depth), ld_qkv_(3 * heads * depth), ld_y_(heads * depth),
        tokens_(layout.panels(n_, depth_)), depths_(layout.panels(depth_, n_)) {
    constexpr int64_t kBytes = 256 << 10, kUnit = 96;  // whole blocks of rows, whole steps
    ld_ = layout.padded(n_), ld_s_ = tokens_.count * tokens_.width;
    part_ = std::min(round_up(n_, kUnit), std::max(kUnit, kBytes / (ld_ * int64_t(sizeof(C))) / kUnit * kUnit));
    const int64_t padded_depth = layout.padded(depth_), rows = round_up(depth_, 16);
    keys_at_ = own_.reserve<C>(tokens_.elements()), values_at_ = own_.reserve<C>(tokens_.elements());
    keys_across_at_ = own_.reserve<C>(depths_.elements());
    q_at_ = own_.reserve<C>(part_ * padded_depth), dy_at_ = own_.reserve<C>(part_ * padded_depth);
    scores_at_ = own_.reserve<float>(layout.rows() * ld_s_), dp_at_ = own_.reserve<float>(layout.rows() * ld_s_);
    p_at_ = own_.reserve<C>(part_ * ld_), ds_at_ = own_.reserve<C>(part_ * ld_);
    panel_at_ = own_.reserve<C>(part_ * tokens_.width);
    across_at_ = own_.reserve<C>(std::max(rows * part_, round_up(n_, 16) * round_up(depth_, 32)));
    dk_at_ = own_.reserve<float>(rows * ld_s_), dv_at_ = own_.reserve<float>(rows * ld_s_);
    scratch_at_ = own_.reserve<float>(Multiplier<C>::kScratch);
    own_.take();
    std::fill_n(own_.at<C>(p_at_), part_ * ld_, C(0));  // the padding stays zero
    std::fill_n(own_.at<C>(ds_at_), part_ * ld_, C(0));
  }

  // q, dy and dq are the first token's; key and value, and their gradients, follow at the same distance.
  void head(Multiplier<C>& multiplier, const T* q, const T* dy, T* dq) {
    const T *key = q + ld_y_, *value = key + ld_y_;
    pack(key, tokens_, true, own_.at<C>(keys_at_));
    pack(value, tokens_, true, own_.at<C>(values_at_));
    pack(key, depths_, false, own_.at<C>(keys_across_at_));
    for (int64_t first = 0; first < n_; first += part_)
      part(multiplier, first, q + first * ld_qkv_, dy + first * ld_y_, dq + first * ld_qkv_);
    write(own_.at<float>(dk_at_), dq + ld_y_);
    write(own_.at<float>(dv_at_), dq + 2 * ld_y_);
  }

  float* scratch() const { return own_.at<float>(scratch_at_); }

 private:
  Layout layout_;
  int64_t n_, depth_, ld_qkv_, ld_y_;  // tokens, numbers of a head, distance of tokens in qkv and in y
  Panels tokens_, depths_;             // with these as columns, the others as contraction
  int64_t ld_, ld_s_, part_;
  Scratch own_;
  int64_t keys_at_, values_at_, keys_across_at_, q_at_, dy_at_, scores_at_, dp_at_, p_at_, ds_at_, panel_at_, across_at_,
      dk_at_, dv_at_, scratch_at_;

  void part(Multiplier<C>& multiplier, int64_t first, const T* q_rows, const T* dy_rows, T* dq) {
    const int64_t count = std::min(part_, n_ - first);
    const auto q = stage(layout_, q_rows, ld_qkv_, count, 1, depth_, own_.at<C>(q_at_));
    const auto dy = stage(layout_, dy_rows, ld_y_, count, 1, depth_, own_.at<C>(dy_at_));
    float *scores = own_.at<float>(scores_at_), *dp = own_.at<float>(dp_at_);
    for (int64_t i = 0; i < count; i += layout_.rows()) {
      const int64_t rows = std::min(layout_.rows(), count - i);
      C *p = own_.at<C>(p_at_) + i * ld_, *ds = own_.at<C>(ds_at_) + i * ld_;
      const Term<C> q_k{q.at(i, 0), own_.at<C>(keys_at_), tokens_.k}, dy_v{dy.at(i, 0), own_.at<C>(values_at_), tokens_.k};
      multiplier.sum(rows, n_, tokens_.width, &q_k, 1, scores, ld_s_, false);
      multiplier.sum(rows, n_, tokens_.width, &dy_v, 1, dp, ld_s_, false);
      gradient(rows, n_, 1 / std::sqrt(float(depth_)), scores, dp, ld_s_, p, ds, ld_);
      const Term<C> ds_k{Left<C>::rows(ds, ld_), own_.at<C>(keys_across_at_), depths_.k};
      multiplier.linear(rows, depth_, depths_.width, &ds_k, 1, nullptr, 0, nullptr, dq + i * ld_qkv_, ld_qkv_);
    }
    contract(multiplier, q_rows, ld_qkv_, q, own_.at<C>(ds_at_), count, own_.at<float>(dk_at_), first > 0);
    contract(multiplier, dy_rows, ld_y_, dy, own_.at<C>(p_at_), count, own_.at<float>(dv_at_), first > 0);
  }

  // sums (D, N) = (add ? sums : 0) + left (count, D)^T right (count, N). `staged` is left as the engine reads it: in rows,
  // where that is in another type.
  void contract(Multiplier<C>& multiplier, const T* left, int64_t ld, const Left<C>& staged, const C* right, int64_t count,
                float* sums, bool add) {
    C *across = own_.at<C>(across_at_), *panel = own_.at<C>(panel_at_);
    const int64_t ld_across = round_up(count, 32);
    if constexpr (std::is_same_v<T, C>)
      transpose(left, ld, count, depth_, across, ld_across);
    else
      transpose(staged.data, staged.ld, count, depth_, across, ld_across);
    Panels panels = tokens_;
    panels.k = ld_across;
    for (int64_t column = 0; column < n_; column += panels.width) {
      const int64_t columns = std::min(panels.width, n_ - column);
      pack_contraction(layout_, Left<C>::rows(right, ld_).at(0, column), count, columns, panels, panel);
      for (int64_t i = 0; i < depth_; i += layout_.rows()) {
        const Term<C> term{Left<C>::rows(across + i * ld_across, ld_across), panel, panels.k};
        multiplier.sum(std::min(layout_.rows(), depth_ - i), columns, panels.width, &term, 1, sums + i * ld_s_ + column,
                       ld_s_, add);
      }
    }
  }

  // to (N, D) = sums (D, N) transposed. The keys are done with: their place takes the rounded sums.
  void write(const float* sums, T* to) {
    C *rounded = own_.at<C>(keys_at_), *across = own_.at<C>(across_at_);
    const int64_t ld = round_up(depth_, 32);
    for (int64_t i = 0; i < depth_; i++) convert(sums + i * ld_s_, rounded + i * ld_s_, n_);
    transpose(rounded, ld_s_, depth_, n_, across, ld);
    for (int64_t i = 0; i < n_; i++) convert(across + i * ld, to + i * ld_qkv_, depth_);
  }

  // Tokens as the columns of a right operand, or as its contraction.
  void pack(const T* from, const Panels& panels, bool as_columns, C* to) {
    std::vector<const T*> rows(n_);
    for (int64_t panel = 0; panel < panels.count; panel++, to += panels.panel_elements()) {
      const int64_t first = panel * panels.width, columns = std::min(panels.width, (as_columns ? n_ : depth_) - first);
      for (int64_t i = 0; i < n_; i++) rows[i] = from + i * ld_qkv_ + (as_columns ? 0 : first);
      if (as_columns)
        pack_transposed(rows.data() + first, columns, depth_, panels, to);
      else
        pack_rows(rows.data(), columns, n_, panels, to);
    }
  }
};

template <class C>
void run(const Tensor& grad_y, const Tensor& qkv, int64_t heads, const Tensor& grad_qkv) {
  const int64_t tokens = qkv.size(1), width = qkv.size(2) / 3, depth = width / heads, all = qkv.size(0) * heads;
  const Layout layout = layout_for(at::kBFloat16);
  const int64_t workers = std::min(all, worthwhile_threads(all * tokens, tokens, depth));
  parallel(workers, kWorthwhile, [&](int64_t worker) {
    Heads<C> own(layout, tokens, heads, depth);
    Multiplier<C> multiplier(layout, own.scratch());
    const Range range = share(all, worker, workers);
    for (int64_t i = range.begin; i < range.end; i++) {
      const int64_t token = i / heads * tokens, column = i % heads * depth;
      own.head(multiplier, data<T>(qkv) + token * 3 * width + column, data<T>(grad_y) + token * width + column,
               mutable_data<T>(grad_qkv) + token * 3 * width + column);
    }
  });
}

}  // namespace

Tensor attention_backward(const Tensor& grad_y, const Tensor& qkv, int64_t heads) {
  const Tensor grad_qkv = empty_output(qkv.sizes(), qkv.options());
  if (layout_for(at::kBFloat16).engine == Engine::kFloat)
    run<float>(grad_y, qkv, heads, grad_qkv);
  else
    run<BFloat16>(grad_y, qkv, heads, grad_qkv);
  return grad_qkv;
}

}  // namespace fastmoe_lora
