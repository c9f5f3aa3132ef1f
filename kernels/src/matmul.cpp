// Batched product of two activations: the second operand is quantised and packed at every p.
#include "matmul.h"

#include <algorithm>
#include <cstring>

#include "threads.h"

namespace eq {
namespace {

void pack_float(const Product& p, const float* b, float* panels) {
  const eq_matmul_shape& s = p.s;
  for (int first = 0; first < s.n; first += kPanel, panels += p.panel_values()) {
    const int columns = std::min(kPanel, s.n - first);
    const float* source = b + first * s.b_col;
    if (columns < kPanel) std::memset(panels, 0, p.panel_values() * sizeof(float));
    if (s.b_col == 1)
      for (int i = 0; i < s.k; ++i) std::memcpy(panels + i * kPanel, source + i * s.b_row, sizeof(float) * columns);
    else
      for (int j = 0; j < columns; ++j)
        for (int i = 0; i < s.k; ++i) panels[i * kPanel + j] = source[i * s.b_row + j * s.b_col];
  }
}

// What the sums of a panel have too much: all that a row of zero points gives.
void correct_columns(const Product& p, const char* panel, int32_t* correction) {
  const int k = p.padded_k(), value = p.qa->zero_point;
  char* row = static_cast<char*>(scratch(Slot::kOperand, (size_t)k * p.format.operand_bytes));
  if (p.format.operand_bytes == 1)
    std::memset(row, value, (size_t)k);
  else
    std::fill_n(reinterpret_cast<int16_t*>(row), k, (int16_t)value);
  const void* first = row;
  const ptrdiff_t segment = 0;
  alignas(64) int32_t tile[kPanel];
  p.format.tiles[1][1]({&first, 1, &segment, 1, k / p.format.step, panel, 0, p.depth, tile});
  std::memcpy(correction, tile, sizeof tile);
}

// Codes of b in the order it has in memory, then panels and corrections.
void pack_codes(const Product& p, const float* b, float b_scale, char* panels, int32_t* correction) {
  const eq_matmul_shape& s = p.s;
  const bool by_rows = s.b_row == 1;  // k contiguous
  const int lines = by_rows ? s.n : s.k, length = by_rows ? s.k : s.n;
  const int steps = p.steps(), padding = steps * p.format.step - s.k;
  const ptrdiff_t pitch = by_rows ? round_up(length, std::max(16, p.format.align)) : round_up(length, 16);
  int8_t* codes = static_cast<int8_t*>(scratch(Slot::kCodes, (size_t)(lines + padding) * pitch + 64));
  const float top = (float)p.b_q_max;
  const QuantArgs q{1.0f / b_scale, -top, top, 0, 0, nullptr};
  const ptrdiff_t stride = by_rows ? s.b_col : s.b_row;
  if (stride == length && pitch == length)
    p.isa.quantize_s8(b, (size_t)lines * length, q, codes);
  else
    for (int i = 0; i < lines; ++i) {
      p.isa.quantize_s8(b + i * stride, (size_t)length, q, codes + i * pitch);
      std::memset(codes + i * pitch + length, 0, (size_t)(pitch - length));
    }
  if (!by_rows) std::memset(codes + lines * pitch, 0, (size_t)(padding * pitch));
  const bool wide = p.format.step == 2;
  const bool expanded = !wide && p.format.expand;
  int8_t* plain = expanded ? static_cast<int8_t*>(scratch(Slot::kDecoded, p.panel_values())) : nullptr;
  for (int first = 0; first < s.n; first += kPanel, panels += p.panel_bytes()) {
    const int columns = std::min(kPanel, s.n - first);
    const int8_t* source = by_rows ? codes + first * pitch : codes + first;
    int8_t* bytes = expanded ? plain : reinterpret_cast<int8_t*>(panels);
    int16_t* words = reinterpret_cast<int16_t*>(panels);
    if (by_rows)
      wide ? p.isa.pack_rows2(source, pitch, columns, steps, words) : p.isa.pack_rows4(source, pitch, columns, steps, bytes);
    else
      wide ? p.isa.pack_columns2(source, pitch, steps, words) : p.isa.pack_columns4(source, pitch, steps, bytes);
    if (expanded) p.format.expand(bytes, p.panel_values(), panels);
    correct_columns(p, panels, correction + first);
  }
}

}  // namespace

std::optional<Product> make_product(const Isa& isa, const ProductSpec& spec) {
  const eq_matmul_shape& s = *spec.shape;
  const eq_quantizer* qa = spec.qa;
  if (s.b_row != 1 && s.b_col != 1) return fail("matmul: one axis of the second operand must be contiguous"), std::nullopt;
  if (!qa) return Product{isa, s, *isa.f32, nullptr, 0, spec.b_q_max, spec.factor};
  const int top = qa->log2_levels > 0 ? 1 << (qa->log2_levels - 1) : qa->q_max;
  if (spec.b_q_max < 1 || spec.b_q_max > 127)
    return fail("matmul: codes of the second operand must reach 1 to 127, but got %d", spec.b_q_max), std::nullopt;
  if (!spec.b_scales || (spec.b_scale_count != 1 && spec.b_scale_count != s.inner))
    return fail("matmul: expected 1 or %d scales of the second operand, but got %d", s.inner, spec.b_scale_count), std::nullopt;
  if (!(qa->scale > 0.0f)) return fail("matmul: scale must be positive, but got %g", (double)qa->scale), std::nullopt;
  if (top > 32767 || qa->q_min < 0) return fail("matmul: activations reach %d, beyond 15 bits", top), std::nullopt;
  if (qa->zero_point < qa->q_min || qa->zero_point > top)
    return fail("matmul: expected a zero point from %d to %d, but got %d", qa->q_min, top, qa->zero_point), std::nullopt;
  if (check_levels(*qa, "matmul") != 0) return std::nullopt;
  const int depth = 32767 / (2 * top * spec.b_q_max);
  const bool is_deep = depth > 0 || !isa.u8_full;
  const Format* format = top > 255 ? isa.s16 : is_deep ? byte_format(isa, s.k) : full_format(isa, s.k);
  return Product{isa, s, *format, qa, depth, spec.b_q_max, spec.factor};
}

size_t second_bytes(const Product& p) {
  return round_up(p.panel_bytes() * (p.padded_columns() / kPanel), (size_t)64) + (size_t)p.padded_columns() * 12;
}

Second pack_second(const Product& p, const float* b, float b_scale, char* memory) {
  const int padded = p.padded_columns();
  float* scale = reinterpret_cast<float*>(memory + round_up(p.panel_bytes() * (padded / kPanel), (size_t)64));
  float* bias = scale + padded;
  int32_t* correction = reinterpret_cast<int32_t*>(bias + padded);
  if (p.qa)
    pack_codes(p, b, b_scale, memory, correction);
  else
    pack_float(p, b, reinterpret_cast<float*>(memory));
  for (int j = 0; j < padded; ++j) {
    scale[j] = p.qa ? unit_of(*p.qa) * b_scale * p.factor : p.factor;
    bias[j] = 0.0f;
  }
  return {memory, scale, bias, correction};
}

void quantize_rows(const Product& p, const float* a, ptrdiff_t a_row, int m, char* rows) {
  const QuantArgs args = quant_args(*p.qa);
  const ptrdiff_t pitch = p.row_bytes();
  const bool dense = a_row == p.s.k && pitch == (ptrdiff_t)p.s.k * p.format.operand_bytes;
  const int lines = dense ? 1 : m;
  const size_t length = dense ? (size_t)m * p.s.k : (size_t)p.s.k;
  for (int i = 0; i < lines; ++i)
    if (p.format.operand_bytes == 1)
      p.isa.quantize_u8(a + i * a_row, length, args, reinterpret_cast<uint8_t*>(rows + i * pitch));
    else
      p.isa.quantize_s16(a + i * a_row, length, args, reinterpret_cast<int16_t*>(rows + i * pitch));
}

void multiply_rows(const Product& p, const Second& second, const char* base, ptrdiff_t pitch, int m, float* out, ptrdiff_t out_row) {
  const Format& f = p.format;
  const int panels = p.padded_columns() / kPanel, steps = p.steps();
  const ptrdiff_t stride = (ptrdiff_t)p.panel_bytes();
  const TileShape shape = choose_tile(f, m, panels, steps);
  alignas(64) int32_t tile[kMaxRows * kMaxPanels * kPanel + kBatchBytes / 4];
  const void** rows = static_cast<const void**>(scratch(Slot::kRows, sizeof(void*) * (m + kMaxRows)));
  for (int i = 0; i < m + kMaxRows; ++i) rows[i] = base + std::min(i, m - 1) * pitch;
  const ptrdiff_t segment = 0;
  for (int first = 0; first < panels; first += shape.panels) {
    const int width = std::min(shape.panels, panels - first), column = first * kPanel;
    const int most = std::max(1, kBatchBytes / (shape.rows * width * kPanel * 4));
    for (int row = 0; row < m;) {
      const int count = std::min(shape.rows, m - row);
      const int blocks = std::max(1, std::min(most, (m - row) / shape.rows));
      f.tiles[width][count]({rows + row, blocks, &segment, 1, steps, second.panels + first * stride, stride, p.depth, tile});
      EpilogueArgs e{tile, width * kPanel, count * blocks, std::min(width * kPanel, p.s.n - column), second.correction + column,
                     second.scale + column, second.bias + column, EQ_IDENTITY, true, true, nullptr, out + row * out_row + column, out_row};
      (f.is_float ? p.isa.epilogue_f32 : p.isa.epilogue_s32)(e);
      row += count * blocks;
    }
  }
}

}  // namespace eq

