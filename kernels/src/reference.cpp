// The definition of every integer operation: plain loops, no intrinsics, one thread.
#include <cmath>
#include <cstdint>

#include "evoquant/kernels.h"

namespace {

template <class A, class W, class Acc>
void gemm(const A* a, const W* w, int m, int n, int k, Acc* out) {
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      Acc sum = 0;
      for (int p = 0; p < k; ++p) sum += static_cast<Acc>(a[(ptrdiff_t)i * k + p]) * static_cast<Acc>(w[(ptrdiff_t)j * k + p]);
      out[(ptrdiff_t)i * n + j] = sum;
    }
}

template <class A, class W, class Acc>
Acc conv_at(const A* x, const W* w, int h, int width, const eq_contraction_spec& s, A padding, int oy, int ox, int oc) {
  const int cg = s.in_channels / s.groups;
  const int first = oc / (s.out_channels / s.groups) * cg;
  Acc sum = 0;
  for (int ky = 0; ky < s.kernel_h; ++ky)
    for (int kx = 0; kx < s.kernel_w; ++kx)
      for (int c = 0; c < cg; ++c) {
        const int y = oy * s.stride_h - s.pad_h + ky * s.dilation_h;
        const int z = ox * s.stride_w - s.pad_w + kx * s.dilation_w;
        const bool inside = y >= 0 && y < h && z >= 0 && z < width;
        const A value = inside ? x[((ptrdiff_t)y * width + z) * s.in_channels + first + c] : padding;
        const W weight = w[(((ptrdiff_t)oc * s.kernel_h + ky) * s.kernel_w + kx) * cg + c];
        sum += static_cast<Acc>(value) * static_cast<Acc>(weight);
      }
  return sum;
}

template <class A, class W, class Acc>
void conv(const A* x, const W* w, int h, int width, const eq_contraction_spec& s, A padding, Acc* out) {
  const int out_h = (h + 2 * s.pad_h - s.dilation_h * (s.kernel_h - 1) - 1) / s.stride_h + 1;
  const int out_w = (width + 2 * s.pad_w - s.dilation_w * (s.kernel_w - 1) - 1) / s.stride_w + 1;
  for (int oy = 0; oy < out_h; ++oy)
    for (int ox = 0; ox < out_w; ++ox)
      for (int oc = 0; oc < s.out_channels; ++oc) *out++ = conv_at<A, W, Acc>(x, w, h, width, s, padding, oy, ox, oc);
}

// The nearest of 0 and the powers of two from 1 down; the decision lies in the middle, ties go up, half of the
// smallest power becomes 0.
int32_t quantize_log2(float x, const eq_quantizer& q) {
  const int32_t top = 1 << (q.log2_levels - 1);
  const float steps = x * (1.0f / q.scale) * (float)top;
  if (!(steps > 0.5f)) return 0;
  int32_t level = 1;
  while (level < top && steps >= 1.5f * (float)level) level *= 2;
  return level;
}

int32_t quantize_uniform(float x, const eq_quantizer& q) {
  const float low = (float)(q.q_min - q.zero_point), high = (float)(q.q_max - q.zero_point);
  float y = x * (1.0f / q.scale);
  y = y > low ? y : low;
  y = y < high ? y : high;
  const int32_t code = (int32_t)std::nearbyint(y) + q.zero_point;
  return q.level_count > 0 ? q.nearest[code] : code;
}

}  // namespace

extern "C" {

void eq_ref_gemm_u8(const uint8_t* a, const int8_t* w, int m, int n, int k, int32_t* out) { gemm(a, w, m, n, k, out); }

void eq_ref_gemm_s16(const int16_t* a, const int8_t* w, int m, int n, int k, int32_t* out) { gemm(a, w, m, n, k, out); }

void eq_ref_gemm_float(const float* a, const float* w, int m, int n, int k, float* out) { gemm(a, w, m, n, k, out); }

void eq_ref_conv_u8(const uint8_t* x, const int8_t* w, int h, int width, const eq_contraction_spec* spec,
                    int zero_point, int32_t* out) {
  conv(x, w, h, width, *spec, (uint8_t)zero_point, out);
}

void eq_ref_conv_float(const float* x, const float* w, int h, int width, const eq_contraction_spec* spec, float* out) {
  conv(x, w, h, width, *spec, 0.0f, out);
}

void eq_ref_quantize(const float* x, size_t count, const eq_quantizer* quantizer, int32_t* out) {
  for (size_t i = 0; i < count; ++i)
    out[i] = quantizer->log2_levels > 0 ? quantize_log2(x[i], *quantizer) : quantize_uniform(x[i], *quantizer);
}

// out = (acc - correction) * scale + bias with one rounding (a fused multiply-add).
void eq_ref_epilogue(const int32_t* acc, int m, int n, const int32_t* correction, const float* scale,
                     const float* bias, float* out) {
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j)
      out[(ptrdiff_t)i * n + j] =
          std::fma((float)(acc[(ptrdiff_t)i * n + j] - correction[j]), scale[j], bias ? bias[j] : 0.0f);
}

// Saturating rounding doubling high multiply by a multiplier in [2^30, 2^31), then a rounding shift: right by -shift
// (half away from zero), or left before the multiplication when shift > 0.
int32_t eq_ref_requantize(int32_t acc, int32_t multiplier, int shift) {
  int64_t value = acc;
  if (shift > 0) {
    value *= (int64_t)1 << shift;
    if (value > INT32_MAX) value = INT32_MAX;
    if (value < INT32_MIN) value = INT32_MIN;
  }
  const int64_t product = value * multiplier;
  const int64_t nudge = product >= 0 ? (int64_t)1 << 30 : 1 - ((int64_t)1 << 30);
  int64_t high = (product + nudge) / ((int64_t)1 << 31);
  if (high > INT32_MAX) high = INT32_MAX;
  if (shift >= 0) return (int32_t)high;
  const int right = -shift;
  const int64_t mask = ((int64_t)1 << right) - 1;
  const int64_t remainder = high & mask;
  const int64_t threshold = (mask >> 1) + (high < 0 ? 1 : 0);
  return (int32_t)((high >> right) + (remainder > threshold ? 1 : 0));
}

int32_t eq_ref_requantize_shift(int32_t acc, int shift) {
  if (shift <= 0) return acc;
  return (int32_t)(((int64_t)acc + ((int64_t)1 << (shift - 1))) >> shift);
}

}  // extern "C"
