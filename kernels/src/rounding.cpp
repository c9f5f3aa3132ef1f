// Rounding of weights one column at a time, the error of each made good by others.
//
// Rows are independent. Where each column moves all that are left, a few rows lie side by side in a buffer
// [column][lane], and the inner loop runs over lanes with one number of the factor for all of them. Where few columns
// move, a row is alone, and the loop runs over columns.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "isa.h"

namespace {

using eq::GridRow;
using eq::kLanes;
constexpr int kBlock = 16;  // columns whose errors go together to the columns behind them

using Lanes = float[kLanes];

// A block of rows of a matrix (rows, columns), transposed; lanes without a row hold `empty`.
void load(const float* matrix, int rows, int columns, float empty, std::vector<float>& buffer) {
  buffer.assign((size_t)columns * kLanes, empty);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) buffer[(size_t)c * kLanes + r] = matrix[(ptrdiff_t)r * columns + c];
}

void store(const std::vector<float>& buffer, int rows, int columns, float* matrix) {
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) matrix[(ptrdiff_t)r * columns + c] = buffer[(size_t)c * kLanes + r];
}

// One row, padded to whole lanes.
void load_row(const float* row, int columns, float empty, std::vector<float>& buffer) {
  buffer.assign(((size_t)columns + kLanes - 1) / kLanes * kLanes, empty);
  std::copy_n(row, columns, buffer.data());
}

// The points of a block of rows side by side, or of one row.
class Grid {
 public:
  explicit Grid(const eq_rounding_points& points) : points_(points) {
    for (int i = 1; i < points.table_size; ++i) middles_.push_back((points.table[i - 1] + points.table[i]) / 2.0f);
  }

  template <typename Load>
  void at(size_t offset, Load load) {
    load(points_.scale + offset, 1.0f, scale_);
    if (!points_.lowers) return;
    load(points_.lowers + offset, 0.0f, lower_);
    load(points_.uppers + offset, 0.0f, upper_);
  }

  // From some element of the block on.
  GridRow from(size_t element) const {
    const bool has_bounds = points_.lowers;
    return {scale_.data() + element, points_.table, middles_.data(), points_.table_size, points_.lower, points_.upper,
            has_bounds ? lower_.data() + element : nullptr, has_bounds ? upper_.data() + element : nullptr};
  }

 private:
  const eq_rounding_points& points_;
  std::vector<float> middles_, scale_, lower_, upper_;
};

int check(const eq_rounding_points& points, int64_t batches, int64_t groups, int rows, int columns, const char* who) {
  if (batches < 1 || groups < 1 || batches % groups != 0 || rows < 1 || columns < 1)
    return eq::fail("%s: expected whole repetitions of %lld groups and at least one row and column, but got %lld batches of (%d, %d)",
                    who, (long long)groups, (long long)batches, rows, columns);
  if (!points.scale || (points.table && points.table_size < 1) || (!points.lowers != !points.uppers))
    return eq::fail("%s: expected scales, and a table with points or both bounds", who);
  return 0;
}

// What the values of bins cost with one level for each run of neighbouring bins.
class RunCosts {
 public:
  RunCosts(const double* mass, const double* first, const double* second, int steps)
      : mass_(sums(mass, steps)), first_(sums(first, steps)), second_(sums(second, steps)) {}

  int level(int from, int to) const {
    const double weight = mass_[to + 1] - mass_[from];
    if (!(weight > 0.0)) return (from + to) / 2;
    return std::min(std::max((int)std::nearbyint((first_[to + 1] - first_[from]) / weight), from), to);
  }

  double operator()(int from, int to) const {
    const double at = level(from, to), weight = mass_[to + 1] - mass_[from];
    return std::max(0.0, second_[to + 1] - second_[from] - 2 * at * (first_[to + 1] - first_[from]) + at * at * weight);
  }

 private:
  static std::vector<double> sums(const double* values, int steps) {
    std::vector<double> total((size_t)steps + 1);
    for (int i = 0; i < steps; ++i) total[(size_t)i + 1] = total[(size_t)i] + values[i];
    return total;
  }

  std::vector<double> mass_, first_, second_;
};

}  // namespace

