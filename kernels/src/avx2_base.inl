// Vectors of 256 bits, and the tiles that AVX2 and AVX-VNNI share. Included inside an anonymous namespace.

constexpr int VL = 8;
typedef float vf __attribute__((vector_size(32), may_alias));
typedef int vi __attribute__((vector_size(32), may_alias));
typedef float vf_loose __attribute__((vector_size(32), may_alias, aligned(4)));
typedef int vi_loose __attribute__((vector_size(32), may_alias, aligned(4)));

inline vf vload(const float* p) { return (vf)_mm256_loadu_ps(p); }
inline void vstore(float* p, vf x) { _mm256_storeu_ps(p, (__m256)x); }
inline vf vfma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
inline vf vmin(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
inline vf vfloat(vi x) { return (vf)_mm256_cvtepi32_ps((__m256i)x); }
inline vi vround(vf x) { return (vi)_mm256_cvtps_epi32((__m256)x); }
inline vi vload_u8(const uint8_t* p) { return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }

inline __m128i words(vi x) {
  return _mm_packs_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
}
inline void vstore_s16(int16_t* p, vi x) { _mm_storeu_si128((__m128i*)p, words(x)); }
inline void vstore_s8(int8_t* p, vi x) { _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(words(x), words(x))); }
inline void vstore_u8(uint8_t* p, vi x) { _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words(x), words(x))); }

#define EQ_OWN_LOOKUP
inline vi vlookup(vi code, const uint8_t* table) {
  const __m256i found = _mm256_i32gather_epi32((const int*)table, (__m256i)code, 1);
  return (vi)_mm256_and_si256(found, _mm256_set1_epi32(0xff));
}

// Each byte replaced by its entry in a table of 256: the low half of a byte picks one of each of 16 pieces, and its
// other bits choose among these.
inline __m256i lookup_bytes(__m256i codes, const uint8_t* table) {
  const __m256i low = _mm256_and_si256(codes, _mm256_set1_epi8(15));
  const auto one = [&](int piece) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table + piece)), low);
  };
  const __m256i bit4 = _mm256_slli_epi16(codes, 3), bit5 = _mm256_slli_epi16(codes, 2), bit6 = _mm256_slli_epi16(codes, 1);
  const auto two = [&](int piece) { return _mm256_blendv_epi8(one(piece), one(piece + 1), bit4); };
  const auto four = [&](int piece) { return _mm256_blendv_epi8(two(piece), two(piece + 2), bit5); };
  const auto eight = [&](int piece) { return _mm256_blendv_epi8(four(piece), four(piece + 4), bit6); };
  return _mm256_blendv_epi8(eight(0), eight(8), codes);
}

#define EQ_OWN_STORE4
template <int COUNT>
EQ_INLINE void vstore4_u8(uint8_t* p, ptrdiff_t pitch, const vi* x, int zero_point, const uint8_t* nearest) {
  const __m256i zero = _mm256_set1_epi16((short)zero_point);
  const __m256i low = _mm256_add_epi16(_mm256_packs_epi32((__m256i)x[0], (__m256i)x[1]), zero);
  const __m256i high = _mm256_add_epi16(_mm256_packs_epi32((__m256i)x[2], (__m256i)x[3]), zero);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
  if (nearest) bytes = lookup_bytes(bytes, nearest);
  const __m128i first = _mm256_castsi256_si128(bytes), last = _mm256_extracti128_si256(bytes, 1);
  if (COUNT == 2) {
    _mm_storeu_si128((__m128i*)p, first);
    _mm_storeu_si128((__m128i*)(p + pitch), last);
    return;
  }
  static_assert(COUNT <= 2);
  _mm_storel_epi64((__m128i*)p, first);
  _mm_storel_epi64((__m128i*)(p + pitch), _mm_unpackhi_epi64(first, first));
  _mm_storel_epi64((__m128i*)(p + 2 * pitch), last);
  _mm_storel_epi64((__m128i*)(p + 3 * pitch), _mm_unpackhi_epi64(last, last));
}

inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline vf vload_part(const float* p, int count) { return (vf)_mm256_maskload_ps(p, first_lanes(count)); }
inline void vstore_part(float* p, vf x, int count) { _mm256_maskstore_ps(p, first_lanes(count), (__m256)x); }

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
  const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)codebook));
  for (int i = 0; i < 256; i += 32) {
    __m256i* at = (__m256i*)(codes + i);
    _mm256_storeu_si256(at, _mm256_shuffle_epi8(table, _mm256_loadu_si256(at)));
  }
}

