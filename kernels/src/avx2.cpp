// AVX2 with FMA. Bytes are multiplied by vpmaddubsw, whose 16-bit results are added as often as the operands allow
// before they are widened; at 8 by 8 bits two products alone can saturate, so there they are moved (u8_full).
#include <immintrin.h>

#include "isa.h"

namespace eq {
namespace {

#include "avx2_base.inl"

// Where a block is inlined, GCC takes what does not change out of its loops, and then spills sums.
#define EQ_BLOCK __attribute__((noinline))

// GCC moves the products of many rows together and then spills every sum, so the steps are written down in order.
inline __m256i broadcast_now(const char* p) {
  __m256i x;
  __asm__ volatile("vpbroadcastd %1, %0" : "=x"(x) : "m"(*(const int*)p));
  return x;
}

// A pointer in a register, not a sum that is made again at every step.
inline const char* pointer_now(const char* p) {
  __asm__ volatile("" : "+r"(p));
  return p;
}

inline __m256i product_now(__m256i x, __m256i w) {
  __m256i y;
  __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(y) : "x"(x), "x"(w));
  return y;
}

inline void add_product_now(__m256i& sum, __m256i x, __m256i w) {
  __m256i y;
  __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(y) : "x"(x), "x"(w));
}

// The products of four bytes and a panel. Two registers beside sums and weights: twelve sums leave no more.
inline void add_products_now(__m256i* sums, const char* bytes, const __m256i* w) {
  __m256i x, y;
  __asm__ volatile(
      "vpbroadcastd %4, %2\n\tvpmaddubsw %5, %2, %3\n\tvpmaddubsw %6, %2, %2\n\tvpaddw %3, %0, %0\n\tvpaddw %2, %1, %1"
      : "+x"(sums[0]), "+x"(sums[1]), "=&x"(x), "=&x"(y) : "m"(*(const int*)bytes), "x"(w[0]), "x"(w[1]));
}

inline void add_widened_now(__m256i& sum, __m256i part, const __m256i& ones) {
  __asm__ volatile("vpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "+x"(part) : "x"(ones));
}

// DEPTH steps are added in 16 bits, then widened; for small depths. A panel at a time, and so few rows that all sums stay
// in registers.
template <int ROWS, int DEPTH>
EQ_BLOCK void tile_short_panel(const TileArgs& t, const void* const* rows, const char* b, __m256i* out, int pitch) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[ROWS][2];
  EQ_UNROLL for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  const auto load = [&](int step, int v) { return _mm256_load_si256((const __m256i*)(b + step * 64) + v); };
  for (int s = 0; s < t.segment_count; ++s) {
    const char* a[ROWS];
    EQ_UNROLL for (int r = 0; r < ROWS; ++r) a[r] = pointer_now((const char*)rows[r] + t.segments[s]);
    const ptrdiff_t end = (ptrdiff_t)t.steps * 4;
    ptrdiff_t k = 0;
    for (; k + 4 * DEPTH <= end; k += 4 * DEPTH, b += 64 * DEPTH) {
      __m256i parts[ROWS][2];
      EQ_UNROLL for (int d = 0; d < DEPTH; ++d) {
        const __m256i w[2] = {load(d, 0), load(d, 1)};
        EQ_UNROLL for (int r = 0; r < ROWS; ++r) {
          const char* bytes = a[r] + k + 4 * d;
          if (d == 0) {
            const __m256i x = broadcast_now(bytes);
            EQ_UNROLL for (int v = 0; v < 2; ++v) parts[r][v] = product_now(x, w[v]);
          } else {
            add_products_now(parts[r], bytes, w);
          }
          if (d == DEPTH - 1) EQ_UNROLL for (int v = 0; v < 2; ++v) add_widened_now(sums[r][v], parts[r][v], ones);
        }
      }
    }
    for (; k < end; k += 4, b += 64)
      EQ_UNROLL for (int r = 0; r < ROWS; ++r) {
        const __m256i x = broadcast_now(a[r] + k);
        EQ_UNROLL for (int v = 0; v < 2; ++v) add_widened_now(sums[r][v], product_now(x, load(0, v)), ones);
      }
  }
  EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int v = 0; v < 2; ++v)
    _mm256_store_si256(out + (ptrdiff_t)r * pitch + v, sums[r][v]);
}

