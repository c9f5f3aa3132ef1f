/* The native low-bit kernels of evoquant: a C face without Python and without torch.
 *
 * Activations are unsigned codes (u8 for ranges up to 255, s16 above) with a zero point, weights are signed 8-bit
 * integers that are stored in 1 to 8 bits and decoded once per panel. Accumulators are int32 and exact: every variant
 * gives the integers of reference.cpp, bit for bit. Images are NHWC, matrices row-major, k the last axis of a weight.
 *
 * Every function that can fail returns 0 or a negative number; eq_last_error() then says what was expected.
 */
#ifndef EVOQUANT_KERNELS_H
#define EVOQUANT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  EQ_ISA_REFERENCE = 0,
  EQ_ISA_AVX2 = 1,
  EQ_ISA_AVX_VNNI = 2,
  EQ_ISA_AVX512_VNNI = 3,
  EQ_ISA_AMX_INT8 = 4,
  EQ_ISA_NEON = 5,
  EQ_ISA_NEON_DOT = 6,
  EQ_ISA_COUNT = 7
} eq_isa;

typedef enum {
  EQ_IDENTITY = 0,
  EQ_RELU = 1,
  EQ_SILU = 2,
  EQ_GELU = 3,
  EQ_HARD_SWISH = 4,
  EQ_SIGMOID = 5,
  EQ_HARD_SIGMOID = 6,
  EQ_RELU6 = 7,
  EQ_ACTIVATION_COUNT = 8
} eq_activation;

typedef enum { EQ_OPERAND_F32 = 0, EQ_OPERAND_U8 = 1, EQ_OPERAND_S16 = 2, EQ_OPERAND_CODES_F32 = 3 } eq_operand;

/* How real activations become codes.
 *
 * uniform: code = clamp(round_half_even(x * (1 / scale)) + zero_point, q_min, q_max), NaN becomes q_min.
 * log2 (log2_levels > 0): x = scale * 2^-i for i in [0, log2_levels), below that 0; the integer that is multiplied is
 *   2^(log2_levels - 1 - i), so one unit is scale * 2^-(log2_levels - 1). The nearest level is taken, ties upwards.
 * levels (level_count > 0): as uniform with q_min 0, but then the code i becomes nearest[i], one of level_count codes;
 *   the zero point is one of them. What follows the table is padding for wide loads.
 */
typedef struct {
  float scale;
  int32_t zero_point;
  int32_t q_min;
  int32_t q_max;
  int32_t log2_levels;
  int32_t level_count;
  uint8_t nearest[256 + 4];
} eq_quantizer;

/* A matrix product (kernel 1x1, no padding) or a convolution over NHWC images. */
typedef struct {
  int32_t out_channels;
  int32_t in_channels; /* of all groups; k of a matrix product */
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
  int32_t operand;     /* eq_operand: what is multiplied */
  int32_t operand_max; /* largest activation code that can come; sets the depth of 16-bit accumulation */
  int32_t weight_bits; /* bits of one stored weight, 1 to 8; ignored for floating point */
  int32_t has_codebook;
  int8_t codebook[16]; /* value of each stored index, for weights of at most 4 bits */
  int32_t group_size;  /* input channels per weight scale, 0: one scale per output channel */
} eq_contraction_spec;

typedef struct eq_contraction eq_contraction;
typedef struct eq_depthwise eq_depthwise;

/* The machine. */
int eq_isa_built(int isa);
int eq_isa_supported(int isa);
const char* eq_isa_name(int isa);
int eq_isa_default(void); /* best of built and supported, capped by the environment variable EVOQUANT_ISA */
const char* eq_compiler(void);
const char* eq_version(void);
const char* eq_last_error(void);
/* From here to eq_uncap_cpuid CPUID answers the calling thread as a processor with this x86 instruction set at most. */
int eq_cap_cpuid(int isa);
void eq_uncap_cpuid(void);
void eq_set_threads(int threads);
int eq_threads(void);

/* Weight packing: indices of `bits` bits in planes of 4, 2 and 1 bit, 256 values in 32 * bits bytes. */
size_t eq_packed_bytes(size_t count, int bits);
int eq_pack_bits(const uint8_t* indices, size_t count, int bits, uint8_t* packed);
int eq_unpack_bits(const uint8_t* packed, size_t count, int bits, uint8_t* indices);

/* Contractions. codes: (out_channels, kernel_h, kernel_w, in_channels / groups); weights likewise in f32.
 * scales: (out_channels, in_channels / group_size) or (out_channels); bias: (out_channels) or NULL. */
int eq_contraction_create(eq_contraction** made, int isa, const eq_contraction_spec* spec, const int8_t* codes,
                          const float* weights, const float* scales, const float* bias);
/* Factors (out_channels) of what the activation function gives, before a residual is added. */
void eq_contraction_set_gains(eq_contraction* handle, const float* gains);
void eq_contraction_destroy(eq_contraction* handle);
size_t eq_contraction_bytes(const eq_contraction* handle);
const char* eq_contraction_format(const eq_contraction* handle);
int eq_contraction_depth(const eq_contraction* handle);

