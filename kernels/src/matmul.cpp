// Batched product of two activations: the second operand is quantised and packed at every call.
#include <algorithm>
#include <cstring>

#include "contraction.h"
#include "threads.h"

using namespace eq;

namespace {

struct Call {
  const Isa& isa;
  const eq_matmul_shape& s;
  const Format& format;
  const eq_quantizer* qa;
  int depth;
  int b_q_max;
  float factor;
};

int padded_columns(const Call& call) { return round_up(call.s.n, kPanel); }
size_t panel_values(const Call& call) { return (size_t)round_up(call.s.k, call.format.align) * kPanel; }

int step_count(const Call& call) { return round_up(call.s.k, call.format.align) / call.format.step; }

void pack_float(const Call& call, const float* b, float* panels) {
  const eq_matmul_shape& s = call.s;
  for (int first = 0; first < s.n; first += kPanel, panels += panel_values(call)) {
    const int columns = std::min(kPanel, s.n - first);
    const float* source = b + first * s.b_col;
    if (columns < kPanel) std::memset(panels, 0, panel_values(call) * sizeof(float));
    if (s.b_col == 1)
      for (int p = 0; p < s.k; ++p) std::memcpy(panels + p * kPanel, source + p * s.b_row, sizeof(float) * columns);
    else
      for (int j = 0; j < columns; ++j)
        for (int p = 0; p < s.k; ++p) panels[p * kPanel + j] = source[p * s.b_row + j * s.b_col];
  }
}

// Sums of the columns of a panel: a row of ones times the panel.
void sum_columns(const Call& call, const char* panel, int32_t* sums) {
  const int k = round_up(call.s.k, call.format.align);
  char* ones = static_cast<char*>(scratch(Slot::kOperand, (size_t)k * call.format.operand_bytes));
  if (call.format.operand_bytes == 1)
    std::memset(ones, 1, (size_t)k);
  else
    std::fill_n(reinterpret_cast<int16_t*>(ones), k, (int16_t)1);
  const void* row = ones;
  const ptrdiff_t segment = 0;
  alignas(64) int32_t tile[kPanel];
  call.format.tiles[1][1]({&row, 1, &segment, 1, k / call.format.step, panel, 0, call.depth, tile});
  std::memcpy(sums, tile, sizeof tile);
}

// Codes of b in the order it has in memory, then panels and column sums.
void pack_codes(const Call& call, const float* b, float b_scale, char* panels, int32_t* sums) {
  const eq_matmul_shape& s = call.s;
  const bool by_rows = s.b_row == 1;  // k contiguous
  const int lines = by_rows ? s.n : s.k, length = by_rows ? s.k : s.n;
  const int steps = step_count(call), padding = steps * call.format.step - s.k;
  const ptrdiff_t pitch = by_rows ? round_up(length, std::max(16, call.format.align)) : round_up(length, 16);
  int8_t* codes = static_cast<int8_t*>(scratch(Slot::kCodes, (size_t)(lines + padding) * pitch + 64));
  const float top = (float)call.b_q_max;
  const QuantArgs q{1.0f / b_scale, -top, top, 0, 0};
  const ptrdiff_t stride = by_rows ? s.b_col : s.b_row;
  if (stride == length && pitch == length)
    call.isa.quantize_s8(b, (size_t)lines * length, q, codes);
  else
    for (int i = 0; i < lines; ++i) {
      call.isa.quantize_s8(b + i * stride, (size_t)length, q, codes + i * pitch);
      std::memset(codes + i * pitch + length, 0, (size_t)(pitch - length));
    }
  if (!by_rows) std::memset(codes + lines * pitch, 0, (size_t)(padding * pitch));
  const bool wide = call.format.weight_bytes == 2;
  for (int first = 0; first < s.n; first += kPanel, panels += panel_values(call) * call.format.weight_bytes) {
    const int columns = std::min(kPanel, s.n - first);
    const int8_t* source = by_rows ? codes + first * pitch : codes + first;
    int8_t* bytes = reinterpret_cast<int8_t*>(panels);
    int16_t* words = reinterpret_cast<int16_t*>(panels);
    if (by_rows)
      wide ? call.isa.pack_rows2(source, pitch, columns, steps, words) : call.isa.pack_rows4(source, pitch, columns, steps, bytes);
    else
      wide ? call.isa.pack_columns2(source, pitch, steps, words) : call.isa.pack_columns4(source, pitch, steps, bytes);
    sum_columns(call, panels, sums + first);
  }
}

const char* prepare_rows(const Call& call, const float* a, ptrdiff_t* pitch) {
  const eq_matmul_shape& s = call.s;
  if (!call.qa) {
    *pitch = s.a_row * 4;
    return reinterpret_cast<const char*>(a);
  }
  const QuantArgs args = quant_args(*call.qa);
  *pitch = (ptrdiff_t)round_up(s.k, call.format.align) * call.format.operand_bytes;
  char* rows = static_cast<char*>(scratch(Slot::kOperand, (size_t)*pitch * s.m));
  const bool dense = s.a_row == s.k && *pitch == (ptrdiff_t)s.k * call.format.operand_bytes;
  const int lines = dense ? 1 : s.m;
  const size_t length = dense ? (size_t)s.m * s.k : (size_t)s.k;
  for (int i = 0; i < lines; ++i) {
    const float* row = a + i * s.a_row;
    if (call.format.operand_bytes == 1)
      call.isa.quantize_u8(row, length, args, reinterpret_cast<uint8_t*>(rows + i * *pitch));
    else
      call.isa.quantize_s16(row, length, args, reinterpret_cast<int16_t*>(rows + i * *pitch));
  }
  return rows;
}

void multiply_one(const Call& call, const float* a, const float* b, float b_scale, float* out) {
  const eq_matmul_shape& s = call.s;
  const Format& f = call.format;
  const int padded = padded_columns(call), panels = padded / kPanel;
  const size_t stride = panel_values(call) * f.weight_bytes;
  char* packed = static_cast<char*>(scratch(Slot::kSecond, stride * panels));
  char* memory = static_cast<char*>(scratch(Slot::kScale, (size_t)padded * 12));
  float* scale = reinterpret_cast<float*>(memory);
  float* bias = scale + padded;
  int32_t* correction = reinterpret_cast<int32_t*>(bias + padded);
  if (call.qa)
    pack_codes(call, b, b_scale, packed, correction);
  else
    pack_float(call, b, reinterpret_cast<float*>(packed));
  for (int j = 0; j < padded; ++j) {
    scale[j] = call.qa ? unit_of(*call.qa) * b_scale * call.factor : call.factor;
    bias[j] = 0.0f;
    if (call.qa) correction[j] *= call.qa->zero_point;
  }
  ptrdiff_t pitch;
  const char* rows_base = prepare_rows(call, a, &pitch);
  const TileShape shape = choose_tile(f, s.m, panels, step_count(call));
  alignas(64) int32_t tile[kMaxRows * kMaxPanels * kPanel + kBatchBytes / 4];
  const void** rows = static_cast<const void**>(scratch(Slot::kRows, sizeof(void*) * (s.m + kMaxRows)));
  for (int i = 0; i < s.m + kMaxRows; ++i) rows[i] = rows_base + std::min(i, s.m - 1) * pitch;
  const ptrdiff_t segment = 0;
  for (int p = 0; p < panels; p += shape.panels) {
    const int width = std::min(shape.panels, panels - p), column = p * kPanel;
    const int most = std::max(1, kBatchBytes / (shape.rows * width * kPanel * 4));
    for (int row = 0; row < s.m;) {
      const int count = std::min(shape.rows, s.m - row);
      const int blocks = std::max(1, std::min(most, (s.m - row) / shape.rows));
      f.tiles[width][count]({rows + row, blocks, &segment, 1, step_count(call), packed + p * stride,
                             (ptrdiff_t)stride, call.depth, tile});
      EpilogueArgs e{tile, width * kPanel, count * blocks, std::min(width * kPanel, s.n - column), correction + column,
                     scale + column, bias + column, EQ_IDENTITY, true, true, nullptr, out + row * s.out_row + column, s.out_row};
      (f.is_float ? call.isa.epilogue_f32 : call.isa.epilogue_s32)(e);
      row += count * blocks;
    }
  }
}

}  // namespace

