// Vectors of 512 bits and the tiles of AVX-512 VNNI. Included inside an anonymous namespace.

constexpr int VL = 16;
typedef float vf __attribute__((vector_size(64), may_alias));
typedef int vi __attribute__((vector_size(64), may_alias));
typedef float vf_loose __attribute__((vector_size(64), may_alias, aligned(4)));
typedef int vi_loose __attribute__((vector_size(64), may_alias, aligned(4)));

inline vf vload(const float* p) { return (vf)_mm512_loadu_ps(p); }
inline void vstore(float* p, vf x) { _mm512_storeu_ps(p, (__m512)x); }
inline vf vfma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
inline vf vmin(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
inline vf vfloat(vi x) { return (vf)_mm512_cvtepi32_ps((__m512i)x); }
inline vi vround(vf x) { return (vi)_mm512_cvtps_epi32((__m512)x); }
inline vi vload_u8(const uint8_t* p) { return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline void vstore_u8(uint8_t* p, vi x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)x)); }
inline void vstore_s8(int8_t* p, vi x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)x)); }
inline void vstore_s16(int16_t* p, vi x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)x)); }

// Each byte replaced by its entry in a table of 256: two permutations of half of it, and the top bit chooses.
inline __m512i lookup_bytes(__m512i codes, const uint8_t* table) {
  const __m512i* const parts = (const __m512i*)table;
  const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(parts), codes, _mm512_loadu_si512(parts + 1));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(parts + 2), codes, _mm512_loadu_si512(parts + 3));
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
}

#define EQ_OWN_LOOKUP
inline vi vlookup(vi code, const uint8_t* table) {
  return (vi)_mm512_and_si512(lookup_bytes((__m512i)code, table), _mm512_set1_epi32(0xff));
}

#define EQ_OWN_STORE4
template <int COUNT>
EQ_INLINE void vstore4_u8(uint8_t* p, ptrdiff_t pitch, const vi* x, int zero_point, const uint8_t* nearest) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i zero = _mm512_set1_epi16((short)zero_point);
  const __m512i low = _mm512_add_epi16(_mm512_packs_epi32((__m512i)x[0], (__m512i)x[1]), zero);
  const __m512i high = _mm512_add_epi16(_mm512_packs_epi32((__m512i)x[2], (__m512i)x[3]), zero);
  __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
  if (nearest) bytes = lookup_bytes(bytes, nearest);
  static_assert(COUNT == 1);
  _mm_storeu_si128((__m128i*)p, _mm512_castsi512_si128(bytes));
  _mm_storeu_si128((__m128i*)(p + pitch), _mm512_extracti32x4_epi32(bytes, 1));
  _mm_storeu_si128((__m128i*)(p + 2 * pitch), _mm512_extracti32x4_epi32(bytes, 2));
  _mm_storeu_si128((__m128i*)(p + 3 * pitch), _mm512_extracti32x4_epi32(bytes, 3));
}

inline vf vload_part(const float* p, int count) { return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p); }
inline void vstore_part(float* p, vf x, int count) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)x); }

inline void interleave4(const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d, int8_t* out) {
  const __m128i va = _mm_loadu_si128((const __m128i*)a), vb = _mm_loadu_si128((const __m128i*)b);
  const __m128i vc = _mm_loadu_si128((const __m128i*)c), vd = _mm_loadu_si128((const __m128i*)d);
  const __m128i ab = _mm_unpacklo_epi8(va, vb), cd = _mm_unpacklo_epi8(vc, vd);
  const __m128i ef = _mm_unpackhi_epi8(va, vb), gh = _mm_unpackhi_epi8(vc, vd);
  __m128i* at = (__m128i*)out;
  _mm_storeu_si128(at, _mm_unpacklo_epi16(ab, cd));
  _mm_storeu_si128(at + 1, _mm_unpackhi_epi16(ab, cd));
  _mm_storeu_si128(at + 2, _mm_unpacklo_epi16(ef, gh));
  _mm_storeu_si128(at + 3, _mm_unpackhi_epi16(ef, gh));
}