/* Bytes of codes in place of real values, where not NULL: x in codes of the quantizer (u8 operands only), out in codes
 * of `to` (not for weights with a scale per group). They are the codes that a kernel of real values would make. */
typedef struct {
  const uint8_t* x;
  uint8_t* out;
  const eq_quantizer* to;
} eq_code_tensors;

/* out (m, n) = gains * activation(scale * (codes - zero_point) . weights + bias) + residual; f32 or `codes` in and out. */
int eq_gemm_f32(const eq_contraction* handle, const float* x, ptrdiff_t ldx, int m, const eq_quantizer* quantizer,
                int activation, const float* residual, float* out, const eq_code_tensors* codes);
/* The accumulators alone: out (m, n) = codes . weights, no zero point. codes are u8 or s16 as the handle says. */
int eq_gemm_s32(const eq_contraction* handle, const void* codes, int m, int32_t* out);
/* x (h, w, in_channels) to out (out_h, out_w, out_channels). */
int eq_conv_f32(const eq_contraction* handle, const float* x, int h, int w, const eq_quantizer* quantizer,
                int activation, const float* residual, float* out, const eq_code_tensors* codes);
int eq_conv_s32(const eq_contraction* handle, const void* codes, int h, int w, int zero_point, int32_t* out);

/* Depthwise convolution; codes or weights: (kernel_h, kernel_w, channels). Exactly one of both is not NULL. */
int eq_depthwise_create(eq_depthwise** made, int isa, const eq_contraction_spec* spec, const int8_t* codes,
                        const float* weights, const float* scales, const float* bias);
void eq_depthwise_destroy(eq_depthwise* handle);
size_t eq_depthwise_bytes(const eq_depthwise* handle);
int eq_depthwise_f32(const eq_depthwise* handle, const float* x, int h, int w, const eq_quantizer* quantizer,
                     int activation, const float* residual, float* out, const eq_code_tensors* codes);

/* Strides in elements of a batch of matrices (outer, inner, m, n of two batch axes). */
typedef struct {
  int32_t outer, inner, m, n, k;
  ptrdiff_t a_outer, a_inner, a_row;        /* a (m, k), k contiguous */
  ptrdiff_t b_outer, b_inner, b_row, b_col; /* b (k, n): b_row between k, b_col between n; one of both is 1 */
  ptrdiff_t out_outer, out_inner, out_row;  /* out (m, n), n contiguous */
} eq_matmul_shape;

/* Batched product of two activations; the second is symmetric with codes in [-q_max, q_max] at most 127.
 * b_scales: one scale, or one per inner index when b_scale_count == inner. Null quantizers: f32. */
int eq_matmul_f32(int isa, const eq_matmul_shape* shape, const float* a, const float* b, const eq_quantizer* qa,
                  const float* b_scales, int b_scale_count, int b_q_max, float factor, float* out);

/* One of the two products of an attention: as eq_matmul_f32 takes it, `quantizer` void where quantized is 0. */
typedef struct {
  eq_matmul_shape shape;
  int32_t quantized;
  eq_quantizer quantizer;
  const float* b_scales;
  int32_t b_scale_count, b_q_max;
  float factor;
} eq_product;

/* out = softmax(q . k) . v for a batch of heads, without the scores in memory; the numbers are those of eq_matmul_f32,
 * eq_softmax and eq_matmul_f32. Strides: q is a and k is b of `scores`, v is b and out is out of `weighted`.
 * With `relative` the second product takes each row of the softmax in units of its greatest value: exp(s - max), which is
 * 1 somewhere in every row, and its results are divided by the sum of the row. The same in real numbers, other codes.
 * To time them apart, `part` leaves out what follows the softmax, or all up to it; what is computed is then void. */
enum { EQ_ATTENTION_WHOLE = 0, EQ_ATTENTION_SCORES = 1, EQ_ATTENTION_WEIGHTED = 2 };
int eq_attention_f32(int isa, const eq_product* scores, const eq_product* weighted, const float* q, const float* k,
                     const float* v, int relative, float* out, int part);

/* Tensors. */
int eq_quantize_u8(int isa, const float* x, size_t count, const eq_quantizer* quantizer, uint8_t* out);
int eq_quantize_s16(int isa, const float* x, size_t count, const eq_quantizer* quantizer, int16_t* out);
/* Real values again, what kernels compute with: the integer less its zero point, times the real value of one unit.
 * What is NaN stays so. One thread; out may be x. */
int eq_fake_quantize(int isa, const float* x, size_t count, const eq_quantizer* quantizer, float* out);
int eq_dequantize_u8(int isa, const uint8_t* codes, size_t count, const eq_quantizer* quantizer, float* out);
/* Fixed-point requantisation of accumulators (rows, channels); multiplier in [2^30, 2^31) or 0, shift in [-31, 31]:
 * code = clamp(rounding_shift(doubling_high_mul(acc + bias), shift) + zero_point), then an optional 256-entry table. */
