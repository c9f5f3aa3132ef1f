// Every instruction set of this machine against the reference, bit for bit, with guard bytes around all outputs.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "evoquant/kernels.h"

namespace {

std::mt19937 random_bits(1234);
int failures = 0;

int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED %s: %s\n", what.c_str(), eq_last_error());
}

// A buffer that starts at an odd multiple of its type and is surrounded by bytes that must survive.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t count) : count_(count), bytes_(count * sizeof(T) + 2 * kGuard, kMark) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuard); }
  bool intact() const {
    for (size_t i = 0; i < kGuard; ++i)
      if (bytes_[i] != kMark || bytes_[bytes_.size() - 1 - i] != kMark) return false;
    return true;
  }
  size_t size() const { return count_; }

 private:
  static constexpr size_t kGuard = 68;
  static constexpr unsigned char kMark = 0xA5;
  size_t count_;
  std::vector<unsigned char> bytes_;
};

// How results become codes, and whether some are those of these values.
const eq_quantizer kResult{37.0f, 100, 3, 250, 0};

bool are_codes_of(const std::vector<float>& values, Guarded<uint8_t>& codes) {
  std::vector<int32_t> expected(values.size());
  eq_ref_quantize(values.data(), values.size(), &kResult, expected.data());
  return codes.intact() && std::equal(expected.begin(), expected.end(), codes.data());
}

eq_contraction_spec gemm_spec(int n, int k, int operand, int operand_max, int bits) {
  eq_contraction_spec s{};
  s.out_channels = n;
  s.in_channels = k;
  s.kernel_h = s.kernel_w = s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = s.groups = 1;
  s.operand = operand;
  s.operand_max = operand_max;
  s.weight_bits = bits;
  return s;
}

// All values; the lowest weight and the greatest code; or each weight and each code at one of its two ends.
enum class Fill { kRandom, kExtreme, kEnds };

void fill_weights(std::vector<int8_t>& w, int bits, Fill fill, const eq_contraction_spec& s) {
  const int low = -(1 << (bits - 1)), high = (1 << (bits - 1)) - 1;
  for (auto& x : w) {
    if (s.has_codebook)
      x = s.codebook[between(0, (1 << bits) - 1)];
    else
      x = (int8_t)(fill == Fill::kExtreme ? low : fill == Fill::kEnds ? (between(0, 1) ? low : high) : between(low, high));
  }
}