#define EQ_OWN_QUANTIZE_U8
#define EQ_OWN_LOOKUP_CODES
#include "vector.inl"

void lookup(const uint8_t* codes, size_t count, const uint8_t* table, uint8_t* out) {
  size_t i = 0;
  for (; i + 32 <= count; i += 32)
    _mm256_storeu_si256((__m256i*)(out + i), lookup_bytes(_mm256_loadu_si256((const __m256i*)(codes + i)), table));
  for (; i < count; ++i) out[i] = table[codes[i]];
}

void quantize_u8(const float* x, size_t count, const QuantArgs& q, uint8_t* out) {
  if (q.log2_levels > 0) return quantize_u8_simple(x, count, q, out);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), zero = _mm256_set1_epi16((short)q.zero_point);
  size_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m256i a = (__m256i)vquantize(vload(x + i), q), b = (__m256i)vquantize(vload(x + i + 8), q);
    const __m256i c = (__m256i)vquantize(vload(x + i + 16), q), d = (__m256i)vquantize(vload(x + i + 24), q);
    const __m256i low = _mm256_add_epi16(_mm256_packs_epi32(a, b), zero);
    const __m256i high = _mm256_add_epi16(_mm256_packs_epi32(c, d), zero);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
    _mm256_storeu_si256((__m256i*)(out + i), q.nearest ? lookup_bytes(bytes, q.nearest) : bytes);
  }
  quantize_u8_simple(x + i, count - i, q, out + i);
}

inline __m256i broadcast32(const void* p) {
  int value;
  __builtin_memcpy(&value, p, 4);
  return _mm256_set1_epi32(value);
}

#define EQ_UNROLL _Pragma("GCC unroll 32")

// Calls block(rows, tile) for each of the row blocks of a tile.
template <int ROWS, int PANELS, class Block>
inline void each_block(const TileArgs& t, const Block& block) {
  const void* const* rows = t.rows;
  char* tile = (char*)t.tile;
  for (int i = 0; i < t.blocks; ++i, rows += ROWS, tile += ROWS * PANELS * kPanel * 4) block(rows, tile);
}

template <int ROWS, int PANELS>
inline void tile_f32_block(const TileArgs& t, const void* const* rows, char* tile) {
  constexpr int V = PANELS * 2;
  const ptrdiff_t stride = t.panel_stride / 4;
  __m256 sums[ROWS][V];
  EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = _mm256_setzero_ps();
  const float* b = (const float*)t.panels;
  for (int s = 0; s < t.segment_count; ++s) {
    const float* a[ROWS];
    EQ_UNROLL for (int r = 0; r < ROWS; ++r) a[r] = (const float*)((const char*)rows[r] + t.segments[s]);
    for (ptrdiff_t k = 0; k < t.steps; ++k, b += kPanel) {
      __m256 w[V];
      EQ_UNROLL for (int v = 0; v < V; ++v) w[v] = _mm256_load_ps(b + v / 2 * stride + v % 2 * 8);
      EQ_UNROLL for (int r = 0; r < ROWS; ++r) {
        const __m256 x = _mm256_broadcast_ss(a[r] + k);
        EQ_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = _mm256_fmadd_ps(x, w[v], sums[r][v]);
      }
    }
  }
  float* out = (float*)tile;
  EQ_UNROLL for (int r = 0; r < ROWS; ++r)
    EQ_UNROLL for (int v = 0; v < V; ++v) _mm256_store_ps(out + (r * V + v) * 8, sums[r][v]);
}

template <int ROWS, int PANELS>
void tile_f32(const TileArgs& t) {
  each_block<ROWS, PANELS>(t, [&](const void* const* rows, char* tile) { tile_f32_block<ROWS, PANELS>(t, rows, tile); });
}