using namespace eq;

extern "C" int eq_matmul_f32(int isa, const eq_matmul_shape* shape, const float* a, const float* b,
                             const eq_quantizer* qa, const float* b_scales, int b_scale_count, int b_q_max,
                             float factor, float* out) {
  const Isa* found = find_isa(isa);
  if (!found) return -1;
  const eq_matmul_shape& s = *shape;
  const ProductSpec spec{shape, qa, b_scales, b_scale_count, b_q_max, factor};
  const std::optional<Product> product = make_product(*found, spec);
  if (!product) return -1;
  const Product& p = *product;
  parallel_for(s.outer * s.inner, [&](int item) {
    const int outer = item / s.inner, inner = item % s.inner;
    const float* rows = a + outer * s.a_outer + inner * s.a_inner;
    const Second second = pack_second(p, b + outer * s.b_outer + inner * s.b_inner, scale_of(spec, inner),
                                      static_cast<char*>(scratch(Slot::kSecond, second_bytes(p))));
    float* target = out + outer * s.out_outer + inner * s.out_inner;
    if (!qa) return multiply_rows(p, second, reinterpret_cast<const char*>(rows), s.a_row * 4, s.m, target, s.out_row);
    char* codes = static_cast<char*>(scratch(Slot::kOperand, (size_t)p.row_bytes() * s.m));
    quantize_rows(p, rows, s.a_row, s.m, codes);
    multiply_rows(p, second, codes, p.row_bytes(), s.m, target, s.out_row);
  });
  return 0;
}
