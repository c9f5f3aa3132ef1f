// Copies between strided arrays, which is what the views of a network become where a kernel needs dense operands.
#ifndef EVOQUANT_STRIDED_H
#define EVOQUANT_STRIDED_H

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace eq {

struct StridedAxis {
  int64_t size, from, to;  // strides in elements of source and target
};

// out[...] = x[...] * factor over axes in any order. Axes are merged and ordered by the target once, so that the
// plan can be run many times.
class StridedCopy {
 public:
  StridedCopy(std::vector<StridedAxis> axes, float factor) : factor_(factor) {
    axes.erase(std::remove_if(axes.begin(), axes.end(), [](const StridedAxis& a) { return a.size == 1; }), axes.end());
    std::stable_sort(axes.begin(), axes.end(), [](const StridedAxis& a, const StridedAxis& b) { return a.to > b.to; });
    for (const StridedAxis& axis : axes) {
      if (!axes_.empty() && axes_.back().from == axis.from * axis.size && axes_.back().to == axis.to * axis.size) {
        axes_.back() = {axes_.back().size * axis.size, axis.from, axis.to};
      } else {
        axes_.push_back(axis);
      }
    }
    while (axes_.size() < 2) axes_.insert(axes_.begin(), {1, 0, 0});
    // The axis along which the source is dense comes next to the last, so that two axes make a transposition.
    for (size_t i = 0; i + 2 < axes_.size(); ++i) {
      if (axes_[i].from == 1 && axes_.back().from != 1) std::swap(axes_[i], axes_[axes_.size() - 2]);
    }
  }

  void run(const float* x, float* out) const { outer(0, x, out); }

 private:
  static constexpr int64_t kTile = 16;

  void outer(size_t depth, const float* x, float* out) const {
    if (depth + 2 == axes_.size()) return plane(x, out);
    const StridedAxis& axis = axes_[depth];
    for (int64_t i = 0; i < axis.size; ++i) outer(depth + 1, x + i * axis.from, out + i * axis.to);
  }

  void plane(const float* x, float* out) const {
    const StridedAxis rows = axes_[axes_.size() - 2], columns = axes_.back();
    if (columns.from == 1 && columns.to == 1) {
      for (int64_t r = 0; r < rows.size; ++r) dense(x + r * rows.from, out + r * rows.to, columns.size);
      return;
    }
    if (rows.from == 1 && columns.to == 1 && rows.to == columns.size && columns.size >= 2 && columns.size <= 4) {
      const auto interleave = columns.size == 2   ? &StridedCopy::interleaved<2>
                              : columns.size == 3 ? &StridedCopy::interleaved<3>
                                                  : &StridedCopy::interleaved<4>;
      return (this->*interleave)(x, columns.from, rows.size, out);
    }
    for (int64_t r0 = 0; r0 < rows.size; r0 += kTile) {
      const int64_t r1 = std::min(r0 + kTile, rows.size);
      for (int64_t c = 0; c < columns.size; ++c) {
        const float* from = x + c * columns.from;
        float* to = out + c * columns.to;
        for (int64_t r = r0; r < r1; ++r) to[r * rows.to] = from[r * rows.from] * factor_;
      }
    }
  }

  // The planes of an image become pixels.
  template <int N>
  void interleaved(const float* __restrict x, int64_t plane, int64_t count, float* __restrict out) const {
    for (int64_t i = 0; i < count; ++i) {
      for (int c = 0; c < N; ++c) out[i * N + c] = x[c * plane + i] * factor_;
    }
  }

  // Short rows are the usual case (one head of one token), so a call for each would cost more than the copy.
  void dense(const float* x, float* out, int64_t count) const {
    if (factor_ == 1.0f && count >= kLong) {
      std::memcpy(out, x, (size_t)count * sizeof(float));
      return;
    }
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) *reinterpret_cast<Four*>(out + i) = *reinterpret_cast<const Four*>(x + i) * factor_;
    for (; i < count; ++i) out[i] = x[i] * factor_;
  }

  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  static constexpr int64_t kLong = 32;

  std::vector<StridedAxis> axes_;
  float factor_;
};

}  // namespace eq

#endif
