// AMX: AVX-512 VNNI with integer products in tiles. A tile of weights is 16 steps of one panel as it lies in memory.
#include <immintrin.h>

#include "isa.h"

namespace eq {
namespace {

#include "avx512_base.inl"

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;
constexpr int kTileSteps = kTileBytes / 4;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// GCC's tile intrinsics do not say that they read and write memory: stores before a load, and loads after a store, must
// be kept in their places by hand.
inline void memory_barrier(const void* seen) { __asm__ volatile("" : : "r"(seen) : "memory"); }

// Tiles 0 to 3: sums, upper rows then lower rows; 4 and 5: activations; 6 and 7: weights.
void configure(int upper, int lower) {
  TileConfig config;
  const int rows[8] = {upper, upper, lower, lower, upper, lower, kTileRows, kTileRows};
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = (uint8_t)(rows[i] ? rows[i] : 1);
    config.bytes[i] = kTileBytes;
  }
  memory_barrier(&config);
  _tile_loadconfig(&config);
}

// Whether rows are equally far from each other, as in a matrix.
inline bool is_regular(const void* const* rows, int count, ptrdiff_t* stride) {
  *stride = count > 1 ? (const char*)rows[1] - (const char*)rows[0] : kTileBytes;
  for (int r = 2; r < count; ++r)
    if ((const char*)rows[r] - (const char*)rows[r - 1] != *stride) return false;
  return true;
}

inline const char* gather(const void* const* rows, int count, ptrdiff_t offset, char* into) {
  for (int r = 0; r < count; ++r)
    _mm512_store_si512(into + r * kTileBytes, _mm512_loadu_si512((const char*)rows[r] + offset));
  memory_barrier(into);
  return into;
}

template <int ROWS, int PANELS>
void tile_amx_block(const TileArgs& t, const void* const* rows, char* tile) {
  constexpr int UPPER = ROWS < kTileRows ? ROWS : kTileRows, LOWER = ROWS - UPPER;
  ptrdiff_t stride;
  const bool regular = is_regular(rows, ROWS, &stride);
  alignas(64) char gathered[2][kTileRows * kTileBytes];
  _tile_zero(0);
  if (PANELS > 1) _tile_zero(1);
  if (LOWER) _tile_zero(2);
  if (LOWER && PANELS > 1) _tile_zero(3);
  const char* b = (const char*)t.panels;
  for (int s = 0; s < t.segment_count; ++s)
    for (ptrdiff_t k = 0; k < (ptrdiff_t)t.steps * 4; k += kTileBytes, b += kTileSteps * kTileBytes) {
      const ptrdiff_t offset = t.segments[s] + k;
      if (regular) {
        _tile_loadd(4, (const char*)rows[0] + offset, stride);
        if (LOWER) _tile_loadd(5, (const char*)rows[UPPER] + offset, stride);
      } else {
        _tile_loadd(4, gather(rows, UPPER, offset, gathered[0]), kTileBytes);
        if (LOWER) _tile_loadd(5, gather(rows + UPPER, LOWER, offset, gathered[1]), kTileBytes);
      }
      _tile_loadd(6, b, kTileBytes);
      _tile_dpbusd(0, 4, 6);
      if (LOWER) _tile_dpbusd(2, 5, 6);
      if (PANELS > 1) {
        _tile_loadd(7, b + t.panel_stride, kTileBytes);
        _tile_dpbusd(1, 4, 7);
        if (LOWER) _tile_dpbusd(3, 5, 7);
      }
    }
  constexpr ptrdiff_t pitch = PANELS * kPanel * 4;
  _tile_stored(0, tile, pitch);
  if (PANELS > 1) _tile_stored(1, tile + kPanel * 4, pitch);
  if (LOWER) _tile_stored(2, tile + UPPER * pitch, pitch);
  if (LOWER && PANELS > 1) _tile_stored(3, tile + UPPER * pitch + kPanel * 4, pitch);
  memory_barrier(tile);
}

template <int ROWS, int PANELS>
void tile_amx(const TileArgs& t) {
  configure(ROWS < kTileRows ? ROWS : kTileRows, ROWS > kTileRows ? ROWS - kTileRows : 0);
  each_block<ROWS, PANELS>(t, [&](const void* const* rows, char* tile) { tile_amx_block<ROWS, PANELS>(t, rows, tile); });
  _tile_release();
}

double peak_amx(int, int64_t rounds) {
  alignas(64) char zeros[kTileRows * kTileBytes] = {};
  configure(kTileRows, kTileRows);
  memory_barrier(zeros);
  _tile_loadd(4, zeros, kTileBytes);
  _tile_loadd(5, zeros, kTileBytes);
  _tile_loadd(6, zeros, kTileBytes);
  _tile_loadd(7, zeros, kTileBytes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t n = 0; n < rounds; n += 8) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_release();
  return (double)((rounds + 7) / 8) * 4 * kTileRows * kPanel * kTileBytes;
}

template <int PANELS, int ROWS>
void fill_rows(Format& f) {
  f.tiles[PANELS][ROWS] = tile_amx<ROWS, PANELS>;
  if constexpr (ROWS > 1) fill_rows<PANELS, ROWS - 1>(f);
}

Format make_amx() {
  Format f = make_format("u8s8-amx", 1, 4);
  f.align = kTileBytes;
  f.cycles = 1.0f / 16;
  f.load_cycles = 1.0f / 32;
  f.latency = 0.5f;
  f.max_panels = 2;
  f.max_rows[1] = f.max_rows[2] = 2 * kTileRows;
  fill_rows<1, 2 * kTileRows>(f);
  fill_rows<2, 2 * kTileRows>(f);
  f.peak = peak_amx;
  return f;
}

}  // namespace

const Isa* amx_isa() {
  static const Format f32 = make_f32(), u8 = make_amx(), u8_short = make_u8(), s16 = make_s16();
  static const Isa isa = [] {
    Isa made = base_isa();
    made.id = EQ_ISA_AMX_INT8;
    made.f32 = &f32;
    made.u8 = &u8;
    made.u8_short = &u8_short;
    made.s16 = &s16;
    return made;
  }();
  return &isa;
}

}  // namespace eq
