// Depthwise convolution. Codes are multiplied as binary32 numbers: every product and sum is an integer below 2^24, so
// the fused multiply-adds are exact and give the integers of the reference.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "contraction.h"
#include "threads.h"

struct eq_depthwise {
  const eq::Isa* isa;
  eq_contraction_spec spec;
  bool quantized;
  int padded;          // channels, to whole panels
  eq::Bytes codes;     // int8 as given, or float
  eq::Bytes weights;   // float [tap][padded]
  eq::Bytes scales, bias;
};

using namespace eq;

namespace {

constexpr int kExact = 1 << 24;
constexpr int kMostRows = 64;

const float* decoded_weights(const eq_depthwise& d) { return d.weights.as<float>(); }

// An image of real values, or of codes.
struct Image {
  const float* x;
  const uint8_t* codes;
  int h, w;
};

// One padded row of the image as codes less zero point.
void fill_row(const eq_depthwise& d, const Image& image, int y, const QuantArgs* q, float* row) {
  const int h = image.h, w = image.w;
  const eq_contraction_spec& s = d.spec;
  const int c = s.in_channels;
  const size_t padded_w = (size_t)w + 2 * s.pad_w;
  if (y < 0 || y >= h) {
    std::memset(row, 0, padded_w * d.padded * sizeof(float));
    return;
  }
  std::memset(row, 0, (size_t)s.pad_w * d.padded * sizeof(float));
  std::memset(row + (padded_w - s.pad_w) * d.padded, 0, (size_t)s.pad_w * d.padded * sizeof(float));
  const ptrdiff_t start = (ptrdiff_t)y * w * c;
  float* target = row + (size_t)s.pad_w * d.padded;
  const auto copy = [&](ptrdiff_t from, size_t count, float* to) {
    if (image.codes)
      d.isa->dequantize_u8(image.codes + from, count, 1.0f, q->zero_point, to);
    else if (q)
      d.isa->quantize_f32(image.x + from, count, *q, to);
    else
      std::memcpy(to, image.x + from, count * sizeof(float));
  };
  if (d.padded == c) return copy(start, (size_t)w * c, target);
  for (int i = 0; i < w; ++i) copy(start + (ptrdiff_t)i * c, (size_t)c, target + (ptrdiff_t)i * d.padded);
}

}  // namespace