// Rows of a block in parts of at most MOST.
template <int ROWS, int PANELS, int DEPTH, int MOST>
inline void tile_short_rows(const TileArgs& t, const void* const* rows, __m256i* out) {
  constexpr int HEAD = ROWS < MOST ? ROWS : MOST;
  EQ_UNROLL for (int p = 0; p < PANELS; ++p)
    tile_short_panel<HEAD, DEPTH>(t, rows, (const char*)t.panels + p * t.panel_stride, out + 2 * p, 2 * PANELS);
  if constexpr (ROWS > HEAD) tile_short_rows<ROWS - HEAD, PANELS, DEPTH, MOST>(t, rows + HEAD, out + HEAD * 2 * PANELS);
}

// All sums stay 16 bits wide for t.depth steps and are then widened into the tile; for large depths, and for sums that
// do not begin at zero.
template <int ROWS, int PANELS>
EQ_BLOCK void tile_long_block(const TileArgs& t, const void* const* rows, char* tile) {
  constexpr int V = PANELS * 2;
  __m256i* out = (__m256i*)tile;
  bool first = true;
  const char* b = (const char*)t.panels;
  const ptrdiff_t stride = t.panel_stride;
  const char* start = (const char*)t.start;
  for (int s = 0; s < t.segment_count; ++s) {
    const char* a[ROWS];
    EQ_UNROLL for (int r = 0; r < ROWS; ++r) a[r] = pointer_now((const char*)rows[r] + t.segments[s]);
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
          EQ_UNROLL for (int v = 0; v < V; v += 2) add_products_now(sums[r] + v, a[r] + k, w + v);
        }
      }
      const __m256i ones = _mm256_set1_epi16(1);
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
  constexpr int MOST = DEPTH == 1 ? 5 : 3;
  each_block<ROWS, PANELS>(t, [&](const void* const* rows, char* tile) {
    tile_short_rows<ROWS, PANELS, DEPTH, MOST>(t, rows, (__m256i*)tile);
  });
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

// Two products of codes c in [0, 255] and weights w in [-128, 127] have no room in 16 bits. But with |w| as the unsigned
// operand of vpmaddubsw and, as the signed one, c - 128 where w >= 0 and 127 - c where it is negative, they lie in
// [-32768, 32512], and the products are w * c less 128 * w or 127 * w, which a row of zeros gives too. The signed operand
// is one exclusive or of the code: with 0x80 or 0x7f.
inline __m256i mask_of(__m256i w) { return _mm256_xor_si256(_mm256_set1_epi8((char)0x80), _mm256_cmpgt_epi8(_mm256_setzero_si256(), w)); }

// Vectors of magnitudes and of masks in turn.
void split_signs(const int8_t* values, size_t count, void* out) {
  __m256i* to = (__m256i*)out;
  for (size_t i = 0; i < count; i += 32, to += 2) {
    const __m256i w = _mm256_loadu_si256((const __m256i*)(values + i));
    _mm256_storeu_si256(to, _mm256_abs_epi8(w));
    _mm256_storeu_si256(to + 1, mask_of(w));
  }
}

// The products of a step and a panel; `w` and `masks` as split_signs has them, masks[2] belongs to the second vector.
inline void add_moved_now(__m256i* sums, __m256i x, __m256i w0, __m256i w1, const __m256i* masks, const __m256i& ones) {
  __m256i y0, y1;
  __asm__ volatile(
      "vpxor %7, %4, %2\n\tvpxor %8, %4, %3\n\tvpmaddubsw %2, %5, %2\n\tvpmaddubsw %3, %6, %3\n\t"
      "vpmaddwd %9, %2, %2\n\tvpmaddwd %9, %3, %3\n\tvpaddd %2, %0, %0\n\tvpaddd %3, %1, %1"
      : "+x"(sums[0]), "+x"(sums[1]), "=&x"(y0), "=&x"(y1)
      : "x"(x), "x"(w0), "x"(w1), "m"(masks[0]), "m"(masks[2]), "x"(ones));
}

template <int ROWS>
EQ_BLOCK void tile_full_block(const TileArgs& t, const void* const* rows, char* tile) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[ROWS][2];
  EQ_UNROLL for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  const __m256i* b = (const __m256i*)t.panels;
  for (int s = 0; s < t.segment_count; ++s) {
    const char* a[ROWS];
    EQ_UNROLL for (int r = 0; r < ROWS; ++r) a[r] = pointer_now((const char*)rows[r] + t.segments[s]);
    for (ptrdiff_t k = 0; k < (ptrdiff_t)t.steps * 4; k += 4, b += 4) {
      const __m256i w0 = _mm256_load_si256(b), w1 = _mm256_load_si256(b + 2);
      EQ_UNROLL for (int r = 0; r < ROWS; ++r) add_moved_now(sums[r], broadcast_now(a[r] + k), w0, w1, b + 1, ones);
    }
  }
  __m256i* out = (__m256i*)tile;
  EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int v = 0; v < 2; ++v) _mm256_store_si256(out + r * 2 + v, sums[r][v]);
}

