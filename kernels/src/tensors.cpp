// Operations on whole tensors, cut into tasks of whole cache lines.
#include <algorithm>
#include <cstring>
#include <limits>

#include "contraction.h"
#include "threads.h"

using namespace eq;

namespace {

constexpr size_t kTask = 16 * 1024;

template <class Body>
void by_range(size_t count, const Body& body) {
  const int tasks = (int)std::max<size_t>(1, std::min<size_t>((size_t)thread_count(), count / kTask));
  parallel_for(tasks, [&](int task) {
    const size_t from = count * task / tasks / 64 * 64;
    const size_t to = task + 1 == tasks ? count : count * (task + 1) / tasks / 64 * 64;
    body(from, to - from);
  });
}

template <class Body>
void by_rows(size_t rows, int columns, const Body& body) {
  const size_t count = rows * (size_t)columns;
  const int tasks = (int)std::max<size_t>(1, std::min({(size_t)thread_count(), count / kTask, rows}));
  parallel_for(tasks, [&](int task) {
    const size_t from = rows * task / tasks, to = rows * (task + 1) / tasks;
    body(from * columns, to - from);
  });
}

#define EQ_FIND(name)             \
  const Isa* name = find_isa(isa); \
  if (!name) return -1

}  // namespace

extern "C" {

int eq_quantize_u8(int isa, const float* x, size_t count, const eq_quantizer* q, uint8_t* out) {
  EQ_FIND(found);
  const QuantArgs args = quant_args(*q);
  by_range(count, [&](size_t at, size_t n) { found->quantize_u8(x + at, n, args, out + at); });
  return 0;
}

int eq_quantize_s16(int isa, const float* x, size_t count, const eq_quantizer* q, int16_t* out) {
  EQ_FIND(found);
  const QuantArgs args = quant_args(*q);
  by_range(count, [&](size_t at, size_t n) { found->quantize_s16(x + at, n, args, out + at); });
  return 0;
}

int eq_fake_quantize(int isa, const float* x, size_t count, const eq_quantizer* q, float* out) {
  EQ_FIND(found);
  if (check_levels(*q, "fake_quantize") != 0) return -1;
  const QuantArgs args = quant_args(*q);
  const float unit = unit_of(*q);
  constexpr size_t kValues = 1024;
  alignas(64) float integers[kValues];
  for (size_t at = 0; at < count; at += kValues) {
    const size_t n = std::min(kValues, count - at);
    found->quantize_f32(x + at, n, args, integers);
    for (size_t i = 0; i < n; ++i) out[at + i] = x[at + i] == x[at + i] ? integers[i] * unit : x[at + i];
  }
  return 0;
}

int eq_dequantize_u8(int isa, const uint8_t* codes, size_t count, const eq_quantizer* q, float* out) {
  EQ_FIND(found);
  by_range(count, [&](size_t at, size_t n) { found->dequantize_u8(codes + at, n, q->scale, q->zero_point, out + at); });
  return 0;
}

int eq_requantize(int isa, const int32_t* acc, int rows, int channels, const int32_t* bias, const int32_t* multiplier,
                  const int8_t* shift, const eq_quantizer* to, const uint8_t* table, uint8_t* out) {
  EQ_FIND(found);
  const QuantArgs args = quant_args(*to);
  by_rows((size_t)rows, channels, [&](size_t at, size_t n) {
    found->requantize(acc + at, (int)n, channels, bias, multiplier, shift, args, table, out + at);
  });
  return 0;
}

int eq_requantize_shift(int isa, const int32_t* acc, int rows, int channels, const int32_t* bias, const int8_t* shift,
                        const eq_quantizer* to, const uint8_t* table, uint8_t* out) {
  EQ_FIND(found);
  const QuantArgs args = quant_args(*to);
  by_rows((size_t)rows, channels, [&](size_t at, size_t n) {
    found->requantize_shift(acc + at, (int)n, channels, bias, shift, args, table, out + at);
  });
  return 0;
}

int eq_lookup_u8(int isa, const uint8_t* codes, size_t count, const uint8_t* table, uint8_t* out) {
  EQ_FIND(found);
  by_range(count, [&](size_t at, size_t n) { found->lookup(codes + at, n, table, out + at); });
  return 0;
}

int eq_add_u8(int isa, const uint8_t* a, const eq_quantizer* qa, const uint8_t* b, const eq_quantizer* qb,
              size_t count, const eq_quantizer* to, uint8_t* out) {
  EQ_FIND(found);
  const QuantArgs args = quant_args(*to);
  by_range(count, [&](size_t at, size_t n) {
    found->add_u8(a + at, qa->scale, qa->zero_point, b + at, qb->scale, qb->zero_point, n, args, out + at);
  });
  return 0;
}

int eq_activate(int isa, int activation, const float* x, size_t count, float* out) {
  EQ_FIND(found);
  if (activation < 0 || activation >= EQ_ACTIVATION_COUNT) return fail("activate: unknown activation %d", activation);
  by_range(count, [&](size_t at, size_t n) { found->activate(activation, x + at, n, out + at); });
  return 0;
}

int eq_add(int isa, const float* a, const float* b, size_t count, float* out) {
  EQ_FIND(found);
  by_range(count, [&](size_t at, size_t n) { found->add(a + at, b + at, n, out + at); });
  return 0;
}

int eq_mul(int isa, const float* a, const float* b, size_t count, float* out) {
  EQ_FIND(found);
  by_range(count, [&](size_t at, size_t n) { found->mul(a + at, b + at, n, out + at); });
  return 0;
}

int eq_scale_rows(int isa, const float* x, size_t rows, int channels, const float* scale, const float* shift, float* out) {
  EQ_FIND(found);
  by_rows(rows, channels, [&](size_t at, size_t n) { found->scale_rows(x + at, n, channels, scale, shift, out + at); });
  return 0;
}

int eq_softmax(int isa, const float* x, size_t rows, int columns, float* out) {
  EQ_FIND(found);
  if (columns < 1) return fail("softmax: rows must not be empty");
  by_rows(rows, columns, [&](size_t at, size_t n) { found->softmax(x + at, n, columns, out + at); });
  return 0;
}

int eq_layer_norm(int isa, const float* x, size_t rows, int columns, const float* weight, const float* bias,
                  float epsilon, float* out) {
  EQ_FIND(found);
  if (columns < 1) return fail("layer_norm: rows must not be empty");
  by_rows(rows, columns, [&](size_t at, size_t n) { found->layer_norm(x + at, n, columns, weight, bias, epsilon, out + at); });
  return 0;
}

int eq_group_norm(int isa, const float* x, size_t rows, int columns, int groups, const float* weight, const float* bias,
                  float epsilon, float* out) {
  EQ_FIND(found);
  if (rows < 1 || columns < 1) return fail("group_norm: expected at least one row and one column");
  if (groups < 1 || columns % groups) return fail("group_norm: expected groups that divide %d columns, but got %d", columns, groups);
  found->group_norm(x, rows, columns, groups, weight, bias, epsilon, out);
  return 0;
}

int eq_mean_rows(int isa, const float* x, int rows, int channels, float* out) {
  EQ_FIND(found);
  if (rows < 1) return fail("mean_rows: expected at least one row");
  found->mean_rows(x, rows, channels, out);
  return 0;
}

int eq_max_pool(int isa, const float* x, int h, int w, int channels, int kernel, int stride, int pad, float* out) {
  EQ_FIND(found);
  if (kernel < 1 || stride < 1 || pad < 0 || pad >= kernel) return fail("max_pool: kernel and stride must be positive and pad smaller than kernel");
  const int out_h = (h + 2 * pad - kernel) / stride + 1, out_w = (w + 2 * pad - kernel) / stride + 1;
  for (int oy = 0; oy < out_h; ++oy)
    for (int ox = 0; ox < out_w; ++ox, out += channels) {
      std::fill(out, out + channels, -std::numeric_limits<float>::infinity());
      for (int y = std::max(0, oy * stride - pad); y < std::min(h, oy * stride - pad + kernel); ++y)
        for (int z = std::max(0, ox * stride - pad); z < std::min(w, ox * stride - pad + kernel); ++z) {
          const float* pixel = x + ((ptrdiff_t)y * w + z) * channels;
          for (int c = 0; c < channels; ++c) out[c] = pixel[c] > out[c] ? pixel[c] : out[c];
        }
    }
  return 0;
}

double eq_peak_macs(int isa, const char* format, int depth, int64_t rounds) {
  const Isa* found = find_isa(isa);
  if (!found) return -1.0;
  for (const Format* f : {found->f32, found->u8, found->u8_full, found->s16})
    if (f && std::strcmp(f->name, format) == 0) return f->peak(depth, rounds);
  fail("peak: %s has no format %s", eq_isa_name(isa), format);
  return -1.0;
}

}  // extern "C"