extern "C" {

int eq_depthwise_create(eq_depthwise** made, int isa, const eq_contraction_spec* spec, const int8_t* codes,
                        const float* weights, const float* scales, const float* bias) {
  const Isa* found = find_isa(isa);
  if (!found) return -1;
  if (spec->in_channels != spec->out_channels || spec->groups != spec->in_channels || spec->in_channels < 1)
    return fail("depthwise: expected as many groups and output channels as input channels, but got %d, %d and %d",
                spec->groups, spec->out_channels, spec->in_channels);
  if (spec->kernel_h < 1 || spec->kernel_h > kMostRows || spec->kernel_w < 1 || spec->stride_h < 1 || spec->stride_w < 1 || spec->pad_h < 0 ||
      spec->pad_w < 0 || spec->dilation_h < 1 || spec->dilation_w < 1)
    return fail("depthwise: sizes, strides and dilations must be positive, and at most %d rows in the kernel", kMostRows);
  if (!codes == !weights) return fail("depthwise: expected either integer or f32 weights");
  if (codes && (int64_t)spec->kernel_h * spec->kernel_w * 128 * spec->operand_max >= kExact)
    return fail("depthwise: %d x %d taps of activations up to %d leave the exact range", spec->kernel_h, spec->kernel_w, spec->operand_max);
  std::unique_ptr<eq_depthwise> d(new eq_depthwise{});
  d->isa = found;
  d->spec = *spec;
  d->quantized = codes != nullptr || spec->operand == EQ_OPERAND_CODES_F32;
  d->padded = round_up(spec->in_channels, kPanel);
  const int taps = spec->kernel_h * spec->kernel_w, channels = spec->in_channels;
  d->weights = Bytes(sizeof(float) * taps * d->padded);
  d->scales = Bytes(sizeof(float) * d->padded);
  d->bias = Bytes(sizeof(float) * d->padded);
  for (int c = 0; c < channels; ++c) {
    for (int t = 0; t < taps; ++t) {
      const size_t from = (size_t)t * channels + c;
      d->weights.as<float>()[(size_t)t * d->padded + c] = codes ? (float)codes[from] : weights[from];
    }
    d->scales.as<float>()[c] = scales ? scales[c] : 1.0f;
    d->bias.as<float>()[c] = bias ? bias[c] : 0.0f;
  }
  *made = d.release();
  return 0;
}

void eq_depthwise_destroy(eq_depthwise* handle) { delete handle; }

size_t eq_depthwise_bytes(const eq_depthwise* handle) { return handle->weights.size(); }

int eq_depthwise_f32(const eq_depthwise* handle, const float* x, int h, int w, const eq_quantizer* quantizer,
                     int activation, const float* residual, float* out, const eq_code_tensors* codes) {
  const eq_depthwise& d = *handle;
  const eq_contraction_spec& s = d.spec;
  if (d.quantized != (quantizer != nullptr))
    return fail("depthwise: this handle %s a quantizer of its activations", d.quantized ? "needs" : "takes no");
  if (quantizer && (!(quantizer->scale > 0.0f) || quantizer->log2_levels != 0 || check_levels(*quantizer, "depthwise") != 0 || quantizer->q_max - quantizer->q_min > s.operand_max))
    return fail("depthwise: activations of %d levels, but the weights were packed for at most %d", quantizer->q_max - quantizer->q_min, s.operand_max);
  const int reach_h = s.dilation_h * (s.kernel_h - 1) + 1, reach_w = s.dilation_w * (s.kernel_w - 1) + 1;
  const int padded_w = w + 2 * s.pad_w;
  if (h + 2 * s.pad_h < reach_h || padded_w < reach_w) return fail("depthwise: the padded image is smaller than the kernel");
  const int out_h = (h + 2 * s.pad_h - reach_h) / s.stride_h + 1, out_w = (padded_w - reach_w) / s.stride_w + 1;
  const QuantArgs args = quantizer ? quant_args(*quantizer) : QuantArgs{};
  const Image image{x, codes ? codes->x : nullptr, h, w};
  if (image.codes && (!quantizer || quantizer->q_max > 255)) return fail("depthwise: codes come with their quantizer, of at most 8 bits");
  uint8_t* out_codes = codes ? codes->out : nullptr;
  if (out_codes && check_result(*codes, "depthwise")) return -1;
  const QuantArgs to = out_codes ? quant_args(*codes->to) : QuantArgs{};
  const int tasks = std::min(thread_count(), out_h);
  const float unit = quantizer ? unit_of(*quantizer) : 1.0f;
  float* scale = static_cast<float*>(scratch(Slot::kScale, sizeof(float) * d.padded));
  for (int c = 0; c < d.padded; ++c) scale[c] = unit * d.scales.as<float>()[c];
  parallel_for(tasks, [&](int task) {
    const size_t pitch = (size_t)padded_w * d.padded;
    float* ring = static_cast<float*>(scratch(Slot::kRing, sizeof(float) * pitch * reach_h));
    int filled = INT32_MIN;  // rows of the image below this one are in the ring
    for (int oy = out_h * task / tasks; oy < out_h * (task + 1) / tasks; ++oy) {
      const int top = oy * s.stride_h - s.pad_h;
      for (int y = std::max(filled, top); y < top + reach_h; ++y)
        fill_row(d, image, y, quantizer ? &args : nullptr, ring + (size_t)((y + s.pad_h) % reach_h) * pitch);
      filled = top + reach_h;
      const float* rows[kMostRows];
      for (int ky = 0; ky < s.kernel_h; ++ky) rows[ky] = ring + (size_t)((top + ky * s.dilation_h + s.pad_h) % reach_h) * pitch;
      const ptrdiff_t place = (ptrdiff_t)oy * out_w * s.in_channels;
      d.isa->depthwise({rows, decoded_weights(d), d.padded, s.kernel_h, s.kernel_w, s.stride_w, s.dilation_w,
                        s.in_channels, out_w, scale, d.bias.as<float>(), activation,
                        residual ? residual + place : nullptr, out + place, out_codes ? out_codes + place : nullptr, &to});
    }
  });
  return 0;
}

}  // extern "C"