inline void translate256(const int8_t* codebook, int8_t* codes) {
  const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)codebook));
  for (int i = 0; i < 256; i += 64)
    _mm512_storeu_si512(codes + i, _mm512_shuffle_epi8(table, _mm512_loadu_si512(codes + i)));
}

#define EQ_OWN_QUANTIZE_U8
#define EQ_OWN_LOOKUP_CODES
#include "vector.inl"

void lookup(const uint8_t* codes, size_t count, const uint8_t* table, uint8_t* out) {
  size_t i = 0;
  for (; i + 64 <= count; i += 64) _mm512_storeu_si512(out + i, lookup_bytes(_mm512_loadu_si512(codes + i), table));
  for (; i < count; ++i) out[i] = table[codes[i]];
}

void quantize_u8(const float* x, size_t count, const QuantArgs& q, uint8_t* out) {
  if (q.log2_levels > 0) return quantize_u8_simple(x, count, q, out);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i zero = _mm512_set1_epi16((short)q.zero_point);
  size_t i = 0;
  for (; i + 64 <= count; i += 64) {
    const __m512i a = (__m512i)vquantize(vload(x + i), q), b = (__m512i)vquantize(vload(x + i + 16), q);
    const __m512i c = (__m512i)vquantize(vload(x + i + 32), q), d = (__m512i)vquantize(vload(x + i + 48), q);
    const __m512i low = _mm512_add_epi16(_mm512_packs_epi32(a, b), zero);
    const __m512i high = _mm512_add_epi16(_mm512_packs_epi32(c, d), zero);
    const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
    _mm512_storeu_si512(out + i, q.nearest ? lookup_bytes(bytes, q.nearest) : bytes);
  }
  quantize_u8_simple(x + i, count - i, q, out + i);
}

#define EQ_UNROLL _Pragma("GCC unroll 32")

inline __m512i broadcast32(const void* p) {
  int value;
  __builtin_memcpy(&value, p, 4);
  return _mm512_set1_epi32(value);
}

// Calls block(rows, tile) for each of the row blocks of a tile.
template <int ROWS, int PANELS, class Block>
inline void each_block(const TileArgs& t, const Block& block) {
  const void* const* rows = t.rows;
  char* tile = (char*)t.tile;
  for (int i = 0; i < t.blocks; ++i, rows += ROWS, tile += ROWS * PANELS * kPanel * 4) block(rows, tile);
}

// One broadcast of 4 bytes per row and step, one 64-byte load per panel.
template <int ROWS, int PANELS, class Dot>
inline void tile_dot_block(const TileArgs& t, const void* const* rows, char* tile, const Dot& dot) {
  __m512i sums[ROWS][PANELS];
  EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int p = 0; p < PANELS; ++p) sums[r][p] = _mm512_setzero_si512();
  const char* b = (const char*)t.panels;
  for (int s = 0; s < t.segment_count; ++s) {
    const char* a[ROWS];
    EQ_UNROLL for (int r = 0; r < ROWS; ++r) a[r] = (const char*)rows[r] + t.segments[s];
    for (ptrdiff_t k = 0; k < (ptrdiff_t)t.steps * 4; k += 4, b += 64) {
      __m512i w[PANELS];
      EQ_UNROLL for (int p = 0; p < PANELS; ++p) w[p] = _mm512_load_si512(b + p * t.panel_stride);
      EQ_UNROLL for (int r = 0; r < ROWS; ++r) {
        const __m512i x = broadcast32(a[r] + k);
        EQ_UNROLL for (int p = 0; p < PANELS; ++p) sums[r][p] = dot(sums[r][p], x, w[p]);
      }
    }
  }
  char* out = tile;
  EQ_UNROLL for (int r = 0; r < ROWS; ++r)
    EQ_UNROLL for (int p = 0; p < PANELS; ++p) _mm512_store_si512(out + (r * PANELS + p) * 64, sums[r][p]);
}

template <int ROWS, int PANELS, class Dot>
inline void tile_dot(const TileArgs& t, const Dot& dot) {
  each_block<ROWS, PANELS>(t, [&](const void* const* rows, char* tile) { tile_dot_block<ROWS, PANELS>(t, rows, tile, dot); });
}

