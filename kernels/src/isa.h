// What one instruction set offers to the drivers: tiles of a contraction, epilogues and loops over tensors.
//
// A contraction multiplies rows of activations by panels of kPanel weight columns. A row is a pointer plus `segments`,
// byte offsets of runs that are contiguous in memory: one run for a matrix product, kernel_h runs for a convolution.
// A panel holds its weights in the order [segment][step][column][k within the step].
#pragma once

#include <cstddef>
#include <cstdint>

#include "evoquant/kernels.h"

// For functions of vectors: a call would take every one out of its register.
#define EQ_INLINE inline __attribute__((always_inline))

namespace eq {

constexpr int kPanel = 16;
constexpr int kMaxRows = 32;
constexpr int kLanes = 16;  // rows of a weight that are rounded side by side
constexpr float kLargestInteger = 4194304.0f;  // of a rounded weight
constexpr int kMaxPanels = 4;
constexpr int kBatchBytes = 16384;  // of the results of one call of a tile

struct TileArgs {
  const void* const* rows;        // blocks times as many pointers as the tile has rows
  int blocks;                     // tiles below each other
  const ptrdiff_t* segments;      // byte offsets
  int segment_count;
  int steps;                      // of one segment
  const void* panels;             // decoded weights
  ptrdiff_t panel_stride;         // bytes
  int depth;                      // 16-bit accumulations that are safe
  void* tile;                     // int32 or float [blocks * rows][panels * kPanel], 64-byte aligned
  const int16_t* start = nullptr;  // what the 16-bit sums of a panel begin with, [each depth steps][2 * kPanel]; or null
  ptrdiff_t start_stride = 0;      // bytes from panel to panel
};
using TileFn = void (*)(const TileArgs&);

// How one pair of operand types is multiplied.
struct Format {
  const char* name;
  int operand_bytes;  // of one activation
  int weight_bytes;   // of one weight as tiles take it
  void (*expand)(const int8_t* values, size_t count, void* out);  // bytes of a panel to that; null: as they are
  bool shifted;       // whether a row of zeros gives sums other than zero, which are taken off again
  int step;           // k values per step
  int align;          // k values that a run is padded to, a multiple of step
  bool is_float;
  float cycles;       // rough cost of a step, to rank tile shapes: of one row times one panel,
  float load_cycles;  // of one load,
  float latency;      // and at least this much
  int max_panels;
  int max_rows[kMaxPanels + 1];
  TileFn tiles[kMaxPanels + 1][kMaxRows + 1];  // [panels][rows]
  TileFn stored_row;  // one row and one panel of bytes, where expanded weights would take longer to load; or null
  double (*peak)(int depth, int64_t rounds);   // MACs executed by the instruction sequence alone
};

// Quantisation with everything precomputed: y = clamp(x * inverse, low, high), rounded, plus zero_point.
struct QuantArgs {
  float inverse, low, high;
  int32_t zero_point;
  int32_t log2_levels;
  const uint8_t* nearest;  // of the quantizer: the level of each code; or null
};

struct EpilogueArgs {
  const void* tile;
  int stride;
  int rows;
  int columns;
  const int32_t* correction;  // padded to whole panels; null for floating point
  const float* scale;         // padded; null: 1
  const float* bias;          // padded
  int activation;
  bool first, last;           // of the scale groups along k: first overwrites, last adds bias and activates
  const float* residual;      // like out, or null
  float* out;
  ptrdiff_t ldo;
  uint8_t* codes = nullptr;   // instead of out: the result as codes of `to`; only where both first and last
  const QuantArgs* to = nullptr;
  const float* gains = nullptr;  // padded, or null: factors of what the activation function gives
};

struct DepthwiseArgs {
  const float* const* rows;  // kernel_h pointers to padded rows of codes
  const float* weights;      // [kernel_h * kernel_w][channels padded]
  ptrdiff_t weight_stride;
  int kernel_h, kernel_w, stride_w, dilation_w, channels, out_w;
  const float* scale;
  const float* bias;
  int activation;
  const float* residual;
  float* out;
  uint8_t* codes;       // instead of out: the result as codes of `to`
  const QuantArgs* to;
};

// The points that elements may take; arrays have one entry for each element, padded to kLanes.
struct GridRow {
  const float* scale;
  const float* table;    // ascending; or null: integers from lower to upper
  const float* middles;  // between neighbours in the table
  int table_size;
  float lower, upper;
  const float* lowers;   // instead of lower; or null
  const float* uppers;
};

struct Isa {
  int id;
  const Format* f32;
  const Format* u8;        // depth >= 1 where 16-bit accumulation is used
  const Format* u8_short;  // instead of u8 where padding would more than double a run; or null
  const Format* s16;
  const Format* u8_full;   // exact for all codes of 8 bits where u8 needs depth >= 1; or null
  void (*quantize_u8)(const float*, size_t, const QuantArgs&, uint8_t*);
  void (*quantize_s8)(const float*, size_t, const QuantArgs&, int8_t*);
  void (*quantize_s16)(const float*, size_t, const QuantArgs&, int16_t*);
  void (*quantize_f32)(const float*, size_t, const QuantArgs&, float*);  // code minus zero point
  void (*dequantize_u8)(const uint8_t*, size_t, float scale, int32_t zero_point, float*);
  void (*decode)(const uint8_t* packed, size_t count, int bits, const int8_t* codebook, int8_t* out);
  void (*widen_u8)(const uint8_t*, size_t, int16_t*);
  void (*epilogue_s32)(const EpilogueArgs&);
  void (*epilogue_f32)(const EpilogueArgs&);
  void (*depthwise)(const DepthwiseArgs&);
  void (*requantize)(const int32_t*, int, int, const int32_t*, const int32_t*, const int8_t*, const QuantArgs&,
                     const uint8_t*, uint8_t*);
  void (*requantize_shift)(const int32_t*, int, int, const int32_t*, const int8_t*, const QuantArgs&, const uint8_t*,
                           uint8_t*);
  void (*lookup)(const uint8_t*, size_t, const uint8_t*, uint8_t*);
  void (*add_u8)(const uint8_t*, float, int, const uint8_t*, float, int, size_t, const QuantArgs&, uint8_t*);
  void (*nearest_points)(const float* values, int count, const GridRow&, float* points);
  void (*add_outers)(const float* amounts, int amount_count, const float* weights, ptrdiff_t pitch, int count, float* to);
  bool (*revise_row)(float* values, float* slope, const float* hessian, const float* per_step, int columns, const GridRow&);
  void (*activate)(int, const float*, size_t, float*);
  void (*add)(const float*, const float*, size_t, float*);
  void (*mul)(const float*, const float*, size_t, float*);
  void (*scale_rows)(const float*, size_t, int, const float*, const float*, float*);
  void (*softmax)(const float*, size_t, int, float*);
  void (*exponentials)(const float*, size_t rows, int columns, float* out, float* inverse_sums);
  void (*layer_norm)(const float*, size_t, int, const float*, const float*, float, float*);
  void (*group_norm)(const float*, size_t, int, int, const float*, const float*, float, float*);
  void (*mean_rows)(const float*, int, int, float*);
  void (*pack_rows4)(const int8_t* codes, ptrdiff_t row, int columns, int steps, int8_t* panel);
  void (*pack_columns4)(const int8_t* codes, ptrdiff_t row, int steps, int8_t* panel);
  void (*pack_rows2)(const int8_t* codes, ptrdiff_t row, int columns, int steps, int16_t* panel);
  void (*pack_columns2)(const int8_t* codes, ptrdiff_t row, int steps, int16_t* panel);
};

const Isa* portable_isa();
const Isa* avx2_isa();
const Isa* avx_vnni_isa();
const Isa* avx512_vnni_isa();
const Isa* amx_isa();
const Isa* neon_isa();
const Isa* neon_dot_isa();

// The chosen table, or null with eq_last_error set.
const Isa* find_isa(int isa);

int fail(const char* format, ...);

}  // namespace eq