void test_gemm(int isa, int m, int n, int k, int weight_bits, int activation_bits, Fill fill, bool codebook) {
  eq_contraction_spec s = gemm_spec(n, k, EQ_OPERAND_U8, (1 << activation_bits) - 1, weight_bits);
  if (codebook) {
    s.has_codebook = 1;
    for (int i = 0; i < 1 << weight_bits; ++i) s.codebook[i] = (int8_t)(weight_bits == 1 ? 2 * i - 1 : between(0, 1) ? 1 << between(0, 6) : -(1 << between(0, 6)));
    if (weight_bits == 2) s.codebook[0] = -1, s.codebook[1] = 0, s.codebook[2] = s.codebook[3] = 1;
  }
  std::vector<int8_t> w((size_t)n * k);
  fill_weights(w, weight_bits, fill, s);
  Guarded<uint8_t> a((size_t)m * k);
  for (size_t i = 0; i < a.size(); ++i)
    a.data()[i] = (uint8_t)(fill == Fill::kExtreme ? s.operand_max : fill == Fill::kEnds ? between(0, 1) * s.operand_max : between(0, s.operand_max));
  std::vector<int32_t> expected((size_t)m * n);
  eq_ref_gemm_u8(a.data(), w.data(), m, n, k, expected.data());
  char what[160];
  std::snprintf(what, sizeof what, "gemm %s m=%d n=%d k=%d w%da%d%s%s", eq_isa_name(isa), m, n, k, weight_bits,
                activation_bits, fill == Fill::kExtreme ? " extreme" : fill == Fill::kEnds ? " ends" : "", codebook ? " codebook" : "");
  std::vector<float> scales((size_t)n, 0.5f), bias((size_t)n, 3.0f);
  eq_contraction* handle = nullptr;
  expect(eq_contraction_create(&handle, isa, &s, w.data(), nullptr, scales.data(), bias.data()) == 0, what);
  if (!handle) return;
  Guarded<int32_t> out((size_t)m * n);
  expect(eq_gemm_s32(handle, a.data(), m, out.data()) == 0, what);
  expect(std::memcmp(out.data(), expected.data(), sizeof(int32_t) * m * n) == 0, what);
  expect(out.intact(), std::string(what) + " guard");
  // The whole pipeline: f32 values on the grid come back as the same codes.
  const int zero_point = between(0, s.operand_max);
  const eq_quantizer q{0.25f, zero_point, 0, s.operand_max, 0};
  Guarded<float> x((size_t)m * k), y((size_t)m * n);
  for (size_t i = 0; i < x.size(); ++i) x.data()[i] = 0.25f * (float)(a.data()[i] - zero_point);
  expect(eq_gemm_f32(handle, x.data(), k, m, &q, EQ_IDENTITY, nullptr, y.data(), nullptr) == 0, what);
  std::vector<int32_t> correction((size_t)n, 0);
  std::vector<float> scale((size_t)n, 0.125f), wanted((size_t)m * n);
  for (int j = 0; j < n; ++j)
    for (int p = 0; p < k; ++p) correction[j] += zero_point * w[(size_t)j * k + p];
  eq_ref_epilogue(expected.data(), m, n, correction.data(), scale.data(), bias.data(), wanted.data());
  expect(std::memcmp(y.data(), wanted.data(), sizeof(float) * m * n) == 0, std::string(what) + " f32");
  expect(y.intact(), std::string(what) + " f32 guard");
  // The same from codes to codes.
  Guarded<uint8_t> y_codes((size_t)m * n);
  const eq_code_tensors codes{a.data(), y_codes.data(), &kResult};
  expect(eq_gemm_f32(handle, nullptr, k, m, &q, EQ_IDENTITY, nullptr, nullptr, &codes) == 0, what);
  expect(are_codes_of(wanted, y_codes), std::string(what) + " codes");
  // And with factors of the results, whose products are exact.
  std::vector<float> gains((size_t)n);
  for (int j = 0; j < n; ++j) gains[j] = std::ldexp(1.0f, between(-3, 3));
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i] *= gains[i % n];
  eq_contraction_set_gains(handle, gains.data());
  expect(eq_gemm_f32(handle, x.data(), k, m, &q, EQ_IDENTITY, nullptr, y.data(), nullptr) == 0, what);
  expect(std::memcmp(y.data(), wanted.data(), sizeof(float) * m * n) == 0 && y.intact(), std::string(what) + " gains");
  expect(eq_gemm_f32(handle, nullptr, k, m, &q, EQ_IDENTITY, nullptr, nullptr, &codes) == 0, what);
  expect(are_codes_of(wanted, y_codes), std::string(what) + " codes with gains");
  eq_contraction_destroy(handle);
}

void test_gemm_s16(int isa, int m, int n, int k, Fill fill) {
  eq_contraction_spec s = gemm_spec(n, k, EQ_OPERAND_S16, 32767, 8);
  std::vector<int8_t> w((size_t)n * k);
  fill_weights(w, 8, fill, s);
  std::vector<int16_t> a((size_t)m * k);
  for (auto& v : a) v = (int16_t)(fill == Fill::kExtreme ? 16384 : between(-16384, 16384));
  std::vector<int32_t> expected((size_t)m * n);
  eq_ref_gemm_s16(a.data(), w.data(), m, n, k, expected.data());
  eq_contraction* handle = nullptr;
  Guarded<int32_t> out((size_t)m * n);
  const std::string what = std::string("gemm s16 ") + eq_isa_name(isa);
  expect(eq_contraction_create(&handle, isa, &s, w.data(), nullptr, nullptr, nullptr) == 0, what);
  expect(eq_gemm_s32(handle, a.data(), m, out.data()) == 0, what);
  expect(std::memcmp(out.data(), expected.data(), sizeof(int32_t) * m * n) == 0 && out.intact(), what);
  eq_contraction_destroy(handle);
}