int eq_requantize(int isa, const int32_t* acc, int rows, int channels, const int32_t* bias, const int32_t* multiplier,
                  const int8_t* shift, const eq_quantizer* to, const uint8_t* table, uint8_t* out);
/* The same with a pure shift, round half up: (acc + bias + (1 << (shift - 1))) >> shift. */
int eq_requantize_shift(int isa, const int32_t* acc, int rows, int channels, const int32_t* bias, const int8_t* shift,
                        const eq_quantizer* to, const uint8_t* table, uint8_t* out);
int eq_lookup_u8(int isa, const uint8_t* codes, size_t count, const uint8_t* table, uint8_t* out);
/* Integer residual add of two tensors of codes, exact up to one rounding to `to`. */
int eq_add_u8(int isa, const uint8_t* a, const eq_quantizer* qa, const uint8_t* b, const eq_quantizer* qb,
              size_t count, const eq_quantizer* to, uint8_t* out);

/* Floating-point operations that remain; in and out may be the same buffer. */
int eq_activate(int isa, int activation, const float* x, size_t count, float* out);
int eq_add(int isa, const float* a, const float* b, size_t count, float* out);
int eq_mul(int isa, const float* a, const float* b, size_t count, float* out);
int eq_scale_rows(int isa, const float* x, size_t rows, int channels, const float* scale, const float* shift,
                  float* out);
int eq_softmax(int isa, const float* x, size_t rows, int columns, float* out);
int eq_layer_norm(int isa, const float* x, size_t rows, int columns, const float* weight, const float* bias,
                  float epsilon, float* out);
/* The same with one mean and one variance of all rows for each group of neighbouring columns. */
int eq_group_norm(int isa, const float* x, size_t rows, int columns, int groups, const float* weight, const float* bias,
                  float epsilon, float* out);
int eq_mean_rows(int isa, const float* x, int rows, int channels, float* out);
int eq_max_pool(int isa, const float* x, int h, int w, int channels, int kernel, int stride, int pad, float* out);

/* Rounding of weights, dense matrices of shape (rows, columns) in batches.
 *
 * The points of an element are scale times an ascending table (half way: to the lower one), or scale times the integers
 * between two bounds (half to even), the same for all elements or, with `lowers` and `uppers`, of each element. */
typedef struct {
  const float* scale; /* (groups, rows, columns) */
  const float* table;
  int32_t table_size;
  float lower, upper;
  const float *lowers, *uppers; /* (groups, rows, columns), or null */
} eq_rounding_points;
/* Rounds column after column; the error of each goes to those behind it by its row of an upper Cholesky factor,
 * (batches, columns, columns), of the inverse of the second moments of the inputs. Batch b has the points of group
 * b % groups. */
int eq_round_compensated(int isa, float* weight, int64_t batches, int rows, int columns, const float* factors,
                         const eq_rounding_points* points, int64_t groups);
/* Moves rounded weights, one column at a time, to the points with the least square error of the output. `gradient` is
 * (weight - target) hessian, the Hessian (groups, columns, columns). */
int eq_revise_rounding(int isa, float* weight, const float* gradient, int64_t groups, int rows, int columns,
                       const float* hessian, const eq_rounding_points* points, int sweeps);

/* The `count` integers in [0, steps) with the least weighted square error of values in bins, one for each integer: their
 * weight, and the sums of weight times value and times square. `levels` ascend; the error goes to `cost`. */
int eq_best_levels(const double* mass, const double* first, const double* second, int steps, int count, int32_t* levels,
                   double* cost);

/* Runs `instructions` independent multiply-accumulate sequences of a format in registers; gives MACs executed. */
double eq_peak_macs(int isa, const char* format, int depth, int64_t rounds);

/* The specification: plain loops, one thread (reference.cpp). */
void eq_ref_gemm_u8(const uint8_t* a, const int8_t* w, int m, int n, int k, int32_t* out);
void eq_ref_gemm_s16(const int16_t* a, const int8_t* w, int m, int n, int k, int32_t* out);
void eq_ref_gemm_float(const float* a, const float* w, int m, int n, int k, float* out);
void eq_ref_conv_u8(const uint8_t* x, const int8_t* w, int h, int width, const eq_contraction_spec* spec,
                    int zero_point, int32_t* out);
void eq_ref_conv_float(const float* x, const float* w, int h, int width, const eq_contraction_spec* spec, float* out);
void eq_ref_quantize(const float* x, size_t count, const eq_quantizer* quantizer, int32_t* out);
void eq_ref_epilogue(const int32_t* acc, int m, int n, const int32_t* correction, const float* scale,
                     const float* bias, float* out);
int32_t eq_ref_requantize(int32_t acc, int32_t multiplier, int shift);
int32_t eq_ref_requantize_shift(int32_t acc, int shift);

#ifdef __cplusplus
}
#endif
#endif