template <int ROWS, int PANELS>
void tile_f32(const TileArgs& t) {
  tile_dot<ROWS, PANELS>(t, [](__m512i sum, __m512i x, __m512i w) {
    return (__m512i)_mm512_fmadd_ps((__m512)x, (__m512)w, (__m512)sum);
  });
}

template <int ROWS, int PANELS>
void tile_u8(const TileArgs& t) {
  tile_dot<ROWS, PANELS>(t, [](__m512i sum, __m512i x, __m512i w) { return _mm512_dpbusd_epi32(sum, x, w); });
}

template <int ROWS, int PANELS>
void tile_s16(const TileArgs& t) {
  tile_dot<ROWS, PANELS>(t, [](__m512i sum, __m512i x, __m512i w) { return _mm512_dpwssd_epi32(sum, x, w); });
}

template <class Round>
inline double peak_loop(int64_t rounds, double macs, const Round& round) {
  __m512i sums[16];
  EQ_UNROLL for (int i = 0; i < 16; ++i) sums[i] = _mm512_setzero_si512();
  __m512i x = _mm512_set1_epi32(0x01010101), w = x;
  for (int64_t n = 0; n < rounds; ++n)
    EQ_UNROLL for (int i = 0; i < 16; ++i) {
      __asm__ volatile("" : "+v"(x), "+v"(w));
      sums[i] = round(sums[i], x, w);
    }
  EQ_UNROLL for (int i = 0; i < 16; ++i) __asm__ volatile("" : : "v"(sums[i]));
  return (double)rounds * 16 * macs;
}

double peak_f32(int, int64_t rounds) {
  return peak_loop(rounds, 16, [](__m512i sum, __m512i x, __m512i w) {
    return (__m512i)_mm512_fmadd_ps((__m512)x, (__m512)w, (__m512)sum);
  });
}

double peak_u8(int, int64_t rounds) {
  return peak_loop(rounds, 64, [](__m512i sum, __m512i x, __m512i w) { return _mm512_dpbusd_epi32(sum, x, w); });
}

double peak_s16(int, int64_t rounds) {
  return peak_loop(rounds, 32, [](__m512i sum, __m512i x, __m512i w) { return _mm512_dpwssd_epi32(sum, x, w); });
}

#define EQ_ROWS6(f, name, p)                                                                              \
  f.tiles[p][1] = name<1, p>; f.tiles[p][2] = name<2, p>; f.tiles[p][3] = name<3, p>;                      \
  f.tiles[p][4] = name<4, p>; f.tiles[p][5] = name<5, p>; f.tiles[p][6] = name<6, p>;
#define EQ_ROWS8(f, name, p) EQ_ROWS6(f, name, p) f.tiles[p][7] = name<7, p>; f.tiles[p][8] = name<8, p>;
#define EQ_ROWS10(f, name, p) EQ_ROWS8(f, name, p) f.tiles[p][9] = name<9, p>; f.tiles[p][10] = name<10, p>;
// More rows would have more pointers than there are registers.
#define EQ_TILES(f, name)                                                             \
  f.load_cycles = 0.5f; f.latency = 5.0f; f.max_panels = 4;                                                                   \
  f.max_rows[1] = 10; f.max_rows[2] = 10; f.max_rows[3] = 8; f.max_rows[4] = 6;       \
  EQ_ROWS10(f, name, 1) EQ_ROWS10(f, name, 2) EQ_ROWS8(f, name, 3) EQ_ROWS6(f, name, 4)

Format make_format(const char* name, int operand_bytes, int step) {
  Format f{};
  f.name = name;
  f.operand_bytes = f.weight_bytes = operand_bytes;
  f.step = f.align = step;
  f.is_float = operand_bytes == 4;
  f.cycles = 0.5f;
  return f;
}

Format make_f32() {
  Format f = make_format("f32", 4, 1);
  EQ_TILES(f, tile_f32)
  f.peak = peak_f32;
  return f;
}

Format make_u8() {
  Format f = make_format("u8s8", 1, 4);
  EQ_TILES(f, tile_u8)
  f.peak = peak_u8;
  return f;
}

Format make_s16() {
  Format f = make_format("s16s16", 2, 2);
  f.expand = widen;
  EQ_TILES(f, tile_s16)
  f.peak = peak_s16;
  return f;
}