void test_gemm_float(int isa, int m, int n, int k) {
  const eq_contraction_spec s = gemm_spec(n, k, EQ_OPERAND_F32, 0, 0);
  std::vector<float> w((size_t)n * k), a((size_t)m * k), expected((size_t)m * n);
  for (auto& v : w) v = (float)between(-9, 9);
  for (auto& v : a) v = (float)between(-9, 9);
  eq_ref_gemm_float(a.data(), w.data(), m, n, k, expected.data());
  eq_contraction* handle = nullptr;
  Guarded<float> out((size_t)m * n);
  const std::string what = std::string("gemm f32 ") + eq_isa_name(isa);
  expect(eq_contraction_create(&handle, isa, &s, nullptr, w.data(), nullptr, nullptr) == 0, what);
  expect(eq_gemm_f32(handle, a.data(), k, m, nullptr, EQ_IDENTITY, nullptr, out.data(), nullptr) == 0, what);
  expect(std::memcmp(out.data(), expected.data(), sizeof(float) * m * n) == 0 && out.intact(), what);
  eq_contraction_destroy(handle);
}

void test_conv(int isa, int h, int w, int c, int n, int kernel, int stride, int pad, int dilation, int groups, int bits) {
  eq_contraction_spec s = gemm_spec(n, c, EQ_OPERAND_U8, 255, bits);
  s.kernel_h = s.kernel_w = kernel;
  s.stride_h = s.stride_w = stride;
  s.pad_h = s.pad_w = pad;
  s.dilation_h = s.dilation_w = dilation;
  s.groups = groups;
  const int oh = (h + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1, ow = (w + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
  const int reach = dilation * (kernel - 1) + 1;
  if (h + 2 * pad < reach || w + 2 * pad < reach) return;
  std::vector<int8_t> weights((size_t)n * kernel * kernel * (c / groups));
  fill_weights(weights, bits, Fill::kRandom, s);
  std::vector<uint8_t> x((size_t)h * w * c);
  for (auto& v : x) v = (uint8_t)between(0, 255);
  std::vector<int32_t> expected((size_t)oh * ow * n);
  eq_ref_conv_u8(x.data(), weights.data(), h, w, &s, 77, expected.data());
  char what[160];
  std::snprintf(what, sizeof what, "conv %s %dx%dx%d n=%d k=%d s=%d p=%d d=%d g=%d w%d", eq_isa_name(isa), h, w, c, n, kernel, stride, pad, dilation, groups, bits);
  eq_contraction* handle = nullptr;
  expect(eq_contraction_create(&handle, isa, &s, weights.data(), nullptr, nullptr, nullptr) == 0, what);
  if (!handle) return;
  Guarded<int32_t> out(expected.size());
  expect(eq_conv_s32(handle, x.data(), h, w, 77, out.data()) == 0, what);
  expect(std::memcmp(out.data(), expected.data(), sizeof(int32_t) * expected.size()) == 0 && out.intact(), what);
  std::vector<float> image(x.size());
  for (size_t i = 0; i < x.size(); ++i) image[i] = (float)x[i] - 77.0f;
  const eq_quantizer q{1.0f, 77, 0, 255, 0};
  Guarded<float> y(expected.size());
  expect(eq_conv_f32(handle, image.data(), h, w, &q, EQ_IDENTITY, nullptr, y.data(), nullptr) == 0, what);
  std::vector<float> zero_pad(x.size());
  std::vector<float> float_weights(weights.begin(), weights.end()), wanted(expected.size());
  eq_ref_conv_float(image.data(), float_weights.data(), h, w, &s, wanted.data());
  expect(std::memcmp(y.data(), wanted.data(), sizeof(float) * wanted.size()) == 0 && y.intact(), std::string(what) + " f32 pipeline");
  Guarded<uint8_t> y_codes(wanted.size());
  const eq_code_tensors codes{x.data(), y_codes.data(), &kResult};
  expect(eq_conv_f32(handle, nullptr, h, w, &q, EQ_IDENTITY, nullptr, nullptr, &codes) == 0, what);
  expect(are_codes_of(wanted, y_codes), std::string(what) + " codes");
  eq_contraction_destroy(handle);
  eq_contraction_spec f = s;
  f.operand = EQ_OPERAND_F32;
  expect(eq_contraction_create(&handle, isa, &f, nullptr, float_weights.data(), nullptr, nullptr) == 0, what);
  expect(eq_conv_f32(handle, image.data(), h, w, nullptr, EQ_IDENTITY, nullptr, y.data(), nullptr) == 0, what);
  expect(std::memcmp(y.data(), wanted.data(), sizeof(float) * wanted.size()) == 0 && y.intact(), std::string(what) + " f32");
  eq_contraction_destroy(handle);
}

void test_depthwise(int isa, int h, int w, int c, int kernel, int stride, int dilation) {
  eq_contraction_spec s = gemm_spec(c, c, EQ_OPERAND_U8, 255, 8);
  const int pad = dilation * (kernel - 1) / 2;
  s.kernel_h = s.kernel_w = kernel;
  s.stride_h = s.stride_w = stride;
  s.pad_h = s.pad_w = pad;
  s.dilation_h = s.dilation_w = dilation;
  s.groups = c;
  const int oh = (h + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1, ow = (w + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
  std::vector<int8_t> weights((size_t)c * kernel * kernel), taps(weights.size());
  for (auto& v : weights) v = (int8_t)between(-128, 127);
  for (int t = 0; t < kernel * kernel; ++t)
    for (int i = 0; i < c; ++i) taps[(size_t)t * c + i] = weights[(size_t)i * kernel * kernel + t];
  std::vector<float> x((size_t)h * w * c), float_weights(weights.begin(), weights.end());
  for (auto& v : x) v = (float)between(-100, 155);
  std::vector<float> wanted((size_t)oh * ow * c);
  eq_ref_conv_float(x.data(), float_weights.data(), h, w, &s, wanted.data());
  eq_depthwise* handle = nullptr;
  char what[160];
  std::snprintf(what, sizeof what, "depthwise %s %dx%dx%d k=%d s=%d d=%d", eq_isa_name(isa), h, w, c, kernel, stride, dilation);
  expect(eq_depthwise_create(&handle, isa, &s, taps.data(), nullptr, nullptr, nullptr) == 0, what);
  if (!handle) return;
  const eq_quantizer q{1.0f, 100, 0, 255, 0};
  Guarded<float> out(wanted.size());
  expect(eq_depthwise_f32(handle, x.data(), h, w, &q, EQ_IDENTITY, nullptr, out.data(), nullptr) == 0, what);
  expect(std::memcmp(out.data(), wanted.data(), sizeof(float) * wanted.size()) == 0 && out.intact(), what);
  std::vector<uint8_t> x_codes(x.size());
  for (size_t i = 0; i < x.size(); ++i) x_codes[i] = (uint8_t)(x[i] + 100.0f);
  Guarded<uint8_t> out_codes(wanted.size());
  const eq_code_tensors codes{x_codes.data(), out_codes.data(), &kResult};
  expect(eq_depthwise_f32(handle, nullptr, h, w, &q, EQ_IDENTITY, nullptr, nullptr, &codes) == 0, what);
  expect(are_codes_of(wanted, out_codes), std::string(what) + " codes");
  eq_depthwise_destroy(handle);
}

void test_matmul(int isa, int m, int n, int k, bool b_by_rows, int activation_bits) {
  const int batch = 3, top = (1 << activation_bits) - 1, b_top = activation_bits == 8 ? 127 : (1 << (activation_bits - 1)) - 1;
  std::vector<float> a((size_t)batch * m * k), b((size_t)batch * k * n);
  for (auto& v : a) v = (float)between(-3, top - 3);
  for (auto& v : b) v = (float)between(-b_top, b_top);
  eq_matmul_shape s{1, batch, m, n, k, 0, (ptrdiff_t)m * k, k, 0, (ptrdiff_t)k * n, b_by_rows ? 1 : n, b_by_rows ? k : 1, 0, (ptrdiff_t)m * n, n};
  const eq_quantizer q{1.0f, 3, 0, top, 0};
  const float one = 1.0f;
  Guarded<float> out((size_t)batch * m * n), plain((size_t)batch * m * n);
  char what[160];
  std::snprintf(what, sizeof what, "matmul %s m=%d n=%d k=%d %s a%d", eq_isa_name(isa), m, n, k, b_by_rows ? "rows" : "columns", activation_bits);
  expect(eq_matmul_f32(isa, &s, a.data(), b.data(), &q, &one, 1, b_top, 1.0f, out.data()) == 0, what);
  expect(eq_matmul_f32(isa, &s, a.data(), b.data(), nullptr, nullptr, 0, 0, 1.0f, plain.data()) == 0, what);
  bool equal = true;
  for (int i = 0; i < batch; ++i)
    for (int r = 0; r < m; ++r)
      for (int j = 0; j < n; ++j) {
        double sum = 0;
        for (int p = 0; p < k; ++p) sum += (double)a[((size_t)i * m + r) * k + p] * b[(size_t)i * k * n + (b_by_rows ? (size_t)j * k + p : (size_t)p * n + j)];
        const size_t at = ((size_t)i * m + r) * n + j;
        equal = equal && out.data()[at] == (float)sum && plain.data()[at] == (float)sum;
      }
  expect(equal && out.intact() && plain.intact(), what);
}

// The attention is its products and its softmax apart, bit for bit, however rows are divided.
void test_attention(int isa, int m, int n, int k, int d, int width) {
  const int quantized = width < 32, bits = std::min(width, 8);
  const int heads = 3, b_top = bits == 8 ? 127 : (1 << (bits - 1)) - 1;
  std::vector<float> q((size_t)heads * m * k), keys((size_t)heads * n * k), v((size_t)heads * n * d);
  for (auto* values : {&q, &keys, &v})
    for (auto& x : *values) x = std::normal_distribution<float>(0, 1)(random_bits);
  const eq_matmul_shape scores{1, heads, m, n, k, 0, (ptrdiff_t)m * k, k, 0, (ptrdiff_t)n * k, 1, k, 0, (ptrdiff_t)m * n, n};
  const eq_matmul_shape weighted{1, heads, m, d, n, 0, (ptrdiff_t)m * n, n, 0, (ptrdiff_t)n * d, d, 1, 0, (ptrdiff_t)m * d, d};
  const float levels = (float)((1 << bits) - 1), b_scale = 3.0f / (float)b_top;
  const eq_quantizer of_q{6.0f / levels, (1 << bits) / 2, 0, (1 << bits) - 1, 0}, of_weights{1.0f / levels, 0, 0, (1 << bits) - 1, 0};
  const eq_product first{scores, quantized, of_q, &b_scale, 1, b_top, 0.5f}, second{weighted, quantized, of_weights, &b_scale, 1, b_top, 1.0f};
  std::vector<float> between_products((size_t)heads * m * n), expected((size_t)heads * m * d);
  Guarded<float> out((size_t)heads * m * d);
  eq_matmul_f32(isa, &scores, q.data(), keys.data(), quantized ? &of_q : nullptr, &b_scale, 1, b_top, 0.5f, between_products.data());
  std::vector<float> exponentials(between_products), sums((size_t)heads * m), relative(expected.size());
  for (size_t r = 0; r < sums.size(); ++r) {
    float* row = exponentials.data() + r * n;
    const float top = *std::max_element(row, row + n);
    for (int j = 0; j < n; ++j) sums[r] += row[j] = std::exp(row[j] - top);
  }
  eq_matmul_f32(isa, &weighted, exponentials.data(), v.data(), quantized ? &of_weights : nullptr, &b_scale, 1, b_top, 1.0f, relative.data());
  eq_softmax(isa, between_products.data(), (size_t)heads * m, n, between_products.data());
  eq_matmul_f32(isa, &weighted, between_products.data(), v.data(), quantized ? &of_weights : nullptr, &b_scale, 1, b_top, 1.0f, expected.data());
  char what[160];
  std::snprintf(what, sizeof what, "attention %s m=%d n=%d k=%d d=%d bits=%d", eq_isa_name(isa), m, n, k, d, width);
  expect(eq_attention_f32(isa, &first, &second, q.data(), keys.data(), v.data(), 0, out.data(), EQ_ATTENTION_WHOLE) == 0, what);
  expect(std::memcmp(out.data(), expected.data(), expected.size() * 4) == 0 && out.intact(), what);
  // With relative rows another exponential may move a weight by one code, and a result by one code times a value.
  expect(eq_attention_f32(isa, &first, &second, q.data(), keys.data(), v.data(), 1, out.data(), EQ_ATTENTION_WHOLE) == 0, what);
  double total = 0.0;
  for (size_t i = 0; i < relative.size(); ++i) total += std::fabs(out.data()[i] - relative[i] / sums[i / d]);
  const double most = quantized ? 0.01 / levels : 1e-5;
  expect(total <= most * (double)relative.size() && out.intact(), std::string(what) + " relative");
}

void test_codes(int isa, size_t count) {
  std::vector<float> x(count);
  for (auto& v : x) v = std::normal_distribution<float>(0, 40)(random_bits);
  if (count > 3) x[0] = NAN, x[1] = INFINITY, x[2] = -INFINITY;
  const std::pair<int, bool> formats[] = {{0, false}, {0, true}, {7, false}, {15, false}};
  for (const auto& [levels, is_uneven] : formats) {
    eq_quantizer q{levels ? 100.0f : 0.37f, levels ? 0 : 101, 0, 255, levels, is_uneven ? 2 : 0, {}};
    for (int code = 0; code < 256; ++code) q.nearest[code] = code > 128 ? 255 : 101;
    std::vector<int32_t> expected(count);
    eq_ref_quantize(x.data(), count, &q, expected.data());
    Guarded<uint8_t> bytes(count);
    Guarded<int16_t> shorts(count);
    expect(eq_quantize_u8(isa, x.data(), count, &q, bytes.data()) == 0 && bytes.intact(), "quantize_u8");
    expect(eq_quantize_s16(isa, x.data(), count, &q, shorts.data()) == 0 && shorts.intact(), "quantize_s16");
    Guarded<float> real(count);
    expect(eq_fake_quantize(isa, x.data(), count, &q, real.data()) == 0 && real.intact(), "fake_quantize");
    const float unit = levels ? std::ldexp(q.scale, 1 - levels) : q.scale;
    for (size_t i = 0; i < count; ++i)
      expect(std::isnan(x[i]) ? std::isnan(real.data()[i]) : real.data()[i] == (float)(expected[i] - q.zero_point) * unit, "fake_quantize value");
    for (size_t i = 0; i < count; ++i) {
      expect(levels == 15 || bytes.data()[i] == expected[i], std::string("quantize_u8 value ") + eq_isa_name(isa) + " " + std::to_string(x[i]) + " levels " + std::to_string(levels));
      expect(shorts.data()[i] == expected[i], std::string("quantize_s16 value ") + eq_isa_name(isa) + " " + std::to_string(x[i]) + " levels " + std::to_string(levels));
    }
  }
}

void test_requantize(int isa, int rows, int channels) {
  std::vector<int32_t> acc((size_t)rows * channels), multiplier(channels), bias(channels);
  std::vector<int8_t> shift(channels);
  for (auto& v : acc) v = between(-2000000, 2000000);
  if (!acc.empty()) acc[0] = INT32_MAX - 1000, acc.back() = INT32_MIN + 1000;
  for (int c = 0; c < channels; ++c) multiplier[c] = between(1 << 30, INT32_MAX), bias[c] = between(-900, 900), shift[c] = (int8_t)between(-18, 3);
  const eq_quantizer to{1.0f, 12, 3, 251, 0};
  uint8_t table[256];
  for (int i = 0; i < 256; ++i) table[i] = (uint8_t)(255 - i);
  Guarded<uint8_t> out(acc.size()), looked(acc.size());
  expect(eq_requantize(isa, acc.data(), rows, channels, bias.data(), multiplier.data(), shift.data(), &to, nullptr, out.data()) == 0, "requantize");
  expect(eq_requantize(isa, acc.data(), rows, channels, bias.data(), multiplier.data(), shift.data(), &to, table, looked.data()) == 0, "requantize");
  for (size_t i = 0; i < acc.size(); ++i) {
    const int c = (int)(i % channels);
    const int64_t code = (int64_t)eq_ref_requantize(acc[i] + bias[c], multiplier[c], shift[c]) + 12;
    const int wanted = code < 3 ? 3 : code > 251 ? 251 : (int)code;
    expect(out.data()[i] == wanted && looked.data()[i] == 255 - wanted, std::string("requantize value ") + eq_isa_name(isa));
  }
  for (auto& s : shift) s = (int8_t)between(0, 20);
  expect(eq_requantize_shift(isa, acc.data(), rows, channels, bias.data(), shift.data(), &to, nullptr, out.data()) == 0, "requantize_shift");
  for (size_t i = 0; i < acc.size(); ++i) {
    const int64_t code = (int64_t)eq_ref_requantize_shift(acc[i] + bias[i % channels], shift[i % channels]) + 12;
    expect(out.data()[i] == (code < 3 ? 3 : code > 251 ? 251 : code), std::string("requantize_shift value ") + eq_isa_name(isa));
  }
  expect(out.intact() && looked.intact(), "requantize guard");
}

void test_packing() {
  for (int bits = 1; bits <= 8; ++bits)
    for (size_t count : {1, 31, 255, 256, 257, 1000}) {
      std::vector<uint8_t> indices(count), back(count), packed(eq_packed_bytes(count, bits));
      for (auto& v : indices) v = (uint8_t)between(0, (1 << bits) - 1);
      expect(eq_pack_bits(indices.data(), count, bits, packed.data()) == 0, "pack");
      expect(eq_unpack_bits(packed.data(), count, bits, back.data()) == 0 && back == indices, "unpack");
    }
}

// Where columns do not depend on each other both ways to round find the nearest points.
void test_rounding(int isa, int groups, int rows, int columns) {
  const size_t size = (size_t)groups * rows * columns;
  std::vector<float> weight(size), scale(size), nearest(size), lowers(size, -3.0f), uppers(size, 5.0f);
  std::vector<float> identity((size_t)groups * columns * columns);
  for (int g = 0; g < groups; ++g)
    for (int c = 0; c < columns; ++c) identity[((size_t)g * columns + c) * columns + c] = 1.0f;
  const float table[] = {-4.0f, -1.0f, 0.0f, 2.0f};
  for (size_t i = 0; i < size; ++i) {
    weight[i] = (float)between(-1000, 1000) / 97.0f;
    scale[i] = (float)between(1, 4) * 0.5f;
  }
  for (int kind = 0; kind < 3; ++kind) {
    const bool is_table = kind == 2;
    const eq_rounding_points points = {scale.data(), is_table ? table : nullptr, is_table ? 4 : 0, -3.0f, 5.0f,
                                       kind == 1 ? lowers.data() : nullptr, kind == 1 ? uppers.data() : nullptr};
    for (size_t i = 0; i < size; ++i) {
      const float steps = weight[i] * (1.0f / scale[i]);
      const float whole = std::fmin(std::fmax(std::nearbyint(steps), -3.0f), 5.0f);
      const float point = steps > 1.0f ? 2.0f : steps > -0.5f ? 0.0f : steps > -2.5f ? -1.0f : -4.0f;
      nearest[i] = scale[i] * (is_table ? point : whole);
    }
    std::vector<float> found = weight;
    expect(eq_round_compensated(isa, found.data(), groups, rows, columns, identity.data(), &points, groups) == 0 && found == nearest,
           "round_compensated");
    std::vector<float> revised(size), gradient(size);
    for (size_t i = 0; i < size; ++i) gradient[i] = -weight[i];
    expect(eq_revise_rounding(isa, revised.data(), gradient.data(), groups, rows, columns, identity.data(), &points, 1) == 0 && revised == nearest,
           "revise_rounding");
  }
}

void test_gemms(int isa, bool all) {
  for (int weight_bits = 1; weight_bits <= 8; ++weight_bits)
    for (int activation_bits : {4, 7, 8})
      for (Fill fill : {Fill::kRandom, Fill::kExtreme, Fill::kEnds})
        test_gemm(isa, between(1, 20), between(1, 70), between(1, 300), weight_bits, activation_bits, fill, false);
  for (int m : {1, 2, 3, 5, 6, 7, 11, 12, 13, 31, 32, 33, 61})
    for (int n : {1, 7, 15, 16, 17, 33, 47, 48, 49, 64, 65})
      for (int k : {1, 3, 4, 5, 16, 63, 64, 65, 97})
        if (all || between(0, 5) == 0) test_gemm(isa, m, n, k, between(2, 8), between(4, 8), Fill::kRandom, false);
  for (int size = 1; size <= 10; ++size) {
    test_gemm(isa, size, 11 - size, size, 4, 8, Fill::kRandom, false);
    for (Fill fill : {Fill::kExtreme, Fill::kEnds}) test_gemm(isa, size, size, 3 * size, 8, 8, fill, false);
    for (int bits = 1; bits <= 4; ++bits) test_gemm(isa, size, 7 * size, 5 * size + bits, bits, 8, Fill::kRandom, true);
    test_gemm_s16(isa, size, 3 * size, 7 * size, Fill::kRandom);
    test_gemm_float(isa, size, 9 * size, size);
  }
  test_gemm_s16(isa, 40, 40, 200, Fill::kExtreme);
  test_gemm(isa, 700, 40, 129, 8, 8, Fill::kRandom, false);
  test_gemm(isa, 700, 40, 129, 5, 8, Fill::kRandom, false);
}

void test_images(int isa) {
  for (int kernel : {1, 2, 3, 5})
    for (int stride : {1, 2})
      for (int dilation : {1, 2})
        for (int bits : {4, 7, 8}) {
          test_conv(isa, between(7, 12), between(8, 11), 5, 18, kernel, stride, kernel / 2, dilation, 1, bits);
          test_conv(isa, 9, 8, 12, 8, kernel, stride, between(0, 2), dilation, between(0, 1) ? 4 : 2, bits);
        }
  for (int kernel : {3, 5})
    for (int stride : {1, 2, 3})
      for (int dilation : {1, 2})
        for (int c : {1, 7, 16, 33}) test_depthwise(isa, between(5, 9), between(4, 14), c, kernel, stride, dilation);
  for (int bits : {4, 6, 8})
    for (bool rows : {false, true})
      for (int size : {1, 3, 17, 50}) test_matmul(isa, size, between(1, 40), between(1, 70), rows, bits);
  for (int bits : {4, 8, 32})
    for (int size : {1, 7, 33, 70}) test_attention(isa, size, between(1, 90), between(1, 40), between(1, 40), bits);
  test_attention(isa, 9, 3000, 8, 8, 8);
}

// What this machine cannot execute is refused with a reason, and is not what it would choose.
void test_refused(int isa) {
  const eq_contraction_spec s = gemm_spec(1, 1, EQ_OPERAND_F32, 0, 0);
  const float weight = 1.0f;
  eq_contraction* handle = nullptr;
  expect(eq_contraction_create(&handle, isa, &s, nullptr, &weight, nullptr, nullptr) < 0 &&
             std::strstr(eq_last_error(), "does not support the instruction set") && eq_isa_default() != isa,
         std::string("refused ") + eq_isa_name(isa));
}

}  // namespace

int main(int count, char** arguments) {
  const bool all = count > 1 && std::strcmp(arguments[1], "--all") == 0;
  test_packing();
  for (int isa = 0; isa < EQ_ISA_COUNT; ++isa) {
    if (!eq_isa_built(isa)) continue;
    if (!eq_isa_supported(isa)) {
      test_refused(isa);
      std::printf("%s: not supported by this machine\n", eq_isa_name(isa));
      continue;
    }
    for (int threads : {1, 2}) {
      eq_set_threads(threads);
      test_gemms(isa, all);
      test_images(isa);
    }
    for (size_t size : {1, 5, 15, 16, 17, 63, 64, 65, 300}) test_codes(isa, size);
    test_requantize(isa, 7, 19);
    for (int rows : {1, 15, 16, 17, 40})
      for (int columns : {1, 7, 33}) test_rounding(isa, between(1, 3), rows, columns);
    std::printf("%s: %s\n", eq_isa_name(isa), failures ? "failures so far" : "exact");
  }
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
