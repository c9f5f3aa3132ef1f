// Vectors of 128 bits and the tiles of NEON, with and without dot products. Included inside an anonymous namespace.

#include "vector128.inl"

inline vf vfma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
inline vi vround(vf x) { return (vi)vcvtnq_s32_f32((float32x4_t)x); }

inline void vstore_u8(uint8_t* p, vi x) {
  const uint16x4_t words = vmovn_u32((uint32x4_t)x);
  const uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
  __builtin_memcpy(p, &bytes, 4);
}
inline void vstore_s8(int8_t* p, vi x) { vstore_u8((uint8_t*)p, x); }
inline void vstore_s16(int16_t* p, vi x) { vst1_s16(p, vmovn_s32((int32x4_t)x)); }
inline vi vload_u8(const uint8_t* p) {
  uint32_t four;
  __builtin_memcpy(&four, p, 4);
  return (vi)vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}

inline void interleave4(const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d, int8_t* out) {
  vst4q_s8(out, int8x16x4_t{{vld1q_s8(a), vld1q_s8(b), vld1q_s8(c), vld1q_s8(d)}});
}

inline void translate256(const int8_t* codebook, int8_t* codes) {
  const int8x16_t table = vld1q_s8(codebook);
  for (int i = 0; i < 256; i += 16) vst1q_s8(codes + i, vqtbl1q_s8(table, vld1q_u8((const uint8_t*)codes + i)));
}

#define EQ_OWN_QUANTIZE_U8
#include "vector.inl"

void quantize_u8(const float* x, size_t count, const QuantArgs& q, uint8_t* out) {
  const auto eight = [&](const float* from) {
    const int32x4_t low = (int32x4_t)vcode(vload(from), q), high = (int32x4_t)vcode(vload(from + 4), q);
    return vmovn_s16(vcombine_s16(vmovn_s32(low), vmovn_s32(high)));
  };
  size_t i = 0;
  for (; i + 16 <= count; i += 16) vst1q_s8((int8_t*)out + i, vcombine_s8(eight(x + i), eight(x + i + 8)));
  quantize_u8_simple(x + i, count - i, q, out + i);
}

#define EQ_UNROLL _Pragma("GCC unroll 32")

// How one vector of weights is multiplied. Whatever the type, a step takes 4 bytes of a row and 64 bytes of a panel,
// and 16 of those are 4 columns. add<LANE>() takes the 4 bytes of x at that lane and adds to kSums vectors: one, or two
// with two lanes for each column. A format of unsigned bytes has kFlip 0x80, which makes them signed and 128 less; what
// this takes off a column, 128 times the sum of its weights, is what its sums begin with.
struct MacF32 {
  static constexpr int kBytes = 4, kFlip = 0, kSums = 1, kInstructions = 1;
  template <int LANE>
  static void add(int32x4_t (&sums)[kSums], int8x16_t x, int8x16_t w) {
    sums[0] = (int32x4_t)vfmaq_laneq_f32((float32x4_t)sums[0], (float32x4_t)w, (float32x4_t)x, LANE);
  }
};

struct MacS16 {
  static constexpr int kBytes = 2, kFlip = 0, kSums = 2, kInstructions = 2;
  template <int LANE>
  static void add(int32x4_t (&sums)[kSums], int8x16_t x, int8x16_t w) {
    const int16x8_t pairs = (int16x8_t)vdupq_laneq_s32((int32x4_t)x, LANE);
    sums[0] = vmlal_s16(sums[0], vget_low_s16(pairs), vget_low_s16((int16x8_t)w));
    sums[1] = vmlal_high_s16(sums[1], pairs, (int16x8_t)w);
  }
};

template <class Mac, int LANE, int ROWS, int V>
inline void add_step(int32x4_t (&sums)[ROWS][V][Mac::kSums], const int8x16_t (&x)[ROWS], const char* b, ptrdiff_t stride) {
  EQ_UNROLL for (int v = 0; v < V; ++v) {
    const int8x16_t w = vld1q_s8((const int8_t*)b + v / 4 * stride + v % 4 * 16);
    EQ_UNROLL for (int r = 0; r < ROWS; ++r) Mac::template add<LANE>(sums[r][v], x[r], w);
  }
}

template <class Mac>
inline int8x16_t four_steps(const char* p) {
  return vld1q_s8((const int8_t*)p) ^ vdupq_n_s8((int8_t)Mac::kFlip);
}

template <class Mac>
inline int8x16_t one_step(const char* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return (int8x16_t)vdupq_n_s32(four) ^ vdupq_n_s8((int8_t)Mac::kFlip);
}

template <class Mac, int V>
inline void begin_columns(const TileArgs& t, int32x4_t (&start)[V][Mac::kSums]) {
  int32x4_t sums[1][V][Mac::kSums] = {};
  if (Mac::kFlip) {
    const int8x16_t x[1] = {vdupq_n_s8((int8_t)Mac::kFlip)};
    const char* b = (const char*)t.panels;
    for (ptrdiff_t i = (ptrdiff_t)t.segment_count * t.steps; i > 0; --i, b += 64) add_step<Mac, 0>(sums, x, b, t.panel_stride);
  }
  for (int v = 0; v < V; ++v)
    for (int i = 0; i < Mac::kSums; ++i) start[v][i] = -sums[0][v][i];
}

