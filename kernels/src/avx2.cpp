// AVX2 with FMA. Codes below 8 bits are multiplied by vpmaddubsw, whose 16-bit results are added as often as the
// operands allow before they are widened; 8 by 8 bits takes 16-bit operands and vpmaddwd.
#include <immintrin.h>

#include "isa.h"

namespace eq {
namespace {

#include "avx2_base.inl"

// GCC moves the products of many rows together and then spills every sum, so the steps are written down in order.
inline __m256i broadcast_now(const char* p) {
  __m256i x;
  __asm__ volatile("vpbroadcastd %1, %0" : "=x"(x) : "m"(*(const int*)p));
  return x;
}

inline __m256i product_now(__m256i x, const char* w) {
  __m256i y;
  __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(y) : "x"(x), "m"(*(const __m256i*)w));
  return y;
}

inline void add_product_now(__m256i& sum, __m256i x, const char* w) {
  __m256i y;
  __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(y) : "x"(x), "m"(*(const __m256i*)w));
}

inline void add_product_now(__m256i& sum, __m256i x, __m256i w) {
  __m256i y;
  __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(y) : "x"(x), "x"(w));
}

inline void add_widened_now(__m256i& sum, __m256i part, const __m256i& ones) {
  __asm__ volatile("vpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "+x"(part) : "m"(ones));
}

alignas(32) const int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// DEPTH steps are added in 16 bits, row by row, then widened; for small depths.
template <int ROWS, int PANELS, int DEPTH>
inline void tile_short_block(const TileArgs& t, const void* const* rows, char* tile) {
  constexpr int V = PANELS * 2;
  const __m256i& ones = *(const __m256i*)kOnes;
  __m256i sums[ROWS][V];
  EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = _mm256_setzero_si256();
  const char* b = (const char*)t.panels;
  const ptrdiff_t stride = t.panel_stride;
  for (int s = 0; s < t.segment_count; ++s) {
    const char* a[ROWS];
    EQ_UNROLL for (int r = 0; r < ROWS; ++r) a[r] = (const char*)rows[r] + t.segments[s];
    const ptrdiff_t end = (ptrdiff_t)t.steps * 4;
    ptrdiff_t k = 0;
    for (; k + 4 * DEPTH <= end; k += 4 * DEPTH, b += 64 * DEPTH) {
      EQ_UNROLL for (int r = 0; r < ROWS; ++r) {
        __m256i part[V];
        EQ_UNROLL for (int d = 0; d < DEPTH; ++d) {
          const __m256i x = broadcast_now(a[r] + k + 4 * d);
          EQ_UNROLL for (int v = 0; v < V; ++v) {
            const char* w = b + d * 64 + v / 2 * stride + v % 2 * 32;
            if (d == 0)
              part[v] = product_now(x, w);
            else
              add_product_now(part[v], x, w);
          }
        }
        EQ_UNROLL for (int v = 0; v < V; ++v) add_widened_now(sums[r][v], part[v], ones);
      }
    }
    for (; k < end; k += 4, b += 64)
      EQ_UNROLL for (int r = 0; r < ROWS; ++r) {
        const __m256i x = broadcast_now(a[r] + k);
        EQ_UNROLL for (int v = 0; v < V; ++v) add_widened_now(sums[r][v], product_now(x, b + v / 2 * stride + v % 2 * 32), ones);
      }
  }
  __m256i* out = (__m256i*)tile;
  EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int v = 0; v < V; ++v) _mm256_store_si256(out + r * V + v, sums[r][v]);
}