template <int ROWS>
void tile_full(const TileArgs& t) {
  each_block<ROWS, 1>(t, [&](const void* const* rows, char* tile) { tile_full_block<ROWS>(t, rows, tile); });
}

void stored_row_full(const TileArgs& t) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  const __m256i* b = (const __m256i*)t.panels;
  for (int s = 0; s < t.segment_count; ++s) {
    const char* a = (const char*)t.rows[0] + t.segments[s];
    for (int step = 0; step < t.steps; ++step, a += 4, b += 2) {
      const __m256i x = broadcast_now(a);
      for (int v = 0; v < 2; ++v) {
        const __m256i w = _mm256_load_si256(b + v), y = _mm256_xor_si256(x, mask_of(w));
        sums[v] = _mm256_add_epi32(sums[v], _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), y), ones));
      }
    }
  }
  for (int v = 0; v < 2; ++v) _mm256_store_si256((__m256i*)t.tile + v, sums[v]);
}

double peak_full(int, int64_t rounds) {
  alignas(32) static const __m256i masks[3] = {};
  const __m256i ones = _mm256_set1_epi16(1), x = broadcast_now((const char*)masks), w = x;
  __m256i sums[8];
  EQ_UNROLL for (int i = 0; i < 8; ++i) sums[i] = _mm256_setzero_si256();
  for (int64_t n = 0; n < rounds; ++n)
    EQ_UNROLL for (int i = 0; i < 8; i += 2) add_moved_now(sums + i, x, w, w, masks, ones);
  EQ_UNROLL for (int i = 0; i < 8; ++i) __asm__ volatile("" : : "x"(sums[i]));
  return (double)rounds * 8 * 32;
}

template <int DEPTH>
double peak_u8_depth(int64_t rounds) {
  alignas(32) static const char w[32] = {};
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[8];
  EQ_UNROLL for (int i = 0; i < 8; ++i) sums[i] = _mm256_setzero_si256();
  const __m256i x = broadcast_now(w), y = broadcast_now(w);
  for (int64_t n = 0; n < rounds; ++n)
    EQ_UNROLL for (int i = 0; i < 8; i += 2) {
      __m256i first = product_now(x, y), second = product_now(x, y);
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
  if (depth < 16) return peak_u8_depth<8>(rounds / 2);
  return depth < 32 ? peak_u8_depth<16>(rounds / 4) : peak_u8_depth<32>(rounds / 8);
}

Format make_u8() {
  Format f{};
  f.name = "u8s8";
  f.operand_bytes = f.weight_bytes = 1;
  f.step = f.align = 4;
  f.cycles = 1.6f;
  EQ_TILES(f, tile_u8)
  f.max_rows[2] = 2;  // a product needs two registers beside sums and weights
  f.peak = peak_u8;
  return f;
}

Format make_full() {
  Format f{};
  f.name = "u8s8_full";
  f.operand_bytes = 1;
  f.weight_bytes = 2;
  f.expand = split_signs;
  f.shifted = true;
  f.step = f.align = 4;
  f.cycles = 2.4f;
  f.load_cycles = 0.5f;
  f.latency = 5.0f;
  f.max_panels = 1;
  f.max_rows[1] = 5;
  f.tiles[1][1] = tile_full<1>;
  f.tiles[1][2] = tile_full<2>;
  f.tiles[1][3] = tile_full<3>;
  f.tiles[1][4] = tile_full<4>;
  f.tiles[1][5] = tile_full<5>;
  f.stored_row = stored_row_full;
  f.peak = peak_full;
  return f;
}

}  // namespace

const Isa* avx2_isa() {
  static const Format f32 = make_f32(), u8 = make_u8(), s16 = make_s16(), full = make_full();
  static const Isa isa = [] {
    Isa made = base_isa();
    made.id = EQ_ISA_AVX2;
    made.f32 = &f32;
    made.u8 = &u8;
    made.s16 = &s16;
    made.u8_full = &full;
    return made;
  }();
  return &isa;
}

}  // namespace eq
