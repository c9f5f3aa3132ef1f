// Tiles without intrinsics: what runs where no faster instruction set is, and the form the drivers are tested with.
#include <cmath>

#include "isa.h"

namespace eq {
namespace {

#include "vector128.inl"

inline vf vfma(vf a, vf b, vf c) {
  for (int i = 0; i < VL; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
inline vi vround(vf x) {
  vi out;
  for (int i = 0; i < VL; ++i) out[i] = (int)__builtin_nearbyintf(x[i]);
  return out;
}
inline vi vload_u8(const uint8_t* p) { return vi{p[0], p[1], p[2], p[3]}; }
inline void vstore_u8(uint8_t* p, vi x) {
  for (int i = 0; i < VL; ++i) p[i] = (uint8_t)x[i];
}
inline void vstore_s8(int8_t* p, vi x) {
  for (int i = 0; i < VL; ++i) p[i] = (int8_t)x[i];
}
inline void vstore_s16(int16_t* p, vi x) {
  for (int i = 0; i < VL; ++i) p[i] = (int16_t)x[i];
}
inline void interleave4(const int8_t* a, const int8_t* b, const int8_t* c, const int8_t* d, int8_t* out) {
  for (int i = 0; i < kPanel; ++i) out[4 * i] = a[i], out[4 * i + 1] = b[i], out[4 * i + 2] = c[i], out[4 * i + 3] = d[i];
}
inline void translate256(const int8_t* codebook, int8_t* codes) {
  for (int i = 0; i < 256; ++i) codes[i] = codebook[codes[i] & 15];
}

#include "vector.inl"

template <class A, class W, class Acc, int STEP, int ROWS>
void tile(const TileArgs& t) {
  Acc* out = static_cast<Acc*>(t.tile);
  for (int r = 0; r < ROWS * t.blocks; ++r) {
    Acc sums[kPanel] = {};
    const W* w = static_cast<const W*>(t.panels);
    for (int s = 0; s < t.segment_count; ++s) {
      const A* a = reinterpret_cast<const A*>(static_cast<const char*>(t.rows[r]) + t.segments[s]);
      for (int k = 0; k < t.steps; ++k, a += STEP, w += kPanel * STEP)
        for (int j = 0; j < kPanel; ++j)
          for (int i = 0; i < STEP; ++i) sums[j] += static_cast<Acc>(a[i]) * static_cast<Acc>(w[j * STEP + i]);
    }
    for (int j = 0; j < kPanel; ++j) out[r * kPanel + j] = sums[j];
  }
}

template <class A, class W, class Acc, int STEP>
double peak(int, int64_t rounds) {
  alignas(64) static A a[64] = {};
  alignas(64) static W w[64 * kPanel] = {};
  alignas(64) Acc out[kPanel];
  const void* rows[1] = {a};
  const ptrdiff_t segment = 0;
  for (int64_t i = 0; i < rounds; ++i) tile<A, W, Acc, STEP, 1>({rows, 1, &segment, 1, 64 / STEP, w, 0, 1, out});
  return static_cast<double>(rounds) * 64 * kPanel;
}

template <class A, class W, class Acc, int STEP>
constexpr Format make(const char* name) {
  Format f{};
  f.name = name;
  f.operand_bytes = sizeof(A);
  f.weight_bytes = sizeof(W);
  f.expand = sizeof(W) == 2 ? widen : nullptr;
  f.step = f.align = STEP;
  f.is_float = sizeof(A) == 4;
  f.cycles = 16 * STEP;
  f.max_panels = 1;
  f.max_rows[1] = 4;
  f.tiles[1][1] = tile<A, W, Acc, STEP, 1>;
  f.tiles[1][2] = tile<A, W, Acc, STEP, 2>;
  f.tiles[1][3] = tile<A, W, Acc, STEP, 3>;
  f.tiles[1][4] = tile<A, W, Acc, STEP, 4>;
  f.peak = peak<A, W, Acc, STEP>;
  return f;
}

const Format kF32 = make<float, float, float, 1>("f32");
const Format kU8 = make<uint8_t, int8_t, int32_t, 4>("u8s8");
const Format kS16 = make<int16_t, int16_t, int32_t, 2>("s16s16");

}  // namespace

const Isa* portable_isa() {
  static const Isa isa = [] {
    Isa made = base_isa();
    made.id = EQ_ISA_REFERENCE;
    made.f32 = &kF32;
    made.u8 = &kU8;
    made.s16 = &kS16;
    return made;
  }();
  return &isa;
}

}  // namespace eq