extern "C" {

int eq_best_levels(const double* mass, const double* first, const double* second, int steps, int count, int32_t* levels,
                   double* cost) {
  if (count < 1 || count > steps) return eq::fail("best_levels: expected 1 to %d levels, but got %d", steps, count);
  const RunCosts costs(mass, first, second, steps);
  const size_t size = (size_t)steps;
  std::vector<double> of_run(size * size), least(size), next(size);  // of_run[to * steps + from]
  for (int to = 0; to < steps; ++to)
    for (int from = 0; from <= to; ++from) of_run[(size_t)to * size + (size_t)from] = costs(from, to);
  for (int to = 0; to < steps; ++to) least[(size_t)to] = of_run[(size_t)to * size];
  // starts[k * steps + to]: where the last of k + 2 runs that end at `to` begins.
  std::vector<int> starts((size_t)(count - 1) * size, 0);
  for (int k = 0; k + 1 < count; ++k) {
    for (int to = 0; to < steps; ++to) {
      const double* run = of_run.data() + (size_t)to * size;
      double best = std::numeric_limits<double>::infinity();
      int start = 0;
      for (int from = k + 1; from <= to; ++from) {
        const double tried = least[(size_t)from - 1] + run[from];
        if (tried < best) best = tried, start = from;
      }
      next[(size_t)to] = best;
      starts[(size_t)k * size + (size_t)to] = start;
    }
    std::swap(least, next);
  }
  int to = steps - 1;
  for (int k = count - 2; k >= 0; --k) {
    const int from = starts[(size_t)k * size + (size_t)to];
    levels[k + 1] = costs.level(from, to);
    to = from - 1;
  }
  levels[0] = costs.level(0, to);
  *cost = least[size - 1];
  return 0;
}

int eq_round_compensated(int isa, float* weight, int64_t batches, int rows, int columns, const float* factors,
                         const eq_rounding_points* points, int64_t groups) {
  const eq::Isa* found = eq::find_isa(isa);
  if (!found || check(*points, batches, groups, rows, columns, "round_compensated") != 0) return -1;
  Grid grid(*points);
  std::vector<float> left;
  for (int64_t b = 0; b < batches; ++b)
    for (int first = 0; first < rows; first += kLanes) {
      const int count = std::min(kLanes, rows - first);
      float* block = weight + (b * rows + first) * columns;
      load(block, count, columns, 0.0f, left);
      grid.at((size_t)((b % groups) * rows + first) * columns,
              [&](const float* from, float empty, std::vector<float>& to) { load(from, count, columns, empty, to); });
      for (int start = 0; start < columns; start += kBlock) {
        const int stop = std::min(start + kBlock, columns);
        Lanes changes[kBlock];
        for (int c = start; c < stop; ++c) {
          const float* factor = factors + (b * columns + c) * columns;
          float* value = left.data() + (size_t)c * kLanes;
          Lanes rounded;
          found->nearest_points(value, kLanes, grid.from((size_t)c * kLanes), rounded);
          for (int l = 0; l < kLanes; ++l) changes[c - start][l] = (rounded[l] - value[l]) / factor[c];
          std::copy_n(rounded, kLanes, value);
          found->add_outers(changes[c - start], 1, factor + c + 1, columns, stop - c - 1, value + kLanes);
        }
        found->add_outers(changes[0], stop - start, factors + (b * columns + start) * columns + stop, columns, columns - stop,
                          left.data() + (size_t)stop * kLanes);
      }
      store(left, count, columns, block);
    }
  return 0;
}

int eq_revise_rounding(int isa, float* weight, const float* gradient, int64_t groups, int rows, int columns,
                       const float* hessian, const eq_rounding_points* points, int sweeps) {
  const eq::Isa* found = eq::find_isa(isa);
  if (!found || check(*points, groups, groups, rows, columns, "revise_rounding") != 0) return -1;
  Grid grid(*points);
  std::vector<float> values, slope, per_step, diagonal((size_t)columns);
  for (int64_t g = 0; g < groups; ++g) {
    const float* matrix = hessian + g * columns * columns;
    for (int c = 0; c < columns; ++c) {
      const float power = matrix[(ptrdiff_t)c * columns + c];
      diagonal[(size_t)c] = power > 0.0f ? 1.0f / std::max(power, std::numeric_limits<float>::min()) : 0.0f;
    }
    load_row(diagonal.data(), columns, 0.0f, per_step);
    for (int r = 0; r < rows; ++r) {
      const size_t offset = (size_t)(g * rows + r) * columns;
      load_row(weight + offset, columns, 0.0f, values);
      load_row(gradient + offset, columns, 0.0f, slope);
      grid.at(offset, [&](const float* from, float empty, std::vector<float>& to) { load_row(from, columns, empty, to); });
      for (int sweep = 0; sweep < sweeps; ++sweep)
        if (!found->revise_row(values.data(), slope.data(), matrix, per_step.data(), columns, grid.from(0))) break;
      std::copy_n(values.data(), columns, weight + offset);
    }
  }
  return 0;
}

}  // extern "C"