// Steps of integer tiles: one broadcast of 4 bytes per row, one 32-byte load per 8 columns.
// Dot(sum, x, w) adds the products of a step to 8 int32 sums.
template <int ROWS, int PANELS, class Dot>
inline void tile_dot_block(const TileArgs& t, const void* const* rows, char* tile, const Dot& dot) {
  constexpr int V = PANELS * 2;
  __m256i sums[ROWS][V];
  EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = _mm256_setzero_si256();
  const char* b = (const char*)t.panels;
  for (int s = 0; s < t.segment_count; ++s) {
    const char* a[ROWS];
    EQ_UNROLL for (int r = 0; r < ROWS; ++r) a[r] = (const char*)rows[r] + t.segments[s];
    for (ptrdiff_t k = 0; k < (ptrdiff_t)t.steps * 4; k += 4, b += 64) {
      __m256i w[V];
      EQ_UNROLL for (int v = 0; v < V; ++v)
        w[v] = _mm256_load_si256((const __m256i*)(b + v / 2 * t.panel_stride + v % 2 * 32));
      EQ_UNROLL for (int r = 0; r < ROWS; ++r) {
        const __m256i x = broadcast32(a[r] + k);
        EQ_UNROLL for (int v = 0; v < V; ++v) sums[r][v] = dot(sums[r][v], x, w[v]);
      }
    }
  }
  __m256i* out = (__m256i*)tile;
  EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int v = 0; v < V; ++v) _mm256_store_si256(out + r * V + v, sums[r][v]);
}

template <int ROWS, int PANELS, class Dot>
inline void tile_dot(const TileArgs& t, const Dot& dot) {
  each_block<ROWS, PANELS>(t, [&](const void* const* rows, char* tile) { tile_dot_block<ROWS, PANELS>(t, rows, tile, dot); });
}

template <int ROWS, int PANELS>
void tile_s16(const TileArgs& t) {
  tile_dot<ROWS, PANELS>(t, [](__m256i sum, __m256i x, __m256i w) { return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w)); });
}

// Twelve independent sums in registers, nothing else: the rate an inner loop can reach at best.
template <class Round>
inline double peak_loop(int64_t rounds, double macs, const Round& round) {
  __m256i sums[12];
  EQ_UNROLL for (int i = 0; i < 12; ++i) sums[i] = _mm256_setzero_si256();
  __m256i x = _mm256_set1_epi32(0x01010101), w = _mm256_set1_epi32(0x01010101);
  for (int64_t n = 0; n < rounds; ++n) {
    EQ_UNROLL for (int i = 0; i < 12; ++i) {
      __asm__ volatile("" : "+x"(x), "+x"(w));
      sums[i] = round(sums[i], x, w);
    }
  }
  EQ_UNROLL for (int i = 0; i < 12; ++i) __asm__ volatile("" : : "x"(sums[i]));
  return (double)rounds * 12 * macs;
}

double peak_f32(int, int64_t rounds) {
  return peak_loop(rounds, 8, [](__m256i sum, __m256i x, __m256i w) {
    return (__m256i)_mm256_fmadd_ps((__m256)x, (__m256)w, (__m256)sum);
  });
}

double peak_s16(int, int64_t rounds) {
  return peak_loop(rounds, 16, [](__m256i sum, __m256i x, __m256i w) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
  });
}

// More rows or panels would have more sums and weights than there are registers.
#define EQ_TILES(f, name)                                                              \
  f.load_cycles = 0.5f; f.latency = 5.0f; f.max_panels = 3;                            \
  f.max_rows[1] = 6; f.max_rows[2] = 3; f.max_rows[3] = 1;                             \
  f.tiles[1][1] = name<1, 1>; f.tiles[1][2] = name<2, 1>; f.tiles[1][3] = name<3, 1>; \
  f.tiles[1][4] = name<4, 1>; f.tiles[1][5] = name<5, 1>; f.tiles[1][6] = name<6, 1>; \
  f.tiles[2][1] = name<1, 2>; f.tiles[2][2] = name<2, 2>; f.tiles[2][3] = name<3, 2>; \
  f.tiles[3][1] = name<1, 3>;

Format make_f32() {
  Format f{};
  f.name = "f32";
  f.operand_bytes = f.weight_bytes = 4;
  f.step = f.align = 1;
  f.is_float = true;
  f.cycles = 1.0f;
  EQ_TILES(f, tile_f32)
  f.peak = peak_f32;
  return f;
}

Format make_s16() {
  Format f{};
  f.name = "s16s16";
  f.operand_bytes = f.weight_bytes = 2;
  f.expand = widen;
  f.step = f.align = 2;
  f.cycles = 1.4f;
  EQ_TILES(f, tile_s16)
  f.peak = peak_s16;
  return f;
}