// All sums stay 16 bits wide for t.depth steps and are then widened into the tile; for large depths, and for sums that
// do not begin at zero.
template <int ROWS, int PANELS>
inline void tile_long_block(const TileArgs& t, const void* const* rows, char* tile) {
  constexpr int V = PANELS * 2;
  __m256i* out = (__m256i*)tile;
  bool first = true;
  const char* b = (const char*)t.panels;
  const ptrdiff_t stride = t.panel_stride;
  const char* start = (const char*)t.start;
  for (int s = 0; s < t.segment_count; ++s) {
    const char* a[ROWS];
    EQ_UNROLL for (int r = 0; r < ROWS; ++r) a[r] = (const char*)rows[r] + t.segments[s];
    for (int done = 0; done < t.steps; done += t.depth) {
      const ptrdiff_t end = 4 * (ptrdiff_t)(done + t.depth < t.steps ? done + t.depth : t.steps);
      __m256i sums[ROWS][V];
      if (start) {
        EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int v = 0; v < V; ++v)
          sums[r][v] = _mm256_loadu_si256((const __m256i*)(start + v / 2 * t.start_stride + v % 2 * 32));
        start += 64;
      } else {
        EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = _mm256_setzero_si256();
      }
      for (ptrdiff_t k = 4 * (ptrdiff_t)done; k < end; k += 4, b += 64) {
        __m256i w[V];
        EQ_UNROLL for (int v = 0; v < V; ++v) w[v] = _mm256_load_si256((const __m256i*)(b + v / 2 * stride + v % 2 * 32));
        EQ_UNROLL for (int r = 0; r < ROWS; ++r) {
          const __m256i x = broadcast_now(a[r] + k);
          EQ_UNROLL for (int v = 0; v < V; ++v) add_product_now(sums[r][v], x, w[v]);
        }
      }
      const __m256i ones = *(const __m256i*)kOnes;
      EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int v = 0; v < V; ++v) {
        const __m256i wide = _mm256_madd_epi16(sums[r][v], ones);
        __m256i* at = out + r * V + v;
        _mm256_store_si256(at, first ? wide : _mm256_add_epi32(_mm256_load_si256(at), wide));
      }
      first = false;
    }
  }
}

template <int ROWS, int PANELS, int DEPTH>
inline void tile_short(const TileArgs& t) {
  each_block<ROWS, PANELS>(t, [&](const void* const* rows, char* tile) { tile_short_block<ROWS, PANELS, DEPTH>(t, rows, tile); });
}

template <int ROWS, int PANELS>
inline void tile_long(const TileArgs& t) {
  each_block<ROWS, PANELS>(t, [&](const void* const* rows, char* tile) { tile_long_block<ROWS, PANELS>(t, rows, tile); });
}

template <int ROWS, int PANELS>
void tile_u8(const TileArgs& t) {
  if (t.start) return tile_long<ROWS, PANELS>(t);
  switch (t.depth) {
    case 1: return tile_short<ROWS, PANELS, 1>(t);
    case 2: return tile_short<ROWS, PANELS, 2>(t);
    case 4: return tile_short<ROWS, PANELS, 4>(t);
    default: return tile_long<ROWS, PANELS>(t);
  }
}

template <int DEPTH>
double peak_u8_depth(int64_t rounds) {
  alignas(32) static const char w[32] = {};
  const __m256i& ones = *(const __m256i*)kOnes;
  __m256i sums[8];
  EQ_UNROLL for (int i = 0; i < 8; ++i) sums[i] = _mm256_setzero_si256();
  const __m256i x = broadcast_now(w), y = broadcast_now(w);
  for (int64_t n = 0; n < rounds; ++n)
    EQ_UNROLL for (int i = 0; i < 8; i += 2) {
      __m256i first = product_now(x, w), second = product_now(x, w);
      for (int d = 1; d < DEPTH; ++d) {
        add_product_now(first, x, y);
        add_product_now(second, x, y);
      }
      add_widened_now(sums[i], first, ones);
      add_widened_now(sums[i + 1], second, ones);
    }
  EQ_UNROLL for (int i = 0; i < 8; ++i) __asm__ volatile("" : : "x"(sums[i]));
  return (double)rounds * 8 * 32 * DEPTH;
}

double peak_u8(int depth, int64_t rounds) {
  if (depth <= 1) return peak_u8_depth<1>(rounds);
  if (depth < 4) return peak_u8_depth<2>(rounds);
  if (depth < 8) return peak_u8_depth<4>(rounds);
  return depth < 32 ? peak_u8_depth<8>(rounds / 2) : peak_u8_depth<32>(rounds / 8);
}

Format make_u8() {
  Format f{};
  f.name = "u8s8";
  f.operand_bytes = f.weight_bytes = 1;
  f.step = f.align = 4;
  f.cycles = 1.6f;
  EQ_TILES(f, tile_u8)
  f.peak = peak_u8;
  return f;
}

}  // namespace

const Isa* avx2_isa() {
  static const Format f32 = make_f32(), u8 = make_u8(), s16 = make_s16();
  static const Isa isa = [] {
    Isa made = base_isa();
    made.id = EQ_ISA_AVX2;
    made.f32 = &f32;
    made.u8 = &u8;
    made.s16 = &s16;
    made.u8_needs_depth = true;
    return made;
  }();
  return &isa;
}

}  // namespace eq