template <class Mac, int ROWS, int V>
inline void tile_block(const TileArgs& t, const void* const* rows, const int32x4_t (&start)[V][Mac::kSums], int32_t* tile) {
  int32x4_t sums[ROWS][V][Mac::kSums];
  EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int v = 0; v < V; ++v)
    EQ_UNROLL for (int i = 0; i < Mac::kSums; ++i) sums[r][v][i] = start[v][i];
  const char* b = (const char*)t.panels;
  const ptrdiff_t stride = t.panel_stride, end = (ptrdiff_t)t.steps * 4;
  for (int s = 0; s < t.segment_count; ++s) {
    const char* a[ROWS];
    EQ_UNROLL for (int r = 0; r < ROWS; ++r) a[r] = (const char*)rows[r] + t.segments[s];
    int8x16_t x[ROWS];
    ptrdiff_t k = 0;
    for (; k + 16 <= end; k += 16, b += 256) {
      EQ_UNROLL for (int r = 0; r < ROWS; ++r) x[r] = four_steps<Mac>(a[r] + k);
      add_step<Mac, 0>(sums, x, b, stride);
      add_step<Mac, 1>(sums, x, b + 64, stride);
      add_step<Mac, 2>(sums, x, b + 128, stride);
      add_step<Mac, 3>(sums, x, b + 192, stride);
    }
    for (; k < end; k += 4, b += 64) {
      EQ_UNROLL for (int r = 0; r < ROWS; ++r) x[r] = one_step<Mac>(a[r] + k);
      add_step<Mac, 0>(sums, x, b, stride);
    }
  }
  EQ_UNROLL for (int r = 0; r < ROWS; ++r) EQ_UNROLL for (int v = 0; v < V; ++v) {
    const int32x4_t(&s)[Mac::kSums] = sums[r][v];
    vst1q_s32(tile + (r * V + v) * 4, Mac::kSums == 1 ? s[0] : vpaddq_s32(s[0], s[Mac::kSums - 1]));
  }
}

template <class Mac, int ROWS, int PANELS>
void tile(const TileArgs& t) {
  constexpr int V = PANELS * 4;
  int32x4_t start[V][Mac::kSums];
  begin_columns<Mac>(t, start);
  const void* const* rows = t.rows;
  int32_t* out = (int32_t*)t.tile;
  for (int i = 0; i < t.blocks; ++i, rows += ROWS, out += ROWS * V * 4) {
    __asm__ volatile("" : : "r"(&start) : "memory");  // or GCC keeps it in registers and spills sums
    tile_block<Mac, ROWS>(t, rows, start, out);
  }
}

// Twelve independent sums in registers, nothing else: the rate an inner loop can reach at best.
template <class Mac>
double peak(int, int64_t rounds) {
  int32x4_t sums[12][Mac::kSums] = {};
  int8x16_t x = vdupq_n_s8(0), w = x;
  for (int64_t n = 0; n < rounds; ++n)
    EQ_UNROLL for (int i = 0; i < 12; ++i) {
      __asm__ volatile("" : "+w"(x), "+w"(w));
      Mac::template add<0>(sums[i], x, w);
    }
  EQ_UNROLL for (int i = 0; i < 12; ++i) EQ_UNROLL for (int j = 0; j < Mac::kSums; ++j) __asm__ volatile("" : : "w"(sums[i][j]));
  return (double)rounds * 12 * 16 / Mac::kBytes;
}

template <class Mac, int PANELS, int... ROWS>
void set_tiles(Format& f) {
  f.max_rows[PANELS] = sizeof...(ROWS);
  ((f.tiles[PANELS][ROWS] = tile<Mac, ROWS, PANELS>), ...);
}

// Costs count instructions, two in a cycle, and have not been measured.
template <class Mac>
Format make_format(const char* name) {
  Format f{};
  f.name = name;
  f.operand_bytes = f.weight_bytes = Mac::kBytes;
  f.expand = Mac::kBytes == 2 ? widen : nullptr;
  f.step = f.align = 4 / Mac::kBytes;
  f.is_float = Mac::kBytes == 4;
  f.cycles = 2.0f * Mac::kInstructions;
  f.load_cycles = 0.5f;
  f.latency = 4.0f;
  f.max_panels = 2;
  if constexpr (Mac::kSums == 1) {
    set_tiles<Mac, 1, 1, 2, 3, 4>(f);
    set_tiles<Mac, 2, 1, 2>(f);
  } else {  // sixteen registers of sums, as above
    set_tiles<Mac, 1, 1, 2>(f);
    set_tiles<Mac, 2, 1>(f);
  }
  f.peak = peak<Mac>;
  return f;
}

template <class MacU8>
Isa make_isa(int id) {
  static const Format f32 = make_format<MacF32>("f32"), u8 = make_format<MacU8>("u8s8"), s16 = make_format<MacS16>("s16s16");
  Isa isa = base_isa();
  isa.id = id;
  isa.f32 = &f32;
  isa.u8 = &u8;
  isa.s16 = &s16;
  return isa;
}
