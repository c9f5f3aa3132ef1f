// Products of two activations: the second operand is quantised and packed at every call.
#pragma once

#include <optional>

#include "contraction.h"

namespace eq {

// One product of a batch. The shape's strides of a and out are not used by the functions below.
struct Product {
  const Isa& isa;
  const eq_matmul_shape& s;
  const Format& format;
  const eq_quantizer* qa;  // of the first operand; null: both are real
  int depth;
  int b_q_max;
  float factor;

  int padded_columns() const { return round_up(s.n, kPanel); }
  int padded_k() const { return round_up(s.k, format.align); }
  int steps() const { return padded_k() / format.step; }
  size_t panel_values() const { return (size_t)padded_k() * kPanel; }
  size_t panel_bytes() const { return panel_values() * format.weight_bytes; }
  ptrdiff_t row_bytes() const { return (ptrdiff_t)padded_k() * format.operand_bytes; }
};

// Operands as a caller gives them.
struct ProductSpec {
  const eq_matmul_shape* shape;
  const eq_quantizer* qa;
  const float* b_scales;
  int b_scale_count, b_q_max;
  float factor;
};

// The second operand in panels, with what the epilogue needs.
struct Second {
  const char* panels;
  const float* scale;
  const float* bias;
  const int32_t* correction;
};

// Checks the operands and chooses format and depth; none, with eq_last_error set, if they do not fit.
std::optional<Product> make_product(const Isa& isa, const ProductSpec& spec);

size_t second_bytes(const Product& p);
Second pack_second(const Product& p, const float* b, float b_scale, char* memory);
// Rows of the first operand as codes, row_bytes() apart; only where there is a quantizer.
void quantize_rows(const Product& p, const float* a, ptrdiff_t a_row, int m, char* rows);
void multiply_rows(const Product& p, const Second& second, const char* rows, ptrdiff_t pitch, int m, float* out, ptrdiff_t out_row);

inline ProductSpec spec_of(const eq_product& p) {
  return {&p.shape, p.quantized ? &p.quantizer : nullptr, p.b_scales, p.b_scale_count, p.b_q_max, p.factor};
}

inline float scale_of(const ProductSpec& spec, int inner) {
  return spec.qa ? spec.b_scales[spec.b_scale_count == 1 ? 0 : inner] : 1.0f;
}

}  // namespace eq