extern "C" int eq_matmul_f32(int isa, const eq_matmul_shape* shape, const float* a, const float* b,
                             const eq_quantizer* qa, const float* b_scales, int b_scale_count, int b_q_max,
                             float factor, float* out) {
  const Isa* found = find_isa(isa);
  if (!found) return -1;
  const eq_matmul_shape& s = *shape;
  if (s.b_row != 1 && s.b_col != 1) return fail("matmul: one axis of the second operand must be contiguous");
  const Format* format = found->f32;
  int depth = 0;
  if (qa) {
    if (b_q_max < 1 || b_q_max > 127) return fail("matmul: codes of the second operand must reach 1 to 127, but got %d", b_q_max);
    if (!b_scales || (b_scale_count != 1 && b_scale_count != s.inner))
      return fail("matmul: expected 1 or %d scales of the second operand, but got %d", s.inner, b_scale_count);
    if (!(qa->scale > 0.0f)) return fail("matmul: scale must be positive, but got %g", (double)qa->scale);
    const int top = qa->log2_levels > 0 ? 1 << (qa->log2_levels - 1) : qa->q_max;
    if (top > 32767 || qa->q_min < 0) return fail("matmul: activations reach %d, beyond 15 bits", top);
    if (check_coarse(*qa, "matmul") != 0) return -1;
    depth = 32767 / (2 * top * b_q_max);
    const bool narrow = top <= 255 && (depth > 0 || !found->u8_needs_depth);
    format = narrow ? byte_format(*found, s.k) : found->s16;
  }
  const Call call{*found, s, *format, qa, depth, b_q_max, factor};
  parallel_for(s.outer * s.inner, [&](int item) {
    const int outer = item / s.inner, inner = item % s.inner;
    multiply_one(call, a + outer * s.a_outer + inner * s.a_inner, b + outer * s.b_outer + inner * s.b_inner,
                 qa ? b_scales[b_scale_count == 1 ? 0 : inner] : 1.0f, out + outer * s.out_outer + inner * s.out_inner);
  });
  return 0;
}
